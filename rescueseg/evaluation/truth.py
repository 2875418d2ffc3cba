"""The frozen holdout boxes and their truth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.errors import EvaluationError
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE
from rescueseg.queue.store import open_queue
from rescueseg.records import HoldoutBox, Part
from rescueseg.storage import digest_array, digest_json
from rescueseg.volumes import open_truth

if TYPE_CHECKING:
    from rescueseg.records import AcceptedAnnotation

Labels = npt.NDArray[np.uint8]
PARTS: tuple[Part, ...] = ("validation", "test")
Annotated = dict[tuple[str, Box], "AcceptedAnnotation | None"]
"""Accepted holdout annotations by volume and box; None where the ticket was skipped."""


@dataclass(frozen=True)
class TruthReader:
    """Reads the truth of holdout boxes; called with one it returns its labels, uint8 zyx. Made by `open_truths`.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    annotated : dict
        What people annotated of the holdout.
    """

    campaign: Campaign
    annotated: Annotated

    def __call__(self, box: HoldoutBox) -> Labels:
        """Return 0 background, 1…K classes, 255 unknown."""
        if self.campaign.volume(box.volume_id).truth is None:
            accepted = self.annotated[box.volume_id, box.box]
            if accepted is None:
                return np.full(box.box.shape_zyx, IGNORE, dtype=np.uint8)
            return _check_labels(self.campaign.storage.read_array(accepted.labels), box, self.campaign)

        return _check_labels(np.asarray(open_truth(self.campaign, box.volume_id)[box.box.slices]), box, self.campaign)

    def objects(self, box: HoldoutBox) -> npt.NDArray[Any] | None:
        """Return the objects' numbers, zyx, 0 background; None where the truth does not tell objects apart."""
        truth = self.campaign.volume(box.volume_id).truth
        if truth == "instance":
            return np.asarray(open_truth(self.campaign, box.volume_id, instances=True)[box.box.slices])
        accepted = self.annotated.get((box.volume_id, box.box)) if truth is None else None
        return (
            None
            if accepted is None or accepted.instances is None
            else self.campaign.storage.read_array(accepted.instances)
        )

    def digest(self, box: HoldoutBox) -> str:
        """Return the digest of a box's truth: of its labels, and of the objects where people numbered them."""
        labels = digest_array(self(box))
        accepted = self.annotated.get((box.volume_id, box.box))
        numbered = self.campaign.volume(box.volume_id).truth is None and accepted and accepted.instances_digest
        return digest_json([labels, numbered]) if numbered else labels


def holdout_boxes(campaign: Campaign) -> tuple[HoldoutBox, ...]:
    """Return the frozen holdout boxes, those in refused volumes left out.

    Raises
    ------
    EvaluationError
        If the holdout was not drawn yet.
    """
    holdout = campaign.holdout()
    if holdout is None or not holdout.boxes:
        raise EvaluationError(
            "there is no holdout to evaluate on", where=campaign.url, todo="Sample first: 'rescueseg sample CAMPAIGN'"
        )
    boxes = _usable(campaign, holdout.boxes)
    if not boxes:
        raise EvaluationError(
            "all holdout boxes lie in refused volumes", where=campaign.url, todo="See why with 'rescueseg status'"
        )
    return boxes


def _usable(campaign: Campaign, boxes: Sequence[HoldoutBox]) -> tuple[HoldoutBox, ...]:
    refused = {volume.volume_id for volume in campaign.volumes(refused=True) if volume.refused}
    return tuple(box for box in boxes if box.volume_id not in refused)


def open_truths(campaign: Campaign, boxes: Sequence[HoldoutBox]) -> TruthReader:
    """Return what reads the truth of the holdout boxes.

    Ground truth that came with the volume is taken first, else the accepted annotation of the box's holdout ticket. A
    box whose ticket was skipped, because nobody can annotate it, is all ignore: it scores nothing.

    Raises
    ------
    EvaluationError
        If boxes have neither; the message names them.
    """
    annotated = _annotated_holdout(campaign) if any(campaign.volume(b.volume_id).truth is None for b in boxes) else {}
    missing = _without_truth(campaign, boxes, annotated)
    if missing:
        names = "; ".join(f"{b.part} box {b.volume_id} {b.box}" for b in missing[:20])
        raise EvaluationError(
            f"no truth for {len(missing)} of {len(boxes)} holdout boxes: {names}",
            where=campaign.url,
            todo="Annotate and accept the holdout tickets; they come first in the queue",
        )
    return TruthReader(campaign, annotated)


def missing_truth(campaign: Campaign) -> list[HoldoutBox]:
    """Return the holdout boxes that still wait: no ground truth, no accepted annotation, and not skipped."""
    holdout = campaign.holdout()
    usable = _usable(campaign, holdout.boxes if holdout else ())
    boxes = [b for b in usable if campaign.volume(b.volume_id).truth is None]
    return _without_truth(campaign, boxes, _annotated_holdout(campaign) if boxes else {})


def _without_truth(campaign: Campaign, boxes: Sequence[HoldoutBox], annotated: Annotated) -> list[HoldoutBox]:
    return [b for b in boxes if campaign.volume(b.volume_id).truth is None and (b.volume_id, b.box) not in annotated]


def _annotated_holdout(campaign: Campaign) -> Annotated:
    annotated: Annotated = {}
    with closing(open_queue(campaign)) as store:
        for part in PARTS:
            annotated |= {(t.volume_id, t.box): None for t in store.tickets("skipped", part)}
            annotated |= {(a.volume_id, a.box): a for a in store.accepted(part)}
    return annotated


def _check_labels(labels: npt.NDArray[Any], box: HoldoutBox, campaign: Campaign) -> Labels:
    """Return labels as uint8; refuse another shape than the box's, and classes that the campaign does not have."""
    k = campaign.config.n_classes
    if labels.shape != box.box.shape_zyx or ((labels > k) & (labels != IGNORE)).any():
        raise EvaluationError(
            f"the truth has shape {labels.shape} and values up to {int(labels[labels != IGNORE].max(initial=0))}; "
            f"wanted {box.box.shape_zyx} and 0…{k} or 255",
            where=f"{box.volume_id} {box.box}",
            todo="Annotate the box again",
        )
    return labels.astype(np.uint8)


def truth_digest(campaign: Campaign) -> str:
    """Return one digest over the holdout boxes and their truth."""
    boxes = holdout_boxes(campaign)
    return digest_boxes(boxes, open_truths(campaign, boxes))


def digest_boxes(boxes: Sequence[HoldoutBox], read_truth: TruthReader) -> str:
    """Return one digest over boxes and their truth."""
    return digest_json([[b.to_json(), digest_array(read_truth(b))] for b in boxes])
