"""Scores of any set of boxes, plain or weighted to the pool, with bootstrap intervals.

Everything is computed from sums over boxes, so that one matrix product pools all resamples at once. A weighted score
counts each box by the share of the pool that its stratum stands for, divided by the boxes of that stratum: the
Horvitz-Thompson estimate (doi:10.1080/01621459.1952.10483446) of what the plain one would be had boxes been drawn at
random, for the holdout over-represents the hard. Few boxes may then carry much of the weight: Kish's effective number
(Survey Sampling, 1965), (Σw)² / Σw², counts in place of the boxes. A stratum without a known box is missing from the
estimate: below `LEAST_COVERED` of the pool there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rescueseg.evaluation.metrics import calibration_error, dice_of, error_auroc, risk_coverage_area
from rescueseg.evaluation.scores import BoxScore, ClassDetail, Evaluation
from rescueseg.evaluation.truth import PARTS
from rescueseg.randomness import random_generator
from rescueseg.records import Part, Record

Floats = npt.NDArray[np.float64]
Tables = dict[str, Floats]
"""Sums by name, (…, K, n) or, of whole boxes, (…, bins, 3)."""
Interval = tuple[float, float]
Kind = Literal["all", "class", "stratum", "domain"]

RESAMPLES = 5000
LEAST_BOXES = 4
"""Fewer boxes say nothing about how much the score would change with others."""
LEAST_COVERED = 0.8
"""Share of the pool that the boxes must stand for, for figures weighted to it."""
_LEAST_DEFINED = 0.5
"""Share of the resamples in which a score must be defined for its interval."""
_BINS = ("calibration", "entropies")


@dataclass(frozen=True)
class Metric:
    """One score.

    Parameters
    ----------
    name, label : str
        For machines and for people.
    higher : bool
        Whether more is better.
    explanation : str
        One sentence.
    value : callable
        Of pooled tables, and which classes count (…, K): the score (…), nan where it is not defined.
    digits : int
        Shown.
    empty : float
        What two generations get where truth and both predictions hold nothing; nan where that says nothing. A single
        generation has no score there: nothing found where nothing is would flatter.
    """

    name: str
    label: str
    higher: bool
    explanation: str
    value: Callable[[Tables, npt.NDArray[np.bool_]], Floats]
    digits: int = 3
    empty: float = np.nan


def _share(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _counted(numerator: Sequence[int]) -> Callable[[Tables, npt.NDArray[np.bool_]], Floats]:
    """Return TP over the sum of some counts, averaged over classes; see `rescueseg.evaluation.metrics.Counts` for empty cases."""

    def value(t: Tables, classes: npt.NDArray[np.bool_]) -> Floats:
        counts = t["counts"]
        share = _share(counts[..., 0], counts[..., list(numerator)].sum(axis=-1))
        empty = np.where(counts.sum(axis=-1) > 0, 0.0, 1.0)
        return _over_classes(np.where(np.isnan(share), empty, share), classes)

    return value


def _mean(table: str, column: int, count: int) -> Callable[[Tables, npt.NDArray[np.bool_]], Floats]:
    """Return the mean over boxes of a column, averaged over classes."""
    return lambda t, classes: _over_classes(_share(t[table][..., column], t[table][..., count]), classes)


def _cldice(t: Tables, classes: npt.NDArray[np.bool_]) -> Floats:
    s = t["skeleton"]
    precision, sensitivity = (np.nan_to_num(_share(s[..., i + 1], s[..., i])) for i in (0, 2))
    value = np.nan_to_num(_share(2 * precision * sensitivity, precision + sensitivity))
    return _over_classes(np.where(s.sum(axis=-1) > 0, value, np.nan), classes)


def _average_precision(column: int) -> Callable[[Tables, npt.NDArray[np.bool_]], Floats]:
    def value(t: Tables, classes: npt.NDArray[np.bool_]) -> Floats:
        o = t["objects"]
        return _over_classes(_share(o[..., column], o[..., 0] + o[..., 1] - o[..., column]), classes)

    return value


def _panoptic(t: Tables, classes: npt.NDArray[np.bool_]) -> Floats:
    o = t["objects"]
    return _over_classes(_share(2 * o[..., 4], o[..., 0] + o[..., 1]), classes)


def _variation(t: Tables, classes: npt.NDArray[np.bool_]) -> Floats:
    v = t["variation"]
    return _over_classes(_share(v[..., 0] + v[..., 1], v[..., 2]), classes)


def _over_classes(values: Floats, classes: npt.NDArray[np.bool_]) -> Floats:
    wanted = classes & ~np.isnan(values)
    number = wanted.sum(axis=-1)
    total = np.where(wanted, values, 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _dice(t: Tables, classes: npt.NDArray[np.bool_]) -> Floats:
    return _over_classes(dice_of(t["counts"]), classes)


def _calibration_error(t: Tables, _: npt.NDArray[np.bool_]) -> Floats:
    return calibration_error(t["calibration"])


def _error_auroc(t: Tables, _: npt.NDArray[np.bool_]) -> Floats:
    return error_auroc(t["entropies"])


def _aurc(t: Tables, _: npt.NDArray[np.bool_]) -> Floats:
    return risk_coverage_area(t["entropies"])


METRICS = (
    Metric("dice", "Dice", True, "Overlap of prediction and truth, over all voxels of all boxes together.", _dice, empty=1.0),
    Metric("iou", "IoU", True, "Intersection over union of the same voxels.", _counted((0, 1, 2)), empty=1.0),
    Metric("precision", "precision", True, "Of what was found, how much is there.", _counted((0, 1)), empty=1.0),
    Metric("recall", "recall", True, "Of what is there, how much was found.", _counted((0, 2)), empty=1.0),
    Metric("surface_dice", "surface Dice", True, "Share of the outlines within two voxels (of the finest axis) of each other.", _mean("surface", 0, 2)),
    Metric("hd95_um", "HD95 µm", False, "95 % of the outlines lie closer to each other than this.", _mean("surface", 1, 2), 2),
    Metric("cldice", "clDice", True, "How much of the centrelines lies inside the other: gaps and false branches lower it.", _cldice),
    Metric("betti0_error", "pieces wrong", False, "Difference of the number of connected pieces (Betti 0), mean over boxes.", _mean("betti", 0, 3), 2),
    Metric("betti1_error", "tunnels wrong", False, "Difference of the number of tunnels and loops (Betti 1), mean over boxes.", _mean("betti", 1, 3), 2),
    Metric("betti2_error", "cavities wrong", False, "Difference of the number of enclosed cavities (Betti 2), mean over boxes.", _mean("betti", 2, 3), 2),
    Metric("ap50", "AP50", True, "Objects matched at an IoU above 0.5, over matched, missed and invented ones.", _average_precision(2)),
    Metric("ap75", "AP75", True, "The same at an IoU above 0.75.", _average_precision(3)),
    Metric("pq", "panoptic quality", True, "Matched objects times how well they overlap.", _panoptic),
    Metric("vi", "VI bit", False, "Variation of information inside true objects: splits and merges together.", _variation),
    Metric("vi_split", "VI splits", False, "Its part that comes of objects in pieces.", _mean("variation", 0, 2)),
    Metric("vi_merge", "VI merges", False, "Its part that comes of objects run together or missed.", _mean("variation", 1, 2)),
    Metric("ece", "calibration error", False, "How far the probabilities are off on average.", _calibration_error),
    Metric("error_auroc", "error AUROC", True, "How often a wrong voxel is more uncertain than a right one; 0.5 is chance.", _error_auroc),
    Metric("aurc", "AURC", False, "Share of wrong voxels when only the surest are kept, averaged over how many.", _aurc, 4),
)  # fmt: skip


class Figure(Record):
    """A score and its 95 % bootstrap interval over the boxes; None where there is none."""

    value: float | None
    interval: Interval | None


class PoolShare(Record):
    """How far figures weighted to the pool can speak for it."""

    covered: float
    """Share of the pool whose strata have a box with known truth."""
    effective: float
    """Kish's number: how many boxes of equal weight would tell as much."""

    @property
    def enough(self) -> bool:
        """Tell whether the boxes stand for enough of the pool."""
        return self.covered >= LEAST_COVERED

    def sentence(self) -> str:
        """Say for people what the weighted figures rest on, or why there are none."""
        if self.enough:
            return f"The boxes stand for {100 * self.covered:.0f} % of the pool; weighted, they count as {self.effective:.1f}"
        return f"Not weighted to the pool: the boxes stand for {100 * self.covered:.0f} % of it, {100 * LEAST_COVERED:.0f} % are needed"


class Group(Record):
    """Scores of the boxes of one part that have something in common."""

    part: Part
    kind: Kind
    name: str
    boxes: int
    voxels: int
    foreground: float
    """Share of the voxels that belong to a class, or to the class, in truth."""
    plain: dict[str, Figure]
    """By metric; those without a value are left out."""
    weighted: dict[str, Figure]
    """Weighted to the pool; empty where `pool` is None or not enough."""
    pool: PoolShare | None = None
    """None within a stratum or a domain, whose own shares nobody has counted, and where the holdout knows none."""


@dataclass(frozen=True)
class Selection:
    """The boxes of a group by index, and the class where it is one."""

    kind: Kind
    name: str
    index: tuple[int, ...]
    class_index: int | None = None


def selections(boxes: Sequence[BoxScore], classes: Sequence[str]) -> list[Selection]:
    """Return the groups of boxes: all, each stratum, and each class and domain where there are several."""
    everything = tuple(range(len(boxes)))
    found = [Selection("all", "", everything)] if boxes else []
    if len(classes) > 1:
        found += [Selection("class", name, everything, c) for c, name in enumerate(classes)]
    by: tuple[tuple[Kind, list[str]], ...] = (
        ("stratum", [b.stratum for b in boxes]),
        ("domain", [b.domain for b in boxes]),
    )
    for kind, names in by:
        if kind == "domain" and len(set(names)) == 1:
            continue
        found += [
            Selection(kind, name, tuple(i for i in everything if names[i] == name)) for name in dict.fromkeys(names)
        ]
    return found


def group_scores(
    evaluation: Evaluation, part: Part, classes: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Group]:
    """Return the scores of all groups of boxes of a part.

    Parameters
    ----------
    evaluation : Evaluation
        Complete.
    part : str
        Which part; without known boxes the result is empty.
    classes : sequence of str
        Names of the classes 1…K.
    seed : int
        Of the resampling.
    resamples : int
        How often boxes are drawn with replacement; 0, or fewer than 4 boxes, give no interval.
    """
    boxes = evaluation.known(part)
    tables, shares = box_tables(boxes), pool_weights(boxes)
    groups = []
    for chosen in selections(boxes, classes):
        mine, times = choose(tables, chosen), resampling(len(chosen.index), seed, resamples)
        weights, share = weighting(shares, chosen)
        voxels = sum(boxes[i].voxels for i in chosen.index)
        groups.append(
            Group(
                part=part,
                kind=chosen.kind,
                name=chosen.name,
                boxes=len(chosen.index),
                voxels=voxels,
                foreground=float(mine["counts"][..., [0, 2]].sum()) / voxels,
                plain=_figures(mine, times, np.ones(len(chosen.index))),
                weighted={} if weights is None else _figures(mine, times, weights),
                pool=share,
            )
        )
    return groups


def flat_scores(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, float]:
    """Return the scores over all boxes of both parts as flat names, such as `test_cldice` and `test_pool_dice`.

    Empty for an evaluation that is not complete.
    """
    found: dict[str, float] = {}
    for part in PARTS if evaluation.complete else ():
        for group in group_scores(evaluation, part, classes, resamples=0)[:1]:
            for prefix, figures in ((part, group.plain), (f"{part}_pool", group.weighted)):
                found |= {f"{prefix}_{name}": f.value for name, f in figures.items() if f.value is not None}
            if group.pool is not None and group.weighted:
                found[f"{part}_pool_effective_boxes"] = group.pool.effective
    return found


def _figures(tables: Tables, times: Floats | None, weights: Floats) -> dict[str, Figure]:
    plain = pool(tables, weights)
    resampled = None if times is None or effective_boxes(weights) < LEAST_BOXES else pool(tables, times * weights)
    found = {}
    for metric in METRICS:
        value = float(metric.value(plain, occurs(plain)))
        if np.isnan(value):
            continue
        drawn = None if resampled is None else metric.value(resampled, occurs(resampled))
        found[metric.name] = Figure(value=value, interval=interval(drawn))
    return found


def interval(drawn: Floats | None) -> Interval | None:
    """Return the 2.5 and 97.5 percentiles of resampled scores; None where too few of them are defined."""
    if drawn is None or np.isfinite(drawn).mean() < _LEAST_DEFINED:
        return None
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def resampling(count: int, seed: int = 0, resamples: int = RESAMPLES) -> Floats | None:
    """Return how often each box is drawn in each resample, (resamples, boxes); None with too few boxes."""
    if count < LEAST_BOXES or not resamples:
        return None
    rng = random_generator(seed, "bootstrap")
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def pool_weights(boxes: Sequence[BoxScore]) -> Floats | None:
    """Return the weight of each box: its stratum's share of the pool over the stratum's boxes.

    None when a share is unknown, or when all are 0. The sum is the share of the pool that they stand for.
    """
    of = Counter(b.stratum for b in boxes)
    weights = [b.share / of[b.stratum] for b in boxes if b.share is not None]
    if len(weights) < len(boxes) or not sum(weights):
        return None
    return np.array(weights)


def effective_boxes(weights: Floats) -> float:
    """Return Kish's effective number of boxes, (Σw)² / Σw²; that of equal weights is their number."""
    return round(float(weights.sum() ** 2 / (weights**2).sum()), 6)


def weighting(weights: Floats | None, chosen: Selection) -> tuple[Floats | None, PoolShare | None]:
    """Return the weights that a selection's figures get, and how far these speak for the pool.

    The shares are those of the whole pool: a stratum or a domain has none of its own, and gets none. Nor does anything
    where the boxes stand for too little of the pool.
    """
    if weights is None or chosen.kind in ("stratum", "domain"):
        return None, None
    share = PoolShare(covered=min(1.0, round(float(weights.sum()), 3)), effective=effective_boxes(weights))
    return weights if share.enough else None, share


def pool(tables: Tables, weights: Floats) -> Tables:
    """Return the weighted sums over boxes: weights (…, boxes) make tables (…, K, n)."""
    return {name: np.tensordot(weights, table, axes=1) for name, table in tables.items()}


def occurs(tables: Tables) -> npt.NDArray[np.bool_]:
    """Tell which classes truth or prediction holds: (…, K)."""
    return np.asarray(tables["counts"].sum(axis=-1) > 0)


def choose(tables: Tables, selection: Selection) -> Tables:
    """Return the rows of a selection's boxes; of a class its column alone, without what only all classes have."""
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
        "objects": [[_object_row(d) for d in b.details] for b in boxes],
        "variation": [[_variation_row(d) for d in b.details] for b in boxes],
        "calibration": [b.calibration.table() for b in boxes if b.calibration],
        "entropies": [b.entropies.table() for b in boxes if b.entropies],
    }
    return {name: np.array(table, dtype=np.float64) for name, table in rows.items()}


def _surface_row(d: ClassDetail) -> tuple[float, ...]:
    return (0.0, 0.0, 0.0) if d.surface_dice is None else (d.surface_dice, d.hd95_um or 0.0, 1.0)


def _skeleton_row(d: ClassDetail) -> tuple[int, ...]:
    t = d.topology
    return t.found_skeleton, t.found_inside, t.true_skeleton, t.true_inside


def _betti_row(d: ClassDetail) -> tuple[int, ...]:
    t = d.topology
    return (*(abs(a - b) for a, b in zip(t.found_betti, t.true_betti, strict=True)), 1)


def _object_row(d: ClassDetail) -> tuple[float, ...]:
    o = d.instances
    return (0.0,) * 5 if o is None else (o.found, o.true, *o.matched, o.iou)


def _variation_row(d: ClassDetail) -> tuple[float, ...]:
    o = d.instances
    return (0.0, 0.0, 0.0) if o is None or o.splits is None or o.merges is None else (o.splits, o.merges, 1.0)
