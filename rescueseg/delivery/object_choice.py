"""How objects are made, chosen on the validation boxes whose truth numbers them, by panoptic quality."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.masks import mask_of_box
from rescueseg.delivery.objects import objects_of_box
from rescueseg.delivery.records import DeliveryRule, Trial
from rescueseg.delivery.validation import Tried, ValidationBox, structure_size
from rescueseg.evaluation.instances import compare_instances, renumber_objects
from rescueseg.evaluation.metric_table import METRICS
from rescueseg.geometry import Spacing
from rescueseg.inference.quick_objects import BORDER_DEPTH_VOXELS, FLOW_DEPTH_VOXELS, LEAST_PROBABILITY
from rescueseg.labels import IGNORE
from rescueseg.models.predictor import BORDER_DISTANCE, FLOW, PROBABILITY, STAR_DISTANCE
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.progress import CountProgress

OBJECT_TRIALS = 22
"""At most so many: a model says one thing of its objects, its border distance or its flow, that six trials are made of."""
_PANOPTIC = next(metric for metric in METRICS if metric.name == "pq")
_PROBABILITY_DEPTHS = (0.05, 0.15, 0.35)
_OBJECT_PROBABILITIES = (0.2, 0.35, 0.5, 0.65)
_DISTANCE_DEPTHS = (0.03, 0.1, 0.25)
"""In multiples of the structure's thickness."""
_FLOW_REACHES = (0.25, 0.5)
"""In multiples of the structure's thickness."""
_SMALLEST = (0.05, 0.125, 0.3)
"""In multiples of the median volume of an object."""

Numbers = npt.NDArray[Any]
Mask = npt.NDArray[np.uint8]
MaskMaker = Callable[[npt.NDArray[np.float32], Spacing], Mask]


def choose_objects(
    boxes: Sequence[ValidationBox],
    rule: DeliveryRule,
    boundary: int | None,
    report: CountProgress,
    make_mask: MaskMaker | None = None,
) -> tuple[DeliveryRule, tuple[Trial, ...]]:
    """Choose how objects are made.

    Connected pieces stand unless basins of a map are better: of the probability, of the distance to the mask's border, of
    the model's own border distance or flow; or the model's star-convex polyhedra; where a class is the boundary, basins of that
    one's probability alone. Then a smallest size is tried. Without numbered objects in truth the model's polyhedra, flow or
    border distance are taken where it has them, else pieces.

    Parameters
    ----------
    boxes : sequence of ValidationBox
        The validation boxes.
    rule : DeliveryRule
        How masks are made; not changed.
    boundary : int or None
        Class that is the boundary between objects.
    report : callable
        Called with (boxes done, boxes in all) of each trial.
    make_mask : callable, optional
        Makes a mask of probabilities, (K + 1, z, y, x), and a spacing; by the rule when omitted.

    Returns
    -------
    rule : DeliveryRule
        With objects, of the class with most of them.
    trials : tuple of Trial
        Panoptic quality on all boxes together.
    """
    of_class = boundary or _numbered_class(boxes, len(rule.cleanup))
    rule = rule.model_copy(update={"object_class": of_class})
    finest = min((min(box.spacing_um_zyx) for box in boxes), default=0.0)
    search = _Search.on(boxes, rule, boundary, report, make_mask or partial(_mask_by_rule, rule))
    if not search.cases:
        objects = _without_truth(boxes, boundary, finest)
        return rule.model_copy(update={"objects": objects}), ()
    size = structure_size(boxes, of_class)
    thickness = size.thickness_um if size else 2 * finest
    candidates = _candidates(boxes, boundary, thickness, finest)
    scores = [search.score(objects) for objects in candidates]
    best = _best(scores, scores[0]) or 0
    smaller = [candidates[best].model_copy(update={"smallest_um3": v}) for v in search.smallest()]
    smaller_scores = [search.score(objects) for objects in smaller]
    chosen = _best(smaller_scores, scores[best])
    objects = candidates[best] if chosen is None else smaller[chosen]
    trials = [_trial(o, s, i == best) for i, (o, s) in enumerate(zip(candidates, scores, strict=True))]
    trials += [_trial(o, s, i == chosen) for i, (o, s) in enumerate(zip(smaller, smaller_scores, strict=True))]
    return rule.model_copy(update={"objects": objects}), tuple(trials)


def _mask_by_rule(rule: DeliveryRule, probability: npt.NDArray[np.float32], spacing_um_zyx: Spacing) -> Mask:
    return mask_of_box(probability, rule, spacing_um_zyx)


def _best(scores: Sequence[Tried], than: Tried) -> int | None:
    """Return the best of those that are better than what is simpler; None where none is."""
    better = [i for i, tried in enumerate(scores) if tried.is_better(than)]
    return max(better, key=lambda i: (scores[i].score, -i), default=None)


def _candidates(
    boxes: Sequence[ValidationBox], boundary: int | None, thickness: float, finest: float
) -> list[ObjectRule]:
    """Return what is tried, the simplest first."""
    smoothing = (0.0, float(f"{1.5 * finest:.2g}"))
    micrometres = [float(f"{d * thickness:.2g}") for d in _DISTANCE_DEPTHS]

    def basins(source: Any, depths: Sequence[float]) -> list[ObjectRule]:
        pairs = itertools.product(smoothing, depths)
        return [ObjectRule(source=source, smoothing_um=s, depth=d) for s, d in pairs]

    if boundary:
        return basins("boundary", _PROBABILITY_DEPTHS)
    own = basins("border_distance", micrometres) if _all_have(boxes, BORDER_DISTANCE) else []
    if _all_have(boxes, FLOW):
        reaches = [float(f"{r * thickness:.2g}") for r in _FLOW_REACHES]
        own += [ObjectRule(source="flow", farthest_um=r, depth=d) for r, d in itertools.product(reaches, micrometres)]
    if _all_have(boxes, STAR_DISTANCE):
        own += [ObjectRule(source="rays", depth=probability) for probability in _OBJECT_PROBABILITIES]
    return [
        ObjectRule(source="pieces"),
        *basins("probability", _PROBABILITY_DEPTHS),
        *basins("distance", micrometres),
        *own,
    ]


def _without_truth(boxes: Sequence[ValidationBox], boundary: int | None, finest: float) -> ObjectRule:
    if boundary:
        return ObjectRule(source="boundary", depth=_PROBABILITY_DEPTHS[1])
    if boxes and _all_have(boxes, STAR_DISTANCE):
        return ObjectRule(source="rays", depth=LEAST_PROBABILITY)
    if boxes and _all_have(boxes, FLOW):
        return ObjectRule(source="flow", depth=float(f"{FLOW_DEPTH_VOXELS * finest:.2g}"))
    if boxes and _all_have(boxes, BORDER_DISTANCE):
        return ObjectRule(source="border_distance", depth=float(f"{BORDER_DEPTH_VOXELS * finest:.2g}"))
    return ObjectRule(source="pieces")


def _all_have(boxes: Sequence[ValidationBox], name: str) -> bool:
    return all(name in box.maps for box in boxes)


def _numbered_class(boxes: Sequence[ValidationBox], n_classes: int) -> int:
    """Return the class with most numbered voxels in truth; 1 where none is numbered."""
    voxels = np.zeros(256, np.int64)
    for box in boxes:
        if box.objects is not None:
            voxels += np.bincount(box.truth[box.objects > 0].ravel(), minlength=256)
    return int(voxels[1 : n_classes + 1].argmax()) + 1


def _trial(objects: ObjectRule, tried: Tried, chosen: bool) -> Trial:
    return Trial(what=f"objects: {objects.in_words}", score=round(tried.score, 6), chosen=chosen)


@dataclass(frozen=True)
class _Case:
    """A box with its finished mask, and the true objects in it."""

    box: ValidationBox
    mask: Mask
    true: Numbers


@dataclass(frozen=True)
class _Search:
    """Scores ways to make objects."""

    cases: list[_Case]
    rule: DeliveryRule
    report: CountProgress

    @classmethod
    def on(
        cls,
        boxes: Sequence[ValidationBox],
        rule: DeliveryRule,
        boundary: int | None,
        report: CountProgress,
        make_mask: MaskMaker,
    ) -> _Search:
        """Return the search on the boxes whose truth numbers objects; none where not one object is numbered."""
        cases = []
        for box in boxes:
            if box.objects is not None:
                inside = box.truth != boundary if boundary else box.truth == rule.object_class
                true = renumber_objects(np.where(inside & (box.truth != IGNORE), box.objects, 0))
                cases.append(_Case(box, make_mask(box.maps[PROBABILITY], box.spacing_um_zyx), true))
        return cls(cases if any(case.true.any() for case in cases) else [], rule, report)

    def score(self, objects: ObjectRule) -> Tried:
        """Return the panoptic quality."""
        rule, rows = self.rule.model_copy(update={"objects": objects}), []
        for case in self.cases:
            made = objects_of_box(case.mask, case.box.maps, rule, case.box.spacing_um_zyx)[case.box.inner]
            i = compare_instances(renumber_objects(made), case.true, case.box.truth == IGNORE)
            rows.append([(i.found, i.true, *i.matched, i.iou)])
            self.report(len(rows), len(self.cases))
        table = np.array(rows, np.float64)
        whole = table.sum(axis=0)
        return Tried(_quality(whole), np.array([_quality(whole - row) for row in table]))

    def smallest(self) -> list[float]:
        """Return the smallest sizes that are tried, µm³."""
        volumes = []
        for case in self.cases:
            sizes = np.bincount(case.true.ravel())[1:]
            volumes += (sizes[sizes > 0] * math.prod(case.box.spacing_um_zyx)).tolist()
        return [float(f"{part * float(np.median(volumes)):.2g}") for part in _SMALLEST]


def _quality(pooled: npt.NDArray[np.float64]) -> float:
    return _PANOPTIC.value({"objects": pooled}) or 0.0
