"""Scores of any set of boxes, with intervals.

Everything is computed from sums over boxes. The boxes are chosen to be difficult, one or two from each stratum: their
scores are no estimate of the whole data, and none is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np

from rescueseg.evaluation.instances import Instances
from rescueseg.evaluation.intervals import Interval, Units, score_estimate, units_sentence
from rescueseg.evaluation.metric_table import METRICS, Tables, sums_of
from rescueseg.evaluation.scores import BoxScore, ClassDetail, ClassScore, Evaluation, PartScore
from rescueseg.evaluation.truth import PARTS
from rescueseg.geometry import Floats
from rescueseg.records import Part, Record

Kind = Literal["all", "class", "stratum", "domain"]

_BINS = ("calibration", "entropies")
_OF_OBJECTS = ("ap50", "ap75", "pq", "vi", "vi_split", "vi_merge")
CEILING = (
    "Perfect mask: what the connected pieces of the truth would get, in which touching objects are one; "
    "only what tells objects apart gets more"
)
"""What the ceilings of objects' scores are, for people."""
_OVERLAPS = ("dice", "iou", "precision", "recall", "surface_dice", "hd95_um")


class Figure(Record):
    """A score of some boxes together; see `rescueseg.evaluation.intervals`."""

    value: float
    interval: Interval | None
    """95 %; None where the boxes do not allow one."""
    boxes: int
    """Boxes in which the score is defined."""
    units: Units | None = None
    """What was left out for the interval: boxes speak of these volumes only, volumes of others like them, too."""


class Group(Record):
    """Scores of the boxes of one part that have something in common."""

    part: Part
    kind: Kind
    name: str
    boxes: int
    voxels: int
    foreground: float
    """Share of the voxels that belong to a class, or to the class, in truth."""
    scores: dict[str, Figure]
    """By metric; those without a value are left out."""
    ceilings: dict[str, float]
    """By metric of objects, what a perfect mask's connected pieces get; empty where the truth tells no objects apart."""

    def about_intervals(self) -> str:
        """Say in one sentence what the 95 % intervals speak of."""
        return units_sentence({figure.units for figure in self.scores.values()})


@dataclass(frozen=True)
class Selection:
    """The boxes of a group by index, and the class where it is one."""

    kind: Kind
    name: str
    index: tuple[int, ...]
    class_index: int | None = None


def selections(boxes: Sequence[BoxScore], classes: Sequence[str]) -> list[Selection]:
    """Return the groups of boxes: all, each class where there are several, each stratum, each domain where several."""
    everything = tuple(range(len(boxes)))
    groups = [Selection("all", "", everything)] if boxes else []
    if len(classes) > 1:
        groups += [Selection("class", name, everything, c) for c, name in enumerate(classes)]
    groups += _by_name("stratum", [b.stratum for b in boxes])
    domains = [b.domain for b in boxes]
    if len(set(domains)) > 1:
        groups += _by_name("domain", domains)
    return groups


def _by_name(kind: Kind, names: Sequence[str]) -> list[Selection]:
    """Return a selection per name, in the order of appearance; `names` holds one per box."""
    return [
        Selection(kind, name, tuple(i for i, other in enumerate(names) if other == name))
        for name in dict.fromkeys(names)
    ]


def group_scores(evaluation: Evaluation, part: Part, classes: Sequence[str]) -> list[Group]:
    """Return the scores of all groups of boxes of a part.

    Parameters
    ----------
    evaluation : Evaluation
        Complete.
    part : str
        Which part; without boxes that have truth the result is empty.
    classes : sequence of str
        Names of the classes 1…K.
    """
    boxes = evaluation.boxes_with_truth(part)
    tables = box_tables(boxes)
    groups = []
    for selection in selections(boxes, classes):
        rows = selected_rows(tables, selection)
        voxels = sum(boxes[i].voxels for i in selection.index)
        groups.append(
            Group(
                part=part,
                kind=selection.kind,
                name=selection.name,
                boxes=len(selection.index),
                voxels=voxels,
                foreground=float(rows["counts"][..., [0, 2]].sum()) / voxels,
                scores=_figures(rows, [boxes[i].volume_id for i in selection.index]),
                ceilings=object_ceilings(boxes, selection),
            )
        )
    return groups


def part_score(part: Part, boxes: Sequence[BoxScore], classes: Sequence[str]) -> PartScore | None:
    """Pool the boxes of a part, None where not one voxel of it has a known truth.

    Parameters
    ----------
    part : str
        Which part.
    boxes : sequence of BoxScore
        Complete; those of the other part are left out.
    classes : sequence of str
        Names of the classes 1…K.
    """
    boxes = [b for b in boxes if b.part == part and b.voxels]
    if not boxes:
        return None
    tables, volumes = box_tables(boxes), [b.volume_id for b in boxes]
    calibration = reduce(add, (b.calibration for b in boxes if b.calibration))
    everything = tuple(range(len(boxes)))
    return PartScore(
        part=part,
        boxes=len(boxes),
        voxels=sum(b.voxels for b in boxes),
        **_values(tables, _OVERLAPS),
        boxes_with={name: figure.boxes for name, figure in _figures(tables, volumes).items()},
        ece=calibration.calibration_error(),
        classes=tuple(
            ClassScore(
                name=name,
                counts=reduce(add, (b.counts[c] for b in boxes)),
                **_values(selected_rows(tables, Selection("class", name, everything, c)), _OVERLAPS),
            )
            for c, name in enumerate(classes)
        ),
        calibration=calibration,
        uncertainty=reduce(add, (b.entropies for b in boxes if b.entropies)),
    )


def _values(tables: Tables, names: Sequence[str]) -> dict[str, float | None]:
    """Return some scores of all boxes together, by name; None where one is not defined."""
    sums = sums_of(tables)
    return {metric.name: metric.value(sums) for metric in METRICS if metric.name in names}


def flat_scores(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, float]:
    """Return the scores over all boxes of both parts as flat names, such as `test_cldice`.

    Those that are stored with the evaluation are taken from there, and are all there is where it is not complete.
    """
    scores = evaluation.metrics()
    if not evaluation.complete:
        return scores
    for part in PARTS:
        groups = group_scores(evaluation, part, classes)
        if not groups:
            continue
        for name, figure in groups[0].scores.items():
            scores.setdefault(f"{part}_{name}", figure.value)
    return scores


def _figures(tables: Tables, volumes: Sequence[str]) -> dict[str, Figure]:
    estimates = {metric.name: score_estimate(metric, tables, volumes) for metric in METRICS}
    return {
        name: Figure(value=e.value, interval=e.interval, boxes=e.boxes, units=e.units)
        for name, e in estimates.items()
        if e is not None
    }


def object_ceilings(boxes: Sequence[BoxScore], selection: Selection) -> dict[str, float]:
    """Return, by metric of objects, what a perfect mask's connected pieces get in a selection's boxes.

    What no connected pieces of a prediction exceed: touching objects are one piece. Empty where no truth tells objects
    apart.
    """
    ceilings = [[d.ceiling for d in b.details] for b in boxes]
    rows = {
        "objects": np.array([[_object_row(o) for o in box] for box in ceilings], dtype=np.float64),
        "variation": np.array([[_variation_row(o) for o in box] for box in ceilings], dtype=np.float64),
    }
    sums = sums_of(selected_rows(rows, selection))
    values = {metric.name: metric.value(sums) for metric in METRICS if metric.name in _OF_OBJECTS}
    return {name: value for name, value in values.items() if value is not None}


def pool(tables: Tables, weights: Floats) -> Tables:
    """Return sums over boxes, each counted so often: (…, boxes) make tables (…, K, n).

    Examples
    --------
    Counts (TP, FP, FN) of one class in two boxes, the second drawn twice:

    >>> counts = np.array([[[5.0, 1, 0]], [[2, 0, 3]]])
    >>> pool({"counts": counts}, np.array([1.0, 2]))["counts"].tolist()
    [[9.0, 1.0, 6.0]]
    """
    return {name: np.tensordot(weights, table, axes=1) for name, table in tables.items()}


def selected_rows(tables: Tables, selection: Selection) -> Tables:
    """Return the rows of a selection's boxes; of a class its column alone, and zeros for what has no classes."""
    rows = {name: table[list(selection.index)] for name, table in tables.items()}
    c = selection.class_index
    if c is None:
        return rows
    return {name: np.zeros_like(t) if name in _BINS else t[:, c : c + 1] for name, t in rows.items()}


def box_tables(boxes: Sequence[BoxScore]) -> Tables:
    """Return what all scores are computed from, one row per box; the boxes must be complete."""
    rows: dict[str, list[Any]] = {
        "counts": [[(c.tp, c.fp, c.fn) for c in b.counts] for b in boxes],
        "surface": [[_surface_row(d) for d in b.details] for b in boxes],
        "skeleton": [[_skeleton_row(d) for d in b.details] for b in boxes],
        "betti": [[_betti_row(d) for d in b.details] for b in boxes],
        "objects": [[_object_row(d.instances) for d in b.details] for b in boxes],
        "variation": [[_variation_row(d.instances) for d in b.details] for b in boxes],
        "calibration": [b.calibration.table() for b in boxes if b.calibration],
        "entropies": [b.entropies.table() for b in boxes if b.entropies],
    }
    return {name: np.array(table, dtype=np.float64) for name, table in rows.items()}


def _surface_row(d: ClassDetail) -> tuple[float, ...]:
    """Return surface Dice and HD95, 0 where there is none, and whether there is the one and the other."""
    scores = (d.surface_dice, d.hd95_um)
    return (*(s or 0.0 for s in scores), *(float(s is not None) for s in scores))


def _skeleton_row(d: ClassDetail) -> tuple[int, ...]:
    t = d.topology
    return t.found_skeleton, t.found_inside, t.true_skeleton, t.true_inside


def _betti_row(d: ClassDetail) -> tuple[int, ...]:
    """Return the differences, and 1 where truth or prediction has a piece."""
    t = d.topology
    differences = (abs(a - b) for a, b in zip(t.found_betti, t.true_betti, strict=True))
    return (*differences, int(t.found_betti[0] + t.true_betti[0] > 0))


def _object_row(o: Instances | None) -> tuple[float, ...]:
    return (0.0,) * 5 if o is None else (o.found, o.true, *o.matched, o.iou)


def _variation_row(o: Instances | None) -> tuple[float, ...]:
    return (0.0, 0.0, 0.0) if o is None or o.splits is None or o.merges is None else (o.splits, o.merges, 1.0)
