"""The frozen holdout boxes and their truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.label_arrays import read_classes, read_objects
from rescueseg.errors import EvaluationError
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout, HoldoutBox, Part, VolumeRecord
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes import open_truth

if TYPE_CHECKING:
    from rescueseg.records import AcceptedAnnotation

Labels = npt.NDArray[np.uint8]
PARTS: tuple[Part, ...] = ("validation", "test")
Annotated = dict[tuple[str, Box], "AcceptedAnnotation | None"]
"""Accepted holdout annotations by volume and box; None where the ticket was skipped."""


class HoldoutTruth:
    """Boxes of the holdout and their truth; each is read once. Made by `holdout_truth`.

    Its memory is one byte for each voxel of the boxes that were asked for.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's.
    boxes : sequence of HoldoutBox
        Which boxes.
    annotated : dict
        What people annotated of the holdout.
    n_classes : int
        Foreground classes of the campaign.
    """

    def __init__(
        self, volumes: VolumeFolder, boxes: Sequence[HoldoutBox], annotated: Annotated, n_classes: int
    ) -> None:
        self.boxes = tuple(boxes)
        self.volumes = {v: volumes.record(v) for v in sorted({box.volume_id for box in boxes})}
        """Records of the volumes in which the boxes lie, by id."""
        self._folder, self._annotated, self._n_classes = volumes, annotated, n_classes
        self._labels: dict[HoldoutBox, Labels] = {}
        self._digests: dict[HoldoutBox, str] = {}

    def labels(self, box: HoldoutBox) -> Labels:
        """Return the labels of a box, uint8 zyx: 0 background, 1…K classes, 255 unknown.

        Raises
        ------
        EvaluationError
            If they have another shape, or classes that the campaign does not have.
        StorageError
            If accepted labels are missing, damaged, or others than were handed in.
        """
        if box not in self._labels:
            self._labels[box] = _check_labels(self._read(box), box, self._n_classes)
        return self._labels[box]

    def _read(self, box: HoldoutBox) -> npt.NDArray[Any]:
        if self._has_truth(box):
            return np.asarray(open_truth(self._folder, box.volume_id)[box.box.slices])
        accepted = self._annotated[box.volume_id, box.box]
        if accepted is None:
            return np.full(box.box.shape_zyx, IGNORE, dtype=np.uint8)
        return read_classes(self._folder.storage, accepted)

    def _has_truth(self, box: HoldoutBox) -> bool:
        """Tell whether the truth came with the volume."""
        return self.volumes[box.volume_id].truth is not None

    def objects(self, box: HoldoutBox) -> npt.NDArray[Any] | None:
        """Return the objects' numbers, zyx, 0 background; None where the truth does not tell objects apart."""
        truth = self.volumes[box.volume_id].truth
        if truth == "instance":
            return np.asarray(open_truth(self._folder, box.volume_id, instances=True)[box.box.slices])
        accepted = self._annotated.get((box.volume_id, box.box)) if truth is None else None
        return None if accepted is None else read_objects(self._folder.storage, accepted)

    def digest(self, box: HoldoutBox) -> str:
        """Return the digest of a box's truth: of its labels, and of the objects where people numbered them."""
        accepted = self._annotated.get((box.volume_id, box.box))
        numbered = not self._has_truth(box) and accepted and accepted.instances_digest
        labels = self._labels_digest(box)
        return digest_json([labels, numbered]) if numbered else labels

    def _labels_digest(self, box: HoldoutBox) -> str:
        if box not in self._digests:
            self._digests[box] = digest_array(self.labels(box))
        return self._digests[box]

    def missing(self) -> list[HoldoutBox]:
        """Return the boxes that have no truth yet."""
        return [b for b in self.boxes if not self._has_truth(b) and (b.volume_id, b.box) not in self._annotated]

    @property
    def digest_of_all(self) -> str:
        """One digest over the boxes and their labels."""
        return digest_json([[box.to_json(), self._labels_digest(box)] for box in self.boxes])


def holdout_boxes(holdout: Holdout | None, volumes: VolumeFolder) -> tuple[HoldoutBox, ...]:
    """Return the frozen holdout boxes, those in refused volumes left out.

    Raises
    ------
    EvaluationError
        If the holdout was not drawn yet.
    """
    if holdout is None or not holdout.boxes:
        raise EvaluationError(
            "there is no holdout to evaluate on", where=volumes.url, todo="Sample first: 'rescueseg sample CAMPAIGN'"
        )
    boxes = _usable(holdout.boxes, volumes.records(refused=True))
    if not boxes:
        raise EvaluationError(
            "all holdout boxes lie in refused volumes", where=volumes.url, todo="See why with 'rescueseg status'"
        )
    return boxes


def _usable(boxes: Sequence[HoldoutBox], volumes: Iterable[VolumeRecord]) -> tuple[HoldoutBox, ...]:
    refused = {volume.volume_id for volume in volumes if volume.refused}
    return tuple(box for box in boxes if box.volume_id not in refused)


def holdout_truth(campaign: Campaign) -> HoldoutTruth:
    """Return the holdout boxes that can be evaluated, with what reads their truth.

    Ground truth that came with the volume is taken first, else the accepted annotation of the box's holdout ticket. A
    box whose ticket was skipped, because nobody can annotate it, is all ignore: it scores nothing.

    Raises
    ------
    EvaluationError
        If there is no holdout, or boxes have neither; the message names them.
    """
    boxes = holdout_boxes(campaign.holdout(), campaign.volumes)
    truth = HoldoutTruth(campaign.volumes, boxes, _annotated(campaign, boxes), campaign.config.n_classes)
    missing = truth.missing()
    if missing:
        names = "; ".join(f"{b.part} box {b.volume_id} {b.box}" for b in missing[:20])
        raise EvaluationError(
            f"no truth for {len(missing)} of {len(boxes)} holdout boxes: {names}",
            where=campaign.url,
            todo="Annotate and accept the holdout tickets; they come first in the queue",
        )
    return truth


def missing_truth(campaign: Campaign) -> list[HoldoutBox]:
    """Return the holdout boxes that still wait: no ground truth, no accepted annotation, and not skipped."""
    holdout = campaign.holdout()
    boxes = _usable(holdout.boxes, campaign.volumes.records(refused=True)) if holdout else ()
    return HoldoutTruth(campaign.volumes, boxes, _annotated(campaign, boxes), campaign.config.n_classes).missing()


def _annotated(campaign: Campaign, boxes: Sequence[HoldoutBox]) -> Annotated:
    """Return what people annotated of the holdout; where every volume came with its truth, the queue is not asked."""
    annotated: Annotated = {}
    if all(campaign.volumes.record(v).truth is not None for v in {box.volume_id for box in boxes}):
        return annotated
    with closing(open_queue(campaign)) as store:
        for part in PARTS:
            annotated |= {(t.volume_id, t.box): None for t in store.views.tickets("skipped", part)}
            annotated |= {(a.volume_id, a.box): a for a in store.views.accepted(part)}
    return annotated


def _check_labels(labels: npt.NDArray[Any], box: HoldoutBox, n_classes: int) -> Labels:
    """Return labels as uint8; refuse another shape than the box's, and classes that the campaign does not have."""
    if labels.shape != box.box.shape_zyx or ((labels > n_classes) & (labels != IGNORE)).any():
        raise EvaluationError(
            f"the truth has shape {labels.shape} and values up to {int(labels[labels != IGNORE].max(initial=0))}; "
            f"wanted {box.box.shape_zyx} and 0…{n_classes} or 255",
            where=f"{box.volume_id} {box.box}",
            todo="Annotate the box again",
        )
    return labels.astype(np.uint8)
