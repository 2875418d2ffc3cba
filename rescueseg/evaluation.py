"""How good a generation is on the holdout, box by box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.errors import EvaluationError
from rescueseg.geometry import Box
from rescueseg.metrics import (
    CALIBRATION_BINS,
    IGNORE,
    UNCERTAINTY_BINS,
    BinnedCounts,
    Bins,
    Counts,
    count_voxels,
    mean_over_classes,
    surface_scores,
)
from rescueseg.records import BoxField, HoldoutBox, Part, Record
from rescueseg.storage import digest_array, digest_json

Labels = npt.NDArray[np.uint8]
PARTS: tuple[Part, ...] = ("validation", "test")
TruthReader = Callable[[HoldoutBox], Labels]


class BoxScore(Record):
    """The result on one holdout box."""

    volume_id: str
    box: BoxField
    part: Part
    stratum: str
    voxels: int
    """Voxels with known truth; 0 when all of the box is marked ignore."""
    errors: int
    """Voxels whose class is wrong."""
    counts: tuple[Counts, ...]
    """Per class 1…K."""
    dice: float
    """Mean over the classes that occur in truth or prediction; 1 when none does."""
    surface_dice: float | None
    hd95_um: float | None
    """Means over those classes; None when none occurs."""
    uncertainty: float
    """Mean predictive entropy of the voxels with known truth, in nats."""
    truth_digest: str


class ClassScore(Record):
    """The result on one class in one part of the holdout; ratios from pooled counts, surfaces as means over boxes."""

    name: str
    counts: Counts
    dice: float
    iou: float
    precision: float
    recall: float
    surface_dice: float | None
    hd95_um: float | None


class PartScore(Record):
    """The result on one part of the holdout; the ratios are means over the classes that occur."""

    part: Part
    boxes: int
    voxels: int
    dice: float
    iou: float
    precision: float
    recall: float
    surface_dice: float | None
    hd95_um: float | None
    ece: float
    """Expected calibration error of the predicted class, 15 bins."""
    classes: tuple[ClassScore, ...]
    calibration: BinnedCounts
    """Voxels by probability of the predicted class."""
    uncertainty: BinnedCounts
    """Voxels by predictive entropy in nats."""

    def metrics(self) -> dict[str, float]:
        """Return the scores as flat names, those without a value left out."""
        names = ("dice", "iou", "precision", "recall", "surface_dice", "hd95_um", "ece")
        found = {f"{self.part}_{name}": getattr(self, name) for name in names}
        found[f"{self.part}_error_auroc"] = self.uncertainty.error_auroc()
        if len(self.classes) > 1:
            for score in self.classes:
                found |= {f"{self.part}_{n}.{score.name}": getattr(score, n) for n in names[:6]}
        return {name: float(value) for name, value in found.items() if value is not None}


class Evaluation(Record):
    """How one generation did on the holdout."""

    generation: int
    model_digest: str
    validation: PartScore | None
    """Chooses: the champion, thresholds, when to stop."""
    test: PartScore | None
    """Only reports."""
    boxes: tuple[BoxScore, ...]
    """All holdout boxes, in the order of the holdout."""

    def part(self, part: Part) -> PartScore | None:
        """Return the scores of one part, None when the holdout has no box in it."""
        return self.validation if part == "validation" else self.test

    def worst(self, count: int, part: Part = "validation") -> list[BoxScore]:
        """Return the boxes of a part with the largest share of wrong voxels, worst first."""
        known = [b for b in self.boxes if b.part == part and b.voxels]
        return sorted(known, key=lambda b: (-b.errors / b.voxels, b.volume_id, b.box))[:count]

    def metrics(self) -> dict[str, float]:
        """Return all scores as flat names such as `test_dice`."""
        found = self.validation.metrics() if self.validation else {}
        return found | (self.test.metrics() if self.test else {})


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
    """Return a function that reads the truth of one holdout box as uint8 labels, zyx.

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

    def read(box: HoldoutBox) -> Labels:
        if campaign.volume(box.volume_id).truth is None:
            labels = annotated[box.volume_id, box.box]
            if labels is None:
                return np.full(box.box.shape_zyx, IGNORE, dtype=np.uint8)
            return _checked(campaign.storage.read_array(labels), box, campaign)
        from rescueseg.volumes import open_truth

        return _checked(np.asarray(open_truth(campaign, box.volume_id)[box.box.slices]), box, campaign)

    return read


def missing_truth(campaign: Campaign) -> list[HoldoutBox]:
    """Return the holdout boxes that still wait: no ground truth, no accepted annotation, and not skipped."""
    holdout = campaign.holdout()
    usable = _usable(campaign, holdout.boxes if holdout else ())
    boxes = [b for b in usable if campaign.volume(b.volume_id).truth is None]
    return _without_truth(campaign, boxes, _annotated_holdout(campaign) if boxes else {})


def _without_truth(
    campaign: Campaign, boxes: Sequence[HoldoutBox], annotated: dict[tuple[str, Box], str | None]
) -> list[HoldoutBox]:
    return [b for b in boxes if campaign.volume(b.volume_id).truth is None and (b.volume_id, b.box) not in annotated]


def _annotated_holdout(campaign: Campaign) -> dict[tuple[str, Box], str | None]:
    """Return the label files of accepted holdout annotations by volume and box; None where the ticket was skipped."""
    from rescueseg.annotation.store import open_queue

    found: dict[tuple[str, Box], str | None] = {}
    with closing(open_queue(campaign)) as store:
        for part in PARTS:
            found |= {(t.volume_id, t.box): None for t in store.tickets("skipped", part)}
            found |= {(a.volume_id, a.box): a.labels for a in store.accepted(part)}
    return found


def _checked(labels: npt.NDArray[Any], box: HoldoutBox, campaign: Campaign) -> Labels:
    k = campaign.config.n_classes
    if labels.shape != box.box.shape_zyx or ((labels > k) & (labels != IGNORE)).any():
        raise EvaluationError(
            f"the truth has shape {labels.shape} and values up to {int(labels[labels != IGNORE].max(initial=0))}; "
            f"wanted {box.box.shape_zyx} and 0…{k} or 255",
            where=f"{box.volume_id} {box.box}",
            todo="Annotate the box again",
        )
    return labels.astype(np.uint8)


class _Part:
    """Accumulates one part of the holdout."""

    def __init__(self, part: Part, classes: Sequence[str]) -> None:
        k = len(classes)
        self.part, self.classes = part, classes
        self.counts = [Counts() for _ in range(k)]
        self.surfaces: list[list[tuple[float, float]]] = [[] for _ in range(k)]
        self.calibration = Bins(CALIBRATION_BINS, 1.0)
        self.uncertainty = Bins(UNCERTAINTY_BINS, math.log(k + 1))
        self.boxes = self.voxels = 0

    def result(self) -> PartScore:
        surfaces = [_mean_pairs(found) for found in self.surfaces]
        calibration = self.calibration.result()
        overall = _mean_pairs([s for s in surfaces if s is not None])
        scores = {n: mean_over_classes(self.counts, n) for n in ("dice", "iou", "precision", "recall")}
        return PartScore(
            part=self.part,
            boxes=self.boxes,
            voxels=self.voxels,
            **scores,
            surface_dice=overall and overall[0],
            hd95_um=overall and overall[1],
            ece=calibration.calibration_error(),
            classes=tuple(
                ClassScore(
                    name=name,
                    counts=c,
                    dice=c.dice,
                    iou=c.iou,
                    precision=c.precision,
                    recall=c.recall,
                    surface_dice=s and s[0],
                    hd95_um=s and s[1],
                )
                for name, c, s in zip(self.classes, self.counts, surfaces, strict=True)
            ),
            calibration=calibration,
            uncertainty=self.uncertainty.result(),
        )


def _result(part: _Part | None) -> PartScore | None:
    """Return the scores of a part, None where not one voxel of it has a known truth."""
    return part.result() if part is not None and part.voxels else None


def _mean_pairs(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    if not pairs:
        return None
    return sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs)


def evaluate_generation(
    campaign: Campaign, generation: int, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Compare a generation's probability maps with the truth of the holdout boxes.

    Boxes are read one at a time. The predicted class is the most probable one. Dice, IoU, precision and recall come from
    counts pooled over the boxes of a part; a class that neither truth nor prediction holds scores 1 in a box and is left
    out of means over classes. Surface Dice and HD95 are means over the boxes in which the class occurs (see
    `rescueseg.metrics.surface_scores`).

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout and the generation's maps.
    generation : int
        Which one.
    progress : callable, optional
        Called with (boxes done, boxes in all).

    Raises
    ------
    EvaluationError
        If there is no holdout, no model, or no truth for some boxes (they are named).
    """
    from rescueseg.inference import open_map

    boxes = holdout_boxes(campaign)
    read_truth = open_truths(campaign, boxes)
    model = campaign.model(generation)
    if model is None:
        raise EvaluationError(
            f"generation {generation} has no model", where=campaign.url, todo="Train and infer it before evaluating"
        )
    parts: dict[Part, _Part] = {}
    scores: list[BoxScore] = []
    for done, box in enumerate(boxes, start=1):
        z, y, x = box.box.slices
        probability = np.asarray(open_map(campaign, generation, box.volume_id, "probability")[:, z, y, x], np.float32)
        entropy = np.asarray(open_map(campaign, generation, box.volume_id, "predictive_entropy")[z, y, x], np.float32)
        part = parts.setdefault(box.part, _Part(box.part, campaign.config.classes))
        scores.append(_score_box(campaign, box, probability, entropy, read_truth(box), part))
        if progress is not None:
            progress(done, len(boxes))
    return Evaluation(
        generation=generation,
        model_digest=model.digest,
        validation=_result(parts.get("validation")),
        test=_result(parts.get("test")),
        boxes=tuple(scores),
    )


def _score_box(
    campaign: Campaign,
    box: HoldoutBox,
    probability: npt.NDArray[np.float32],
    entropy: npt.NDArray[np.float32],
    truth: Labels,
    part: _Part,
) -> BoxScore:
    """Score one box and add it to its part."""
    k = campaign.config.n_classes
    prediction = probability.argmax(axis=0).astype(np.uint8)
    known = truth != IGNORE
    right = (prediction == truth)[known]
    counts = count_voxels(prediction, truth, k)
    spacing = campaign.volume(box.volume_id).spacing_um_zyx
    surfaces = [surface_scores(prediction, truth, c, spacing) for c in range(1, k + 1)]
    if right.size:
        part.boxes += 1
        part.voxels += int(right.size)
        part.counts = [a + b for a, b in zip(part.counts, counts, strict=True)]
        part.calibration.add(probability.max(axis=0)[known], right)
        part.uncertainty.add(entropy[known], right)
        for gathered, found in zip(part.surfaces, surfaces, strict=True):
            gathered.extend([] if found is None else [found])
    surface = _mean_pairs([s for s in surfaces if s is not None])
    return BoxScore(
        volume_id=box.volume_id,
        box=box.box,
        part=box.part,
        stratum=box.stratum,
        voxels=int(right.size),
        errors=int((~right).sum()),
        counts=counts,
        dice=mean_over_classes(counts, "dice"),
        surface_dice=surface and surface[0],
        hd95_um=surface and surface[1],
        uncertainty=float(entropy[known].mean()) if right.size else 0.0,
        truth_digest=digest_array(truth),
    )


def truth_digest(campaign: Campaign) -> str:
    """Return one digest over the holdout boxes and their truth."""
    boxes = holdout_boxes(campaign)
    read = open_truths(campaign, boxes)
    return digest_json([[b.to_json(), digest_array(read(b))] for b in boxes])
