"""The scores: how each is computed from pooled tables of sums, and what people read about it.

A table holds sums over boxes, such as true positives by class; `rescueseg.evaluation.pooled` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.evaluation.metrics import calibration_error, dice_of, error_auroc, risk_coverage_area
from rescueseg.geometry import Floats

Tables = dict[str, Floats]
"""Sums by name, (…, K, n) or, of whole boxes, (…, bins, 3)."""
Booleans = npt.NDArray[np.bool_]


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
        generation has no score there: a perfect one would flatter.
    """

    name: str
    label: str
    higher: bool
    explanation: str
    value: Callable[[Tables, Booleans], Floats]
    digits: int = 3
    empty: float = np.nan


def occurs(tables: Tables) -> Booleans:
    """Tell which classes truth or prediction holds: (…, K).

    Examples
    --------
    True positives, false positives and false negatives of two classes:

    >>> occurs({"counts": np.array([[6.0, 2, 2], [0, 0, 0]])}).tolist()
    [True, False]
    """
    return np.asarray(tables["counts"].sum(axis=-1) > 0)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _count_ratio(denominator: Sequence[int]) -> Callable[[Tables, Booleans], Floats]:
    """Return TP over the sum of some counts, averaged over classes.

    A class without TP, FP and FN has 1, one without the counts of the denominator alone 0, as in
    `rescueseg.evaluation.metrics.Counts`.
    """

    def value(t: Tables, classes: Booleans) -> Floats:
        counts = t["counts"]
        share = _share(counts[..., 0], counts[..., list(denominator)].sum(axis=-1))
        empty = np.where(counts.sum(axis=-1) > 0, 0.0, 1.0)
        return _over_classes(np.where(np.isnan(share), empty, share), classes)

    return value


def _mean(table: str, column: int, count: int) -> Callable[[Tables, Booleans], Floats]:
    """Return the mean over boxes of a column, averaged over classes."""
    return lambda t, classes: _over_classes(_share(t[table][..., column], t[table][..., count]), classes)


def _cldice(t: Tables, classes: Booleans) -> Floats:
    s = t["skeleton"]
    precision, sensitivity = (np.nan_to_num(_share(s[..., i + 1], s[..., i])) for i in (0, 2))
    value = np.nan_to_num(_share(2 * precision * sensitivity, precision + sensitivity))
    return _over_classes(np.where(s.sum(axis=-1) > 0, value, np.nan), classes)


def _average_precision(column: int) -> Callable[[Tables, Booleans], Floats]:
    def value(t: Tables, classes: Booleans) -> Floats:
        o = t["objects"]
        return _over_classes(_share(o[..., column], o[..., 0] + o[..., 1] - o[..., column]), classes)

    return value


def _panoptic(t: Tables, classes: Booleans) -> Floats:
    o = t["objects"]
    return _over_classes(_share(2 * o[..., 4], o[..., 0] + o[..., 1]), classes)


def _variation(t: Tables, classes: Booleans) -> Floats:
    v = t["variation"]
    return _over_classes(_share(v[..., 0] + v[..., 1], v[..., 2]), classes)


def _over_classes(values: Floats, classes: Booleans) -> Floats:
    is_defined = classes & ~np.isnan(values)
    number = is_defined.sum(axis=-1)
    total = np.where(is_defined, values, 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _dice(t: Tables, classes: Booleans) -> Floats:
    return _over_classes(dice_of(t["counts"]), classes)


def _calibration_error(t: Tables, _: Booleans) -> Floats:
    return calibration_error(t["calibration"])


def _error_auroc(t: Tables, _: Booleans) -> Floats:
    return error_auroc(t["entropies"])


def _aurc(t: Tables, _: Booleans) -> Floats:
    return risk_coverage_area(t["entropies"])


DICE = Metric(
    "dice", "Dice", True, "Overlap of prediction and truth, over all voxels of all boxes together.", _dice, empty=1.0
)
"""By it the champion is chosen."""
METRICS = (
    DICE,
    Metric("iou", "IoU", True, "Intersection over union of the same voxels.", _count_ratio((0, 1, 2)), empty=1.0),
    Metric("precision", "precision", True, "Of what was found, how much is there.", _count_ratio((0, 1)), empty=1.0),
    Metric("recall", "recall", True, "Of what is there, how much was found.", _count_ratio((0, 2)), empty=1.0),
    Metric("surface_dice", "surface Dice", True, "Share of the outlines within two voxels (of the finest axis) of each other.", _mean("surface", 0, 2)),
    Metric("hd95_um", "HD95 µm", False, "95 % of the outlines lie closer to each other than this.", _mean("surface", 1, 3), 2),
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
