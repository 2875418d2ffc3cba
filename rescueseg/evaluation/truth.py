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
from rescueseg.geometry import ZYX, Box
from rescueseg.labels import IGNORE
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout, HoldoutBox, Part, VolumeRecord
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes.checked_array import CheckedArray
from rescueseg.volumes.opening import open_truth_of

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
    records : sequence of VolumeRecord
        Of all of them, refused ones too.
    boxes : sequence of HoldoutBox
        Which boxes.
    annotated : dict
        What people annotated of the holdout.
    n_classes : int
        Foreground classes of the campaign.
    guard_zyx : tuple of int
        Guard band of the holdout: how far around a box no patch is offered for annotation.
    """

    def __init__(
        self,
        volumes: VolumeFolder,
        records: Sequence[VolumeRecord],
        boxes: Sequence[HoldoutBox],
        annotated: Annotated,
        n_classes: int,
        guard_zyx: ZYX,
    ) -> None:
        self.boxes, self.records = tuple(boxes), tuple(records)
        self.volumes = _volumes_of(boxes, records, volumes)
        """Records of the volumes in which the boxes lie, by id."""
        self._folder, self._annotated, self._n_classes = volumes, annotated, n_classes
        self._guard_zyx = guard_zyx
        self._arrays: dict[tuple[str, bool], CheckedArray] = {}
        self._labels: dict[HoldoutBox, Labels] = {}
        self._digests: dict[HoldoutBox, str] = {}

    def only(self, boxes: Sequence[HoldoutBox]) -> HoldoutTruth:
        """Return the same with some of its boxes."""
        return HoldoutTruth(self._folder, self.records, boxes, self._annotated, self._n_classes, self._guard_zyx)

    def labels(self, box: HoldoutBox) -> Labels:
        """Return the labels of a box, uint8 zyx, read-only: 0 background, 1…K classes, 255 unknown.

        Raises
        ------
        EvaluationError
            If they have another shape, or classes that the campaign does not have.
        StorageError
            If accepted labels are missing, damaged, or others than were handed in.
        """
        if box not in self._labels:
            labels = _check_labels(self._read(box), box, box.box, self._n_classes)
            labels.setflags(write=False)
            self._labels[box] = labels
        return self._labels[box]

    def _read(self, box: HoldoutBox) -> npt.NDArray[Any]:
        if self._has_truth(box):
            return self._stored(box.volume_id, box.box)
        accepted = self._annotated[box.volume_id, box.box]
        if accepted is None:
            return np.full(box.box.shape_zyx, IGNORE, dtype=np.uint8)
        return read_classes(self._folder.storage, accepted)

    def _stored(self, volume_id: str, region: Box, *, instances: bool = False) -> npt.NDArray[Any]:
        """Return what came with the volume; each volume's is opened once."""
        key = volume_id, instances
        if key not in self._arrays:
            self._arrays[key] = open_truth_of(self._folder, self.volumes[volume_id], instances)
        return np.asarray(self._arrays[key][region.slices])

    def _has_truth(self, box: HoldoutBox) -> bool:
        """Tell whether the truth came with the volume."""
        return self.volumes[box.volume_id].truth is not None

    def tells_objects(self, box: HoldoutBox) -> bool:
        """Tell whether the truth of a box numbers objects."""
        if self._has_truth(box):
            return self.volumes[box.volume_id].truth == "instance"
        accepted = self._annotated.get((box.volume_id, box.box))
        return accepted is not None and accepted.instances is not None

    def context(self, box: HoldoutBox) -> Box:
        """Return the region in which objects are compared: where the volume came with numbered objects, the guard too.

        No patch is offered in the guard band, so that predictions there are as good or as bad as in the box.
        """
        return self._around(box, self._guard_zyx)

    def surroundings(self, box: HoldoutBox) -> Box:
        """Return the region in which whole true objects are looked for: at least a box's length on every side."""
        return self._around(
            box, [max(2 * guard, length) for guard, length in zip(self._guard_zyx, box.box.shape_zyx, strict=True)]
        )

    def _around(self, box: HoldoutBox, margin_zyx: Sequence[int]) -> Box:
        volume = self.volumes[box.volume_id]
        return box.box.expand(margin_zyx).clip(volume.shape_zyx) if volume.truth == "instance" else box.box

    def labels_in(self, box: HoldoutBox, region: Box) -> Labels:
        """Return the labels of a region around a box, as `labels`; not kept where it is larger than the box."""
        if region == box.box:
            return self.labels(box)
        return _check_labels(self._stored(box.volume_id, region), box, region, self._n_classes)

    def objects_in(self, box: HoldoutBox, region: Box) -> npt.NDArray[Any] | None:
        """Return the objects' numbers in a region around a box, zyx, 0 background; None where none are told apart."""
        if self._has_truth(box):
            return self._stored(box.volume_id, region, instances=True) if self.tells_objects(box) else None
        return self.objects(box)

    def objects(self, box: HoldoutBox) -> npt.NDArray[Any] | None:
        """Return the objects' numbers, zyx, 0 background; None where the truth does not tell objects apart."""
        if self._has_truth(box):
            return self.objects_in(box, box.box)
        accepted = self._annotated.get((box.volume_id, box.box))
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


def holdout_boxes(holdout: Holdout | None, records: Sequence[VolumeRecord], where: str) -> tuple[HoldoutBox, ...]:
    """Return the frozen holdout boxes, those in refused volumes left out.

    Parameters
    ----------
    holdout : Holdout or None
        The frozen one, if there is one.
    records : sequence of VolumeRecord
        Of all volumes, refused ones too.
    where : str
        The campaign, for messages.

    Raises
    ------
    EvaluationError
        If the holdout was not drawn yet.
    """
    if holdout is None or not holdout.boxes:
        raise EvaluationError(
            "there is no holdout to evaluate on", where=where, todo="Sample first: 'rescueseg sample CAMPAIGN'"
        )
    boxes = _usable(holdout.boxes, records)
    if not boxes:
        raise EvaluationError(
            "all holdout boxes lie in refused volumes", where=where, todo="See why with 'rescueseg status'"
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
    records = campaign.volumes.records(refused=True)
    holdout = campaign.holdout()
    truth = _truth(campaign, records, holdout, holdout_boxes(holdout, records, campaign.url))
    boxes = truth.boxes
    missing = truth.missing()
    if missing:
        names = "; ".join(f"{b.part} box {b.volume_id} {b.box}" for b in missing[:20])
        raise EvaluationError(
            f"no truth for {len(missing)} of {len(boxes)} holdout boxes: {names}",
            where=campaign.url,
            todo="Annotate and accept the holdout tickets; they come first in the queue",
        )
    return truth


def truth_of_part(campaign: Campaign, part: Part) -> HoldoutTruth:
    """Return the boxes of one part of the holdout that have a truth, with what reads it: of the other part none is read.

    There may be no box; a box that is skipped in the queue is all ignore, as in `holdout_truth`.
    """
    holdout, records = campaign.holdout(), campaign.volumes.records(refused=True)
    boxes = [box for box in (_usable(holdout.boxes, records) if holdout else ()) if box.part == part]
    missing = set(_truth(campaign, records, holdout, boxes).missing())
    return _truth(campaign, records, holdout, [box for box in boxes if box not in missing])


def missing_truth(campaign: Campaign, holdout: Holdout | None = None) -> list[HoldoutBox]:
    """Return the holdout boxes that still wait: no ground truth, no accepted annotation, and not skipped.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    holdout : Holdout, optional
        Its holdout, where it was read already.
    """
    holdout, records = holdout or campaign.holdout(), campaign.volumes.records(refused=True)
    return _truth(campaign, records, holdout, _usable(holdout.boxes, records) if holdout else ()).missing()


def _truth(
    campaign: Campaign, records: Sequence[VolumeRecord], holdout: Holdout | None, boxes: Sequence[HoldoutBox]
) -> HoldoutTruth:
    annotated = _annotated(campaign, _volumes_of(boxes, records, campaign.volumes).values())
    guard_zyx = holdout.guard_zyx if holdout else (0, 0, 0)
    return HoldoutTruth(campaign.volumes, records, boxes, annotated, campaign.config.n_classes, guard_zyx)


def _volumes_of(
    boxes: Sequence[HoldoutBox], records: Sequence[VolumeRecord], volumes: VolumeFolder
) -> dict[str, VolumeRecord]:
    """Return the records of the volumes in which boxes lie, by id; asking for one that is gone says so."""
    known = {record.volume_id: record for record in records}
    return {v: known[v] if v in known else volumes.record(v) for v in sorted({box.volume_id for box in boxes})}


def _annotated(campaign: Campaign, volumes: Iterable[VolumeRecord]) -> Annotated:
    """Return what people annotated of the holdout; where every volume came with its truth, the queue is not asked."""
    annotated: Annotated = {}
    if all(volume.truth is not None for volume in volumes):
        return annotated
    with closing(open_queue(campaign)) as store:
        for part in PARTS:
            annotated |= {(t.volume_id, t.box): None for t in store.views.tickets("skipped", part)}
            annotated |= {(a.volume_id, a.box): a for a in store.views.accepted(part)}
    return annotated


def _check_labels(labels: npt.NDArray[Any], box: HoldoutBox, region: Box, n_classes: int) -> Labels:
    """Return labels as uint8; refuse another shape than the region's, and classes that the campaign does not have."""
    if labels.shape != region.shape_zyx or ((labels > n_classes) & (labels != IGNORE)).any():
        raise EvaluationError(
            f"the truth has shape {labels.shape} and values up to {int(labels[labels != IGNORE].max(initial=0))}; "
            f"wanted {region.shape_zyx} and 0…{n_classes} or 255",
            where=f"{box.volume_id} {box.box}",
            todo="Annotate the box again",
        )
    return labels.astype(np.uint8)
