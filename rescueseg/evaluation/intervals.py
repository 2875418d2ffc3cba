"""Intervals: how much a score, or its difference between two generations, would change with other boxes.

A score: each box is left out once and the score computed anew, from tables of sums, so that one function serves every score
(delete-one jackknife [1]_). Few boxes often hold most of a structure, and then most of the variance. Satterthwaite's degrees
of freedom [2]_ count how many boxes the variance comes of: N = (Σd²)² / Σd⁴ for the changes d that leaving out makes. The
half-width is Student's t with N − 1 degrees of freedom, at least 1.5, on the logarithm of the odds (of a score without an
upper bound on its logarithm), so that the interval ends within what the score can be.

A difference of two generations: what each box adds to it is half of what exchanging the two in that box changes. Over any
subset of the boxes, what they add, divided by how much of the score comes from them, is a typical value of the true difference:
where the noise is symmetric, of whatever size in each box, the truth is as likely to lie between any two neighbours
among these values as between any others [3]_, so that the 2.5 and 97.5 percentiles are the ends. This is the paired test
of `rescueseg.evaluation.paired_test` the other way round: a difference that it calls better has an interval above 0.

Boxes of one volume are alike: with enough volumes whole volumes take the place of boxes, which is what an interval that
speaks of other volumes needs [4]_; with fewer the interval speaks of these volumes only.
`tests/benchmarks/interval_coverage.py` prints how often such intervals hold the truth.

References
----------
.. [1] Efron, The Jackknife, the Bootstrap and Other Resampling Plans, SIAM 1982, doi:10.1137/1.9781611970319.
.. [2] Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 1946, doi:10.2307/3002019.
.. [3] Hartigan, Using subsample values as typical values, Journal of the American Statistical Association 1969,
   doi:10.1080/01621459.1969.10501057.
.. [4] MacKinnon, Nielsen and Webb, Fast and reliable jackknife and bootstrap methods for cluster-robust inference, Journal
   of Applied Econometrics 2023, doi:10.1002/jae.2969.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit, stdtrit

from rescueseg.evaluation.metric_table import Booleans, Metric, Tables, sums_of
from rescueseg.evaluation.paired_test import EXACT_UNITS, LEAST_VOLUMES
from rescueseg.geometry import Floats
from rescueseg.randomness import random_generator

Interval = tuple[float, float]
Units = Literal["boxes", "volumes"]

LEAST = 4
"""Fewer boxes, or volumes, that hold a class give its scores no interval. A difference needs six, for of five no subset
lies far enough out."""
_LEAST_FREEDOM = 1.5
"""Degrees of freedom of a score's interval, where one box makes nearly all of the variance."""
_NOISE = 1e-9
"""A standard error below it is rounding: the boxes are equal."""


@dataclass(frozen=True)
class Estimate:
    """A score over boxes.

    Parameters
    ----------
    value : float
        The score, the mean over the classes that have it.
    interval : (float, float) or None
        95 %. None with fewer than `LEAST` boxes in which truth holds each of the classes, where the score without one box
        is not defined, where leaving out changes nothing, and where the score is the smallest or largest there is.
    units : str or None
        "volumes" where whole volumes were left out, "boxes" where boxes were and the interval speaks of these volumes
        only; None without an interval.
    boxes : int
        In how many boxes the score is defined.
    """

    value: float
    interval: Interval | None
    units: Units | None
    boxes: int


@dataclass(frozen=True)
class PairedEstimate:
    """A score of two generations over the same boxes.

    Parameters
    ----------
    first, second : float or None
        The scores; None where one is not defined.
    difference : Estimate or None
        Second minus first; None where either is not defined.
    """

    first: float | None
    second: float | None
    difference: Estimate | None


def units_sentence(units: Collection[Units | None]) -> str:
    """Say for people what the intervals of some scores speak of.

    Parameters
    ----------
    units : collection of str or None
        Of the scores, as in `Estimate`.

    Examples
    --------
    >>> units_sentence(["volumes", None])
    '95 % intervals are for other volumes like these'
    """
    if "boxes" in units:
        where = f" where a score comes of fewer than {LEAST} volumes" if "volumes" in units else ""
        return f"95 % intervals are for other boxes of these volumes{where}: new volumes may differ more"
    if "volumes" in units:
        return "95 % intervals are for other volumes like these"
    return f"No 95 % intervals: they need a score that differs over at least {LEAST} boxes"


def score_estimate(metric: Metric, tables: Tables, volumes: Sequence[str]) -> Estimate | None:
    """Return a score with its interval, None where no class has it.

    Parameters
    ----------
    metric : Metric
        The score.
    tables : dict of str to ndarray
        One row per box: (boxes, K, n), or (boxes, bins, 3).
    volumes : sequence of str
        The volume of each box.

    Examples
    --------
    Counts (TP, FP, FN) of one class in five boxes of one volume:

    >>> from rescueseg.evaluation.metric_table import DICE
    >>> counts = np.array([[[8.0, 2, 2]], [[7, 1, 5]], [[9, 2, 0]], [[6, 3, 3]], [[8, 1, 1]]])
    >>> score = score_estimate(DICE, {"counts": counts}, ["v"] * 5)
    >>> round(score.value, 2), [round(end, 2) for end in score.interval], score.units, score.boxes
    (0.79, [0.6, 0.91], 'boxes', 5)
    """
    sums = sums_of(tables)
    classes = metric.classes(sums)
    if not classes.any():
        return None
    value = float(metric.mean(sums, classes))
    defined = metric.classes(tables)[:, classes]
    boxes = _boxes(defined)
    if not metric.of_all_voxels:
        defined &= tables["counts"][:, classes][..., [0, 2]].sum(axis=-1) > 0
    units = _units(defined, volumes)
    interval = None
    if units is not None:
        interval = _score_interval(metric, value, metric.mean(_left_out(tables, units, volumes), classes))
    return Estimate(value, interval, units if interval else None, boxes)


def difference_estimate(metric: Metric, first: Tables, second: Tables, volumes: Sequence[str]) -> PairedEstimate:
    """Return a score of two generations over the same boxes, and the difference with its interval.

    Both are means over the same classes: those that truth holds, and that have the score in both.

    Parameters
    ----------
    metric : Metric
        The score.
    first, second : dict of str to ndarray
        One row per box, (boxes, K, n) or (boxes, bins, 3), the same boxes in both.
    volumes : sequence of str
        The volume of each box.

    Examples
    --------
    Counts (TP, FP, FN) of one class in six boxes of one volume; the second generation misses fewer:

    >>> from rescueseg.evaluation.metric_table import DICE
    >>> counts = np.array([[[8.0, 2, 2]], [[7, 1, 5]], [[9, 2, 0]], [[6, 3, 3]], [[8, 1, 1]], [[7, 2, 2]]])
    >>> more = counts + np.array([[1, 0, -1], [3, 0, -3], [0, -1, 0], [2, -1, -2], [1, 0, -1], [1, 0, -1]])[:, None]
    >>> pair = difference_estimate(DICE, {"counts": counts}, {"counts": more}, ["v"] * 6)
    >>> round(pair.difference.value, 2), [round(end, 2) for end in pair.difference.interval]
    (0.09, [0.04, 0.17])
    """
    pair, sums = (first, second), (sums_of(first), sums_of(second))
    classes = _common_classes(metric, *sums)
    if not classes.any():
        return PairedEstimate(metric.value(sums[0]), metric.value(sums[1]), None)
    one, two = (float(metric.mean(s, classes)) for s in sums)
    defined = (metric.classes(first) | metric.classes(second))[:, classes]
    units: Units = "volumes" if len(set(volumes)) >= LEAST_VOLUMES else "boxes"
    interval = None
    if defined.sum(axis=0).min() >= LEAST:
        rows = [_by_unit(t, units, volumes) for t in pair]
        sizes = _sizes(metric, rows, classes)
        added = _added(metric, rows, classes, two - one)
        ends = _typical_ends(added + (two - one - added.sum()) * sizes, sizes)  # all together they add the difference
        interval = ends and (max(ends[0], -metric.largest), min(ends[1], metric.largest))
    return PairedEstimate(one, two, Estimate(two - one, interval, units if interval else None, _boxes(defined)))


def _common_classes(metric: Metric, first: Tables, second: Tables) -> Booleans:
    """Return the classes over which two generations are averaged, from sums over boxes."""
    both = metric.classes(first) & metric.classes(second)
    is_true = first["counts"][:, 0] + first["counts"][:, 2] > 0
    return both if metric.of_all_voxels else both & is_true


def _units(defined: Booleans, volumes: Sequence[str]) -> Units | None:
    """Say what is left out, from the boxes in which each class has the score, (boxes, classes); None with too few."""
    if len(defined) == 0 or defined.sum(axis=0).min() < LEAST:
        return None
    names = np.asarray(volumes)
    number = min(len(set(names[column])) for column in defined.T)
    return "volumes" if number >= LEAST else "boxes"


def _boxes(defined: Booleans) -> int:
    return int(defined.any(axis=1).sum())


def _by_unit(tables: Tables, units: Units, volumes: Sequence[str]) -> Tables:
    """Return the sums over the boxes of each unit: one row per unit."""
    if units == "boxes":
        return tables
    index = np.unique(np.asarray(volumes), return_inverse=True)[1]
    member = (np.arange(index.max() + 1)[:, None] == index).astype(np.float64)
    return {name: np.tensordot(member, table, axes=1) for name, table in tables.items()}


def _left_out(tables: Tables, units: Units, volumes: Sequence[str]) -> Tables:
    """Return the sums over boxes without each unit: one row per unit."""
    return {name: table.sum(axis=0) - table for name, table in _by_unit(tables, units, volumes).items()}


def _score_interval(metric: Metric, value: float, left_out: Floats) -> Interval | None:
    """Return the interval of a score, from the scores without each unit."""
    if not 0 < value < metric.largest:
        return None
    bounded = np.isfinite(metric.largest)
    slope = 1 / (value * (1 - value)) if bounded else 1 / value
    half = _half_width(slope * (left_out - value))
    if half is None:
        return None
    ends = np.array([-half, half])
    low, high = expit(logit(value) + ends) if bounded else value * np.exp(ends)
    return float(low), float(high)


def _half_width(changes: Floats) -> float | None:
    """Return half the 95 % interval of a score, from the change that leaving out each unit makes."""
    if not np.isfinite(changes).all():
        return None
    squares = changes**2
    error = float(np.sqrt((len(changes) - 1) / len(changes) * squares.sum()))
    if error < _NOISE:
        return None
    freedom = max(_LEAST_FREEDOM, squares.sum() ** 2 / (squares**2).sum() - 1)
    return float(stdtrit(freedom, 0.975)) * error


def _added(metric: Metric, rows: Sequence[Tables], classes: Booleans, difference: float) -> Floats:
    """Return what each unit adds to the difference, (units,)."""
    names = [name for name, table in rows[0].items() if table.size]
    change = {name: rows[1][name] - rows[0][name] for name in names}
    sums = [{name: rows_of[name].sum(axis=0) for name in names} for rows_of in rows]
    first, second = (
        metric.mean({name: sums[side][name] + sign * change[name] for name in names}, classes)
        for side, sign in ((0, 1), (1, -1))
    )
    return np.asarray((difference - (second - first)) / 2)


def _sizes(metric: Metric, rows: Sequence[Tables], classes: Booleans) -> Floats:
    """Return how much of the score of both generations comes from each unit, (units,): shares that sum to 1."""
    sizes = [metric.size(tables)[:, classes] for tables in rows]
    return np.asarray(np.mean([(size / size.sum(axis=0)).mean(axis=1) for size in sizes], axis=0))


def _subsets(count: int) -> Floats:
    """Return the subsets of so many units but the empty one, (subsets, units) of 0 and 1: all, or a seeded choice."""
    if count <= EXACT_UNITS:
        return (np.arange(1, 2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    rng = random_generator("subsets", count)
    return rng.integers(2, size=(2**EXACT_UNITS - 1, count)).astype(np.float64)


def _typical_ends(added: Floats, sizes: Floats) -> Interval | None:
    """Return the ends of the 95 % interval of a difference, from what units add to it and their sizes.

    Examples
    --------
    Six units of one size: the ends are those of the units that add least and most. Five are too few.

    >>> added = np.array([0.01, 0.02, 0.02, 0.03, 0.01, 0.03])
    >>> [round(end, 2) for end in _typical_ends(added, np.full(6, 1 / 6))]
    [0.06, 0.18]
    >>> _typical_ends(added[:5], np.full(5, 1 / 5)) is None
    True
    """
    says = (sizes > 0) | (added != 0)
    subsets = _subsets(int(says.sum()))
    rank = int(0.025 * (len(subsets) + 1))
    if rank < 1 or not np.isfinite(added).all():
        return None
    with np.errstate(divide="ignore"):
        values = np.sort((subsets @ added[says]) / (subsets @ sizes[says]))
    low, high = float(values[rank - 1]), float(values[-rank])
    return (low, high) if np.isfinite(values[[rank - 1, -rank]]).all() and high - low > _NOISE else None
