"""The scores: how each is computed from pooled tables of sums, and what people read about it.

A table holds sums over boxes, such as true positives by class; `rescueseg.evaluation.pooled` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from rescueseg.evaluation.metrics import calibration_error, dice_of, error_auroc, risk_coverage_area
from rescueseg.geometry import Floats

Tables = dict[str, Floats]
"""Sums by name, (…, K, n) or, of whole boxes, (…, bins, 3)."""
Booleans = npt.NDArray[np.bool_]


def sums_of(tables: Tables) -> Tables:
    """Return the sums over boxes of tables with one row per box."""
    return {name: table.sum(axis=0) for name, table in tables.items()}


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
    by_class : callable
        Of tables, the score of each class (…, K), or of all voxels together (…, 1); nan where it says nothing.
    size : callable
        Of tables, how much there is that the score is made of, in the same shape: its denominator.
    digits : int
        Shown.
    largest : float
        The largest value there can be; the smallest is 0.
    """

    name: str
    label: str
    higher: bool
    explanation: str
    by_class: Callable[[Tables], Floats]
    size: Callable[[Tables], Floats]
    digits: int = 3
    largest: float = 1.0

    @property
    def of_all_voxels(self) -> bool:
        """Tell whether it is of all voxels together, whatever their class: (…, 1) in place of (…, K)."""
        return self.name in ("ece", "error_auroc", "aurc")

    def classes(self, tables: Tables) -> Booleans:
        """Tell which classes have the score: (…, K) or (…, 1)."""
        return ~np.isnan(self.by_class(tables))

    def mean(self, tables: Tables, classes: Booleans) -> Floats:
        """Return the mean over some classes, (K,): shape (…); nan where one of them has no score, or none is given."""
        if not classes.any():
            return np.full(self.by_class(tables).shape[:-1], np.nan)
        return np.asarray(self.by_class(tables)[..., classes].mean(axis=-1))

    def value(self, sums: Tables) -> float | None:
        """Return the mean over the classes that have the score in sums over boxes, (K, n) each; None where none has.

        Examples
        --------
        True positives, false positives and false negatives of three classes, of which the last is nowhere:

        >>> DICE.value({"counts": np.array([[6.0, 2, 2], [0, 0, 4], [0, 0, 0]])})
        0.375
        """
        value = float(self.mean(sums, self.classes(sums)))
        return None if np.isnan(value) else value


def _columns(table: str, weights: Sequence[float]) -> Callable[[Tables], Floats]:
    """Return the weighted sum of a table's columns, (…, K)."""
    return lambda t: t[table] @ np.asarray(weights)


def _voxels(table: str) -> Callable[[Tables], Floats]:
    """Return the voxels in the bins of a table, (…, 1)."""
    return lambda t: t[table][..., 0].sum(axis=-1, keepdims=True)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _count_ratio(denominator: Sequence[int]) -> Callable[[Tables], Floats]:
    """Return TP over the sum of some counts."""
    return lambda t: _share(t["counts"][..., 0], t["counts"][..., list(denominator)].sum(axis=-1))


def _mean(table: str, column: int, count: int) -> Callable[[Tables], Floats]:
    """Return the mean of a column over the boxes that have it."""
    return lambda t: _share(t[table][..., column], t[table][..., count])


def _cldice(t: Tables) -> Floats:
    """Return the harmonic mean of both shares inside; 0 where only one of the two has a skeleton."""
    s = t["skeleton"]
    precision, sensitivity = (np.nan_to_num(_share(s[..., i + 1], s[..., i])) for i in (0, 2))
    value = np.nan_to_num(_share(2 * precision * sensitivity, precision + sensitivity))
    return np.where(s[..., 0] + s[..., 2] > 0, value, np.nan)


def _average_precision(column: int) -> Callable[[Tables], Floats]:
    def value(t: Tables) -> Floats:
        o = t["objects"]
        return _share(o[..., column], o[..., 0] + o[..., 1] - o[..., column])

    return value


def _panoptic(t: Tables) -> Floats:
    o = t["objects"]
    return _share(2 * o[..., 4], o[..., 0] + o[..., 1])


def _variation(t: Tables) -> Floats:
    v = t["variation"]
    return _share(v[..., 0] + v[..., 1], v[..., 2])


def _dice(t: Tables) -> Floats:
    return dice_of(t["counts"])


def _calibration_error(t: Tables) -> Floats:
    return calibration_error(t["calibration"])[..., None]


def _error_auroc(t: Tables) -> Floats:
    return error_auroc(t["entropies"])[..., None]


def _aurc(t: Tables) -> Floats:
    return risk_coverage_area(t["entropies"])[..., None]


DICE = Metric(
    "dice",
    "Dice",
    True,
    "Overlap of prediction and truth, over all voxels of all boxes together.",
    _dice,
    _columns("counts", (2, 1, 1)),
)
"""By it the champion is chosen."""
METRICS = (
    DICE,
    Metric("iou", "IoU", True, "Intersection over union of the same voxels.", _count_ratio((0, 1, 2)), _columns("counts", (1, 1, 1))),
    Metric("precision", "precision", True, "Of what was found, how much is there.", _count_ratio((0, 1)), _columns("counts", (1, 1, 0))),
    Metric("recall", "recall", True, "Of what is there, how much was found.", _count_ratio((0, 2)), _columns("counts", (1, 0, 1))),
    Metric("surface_dice", "surface Dice", True, "Share of the outlines within two voxels (of the finest axis) of each other.",
           _mean("surface", 0, 2), _columns("surface", (0, 0, 1, 0))),
    Metric("hd95_um", "HD95 µm", False, "95 % of the outlines lie closer to each other than this.",
           _mean("surface", 1, 3), _columns("surface", (0, 0, 0, 1)), 2, inf),
    Metric("cldice", "clDice", True, "How much of the centrelines lies inside the other: gaps and false branches lower it.",
           _cldice, _columns("skeleton", (1, 0, 1, 0))),
    Metric("betti0_error", "pieces wrong", False, "Difference of the number of connected pieces (Betti 0), mean over boxes.",
           _mean("betti", 0, 3), _columns("betti", (0, 0, 0, 1)), 2, inf),
    Metric("betti1_error", "tunnels wrong", False, "Difference of the number of tunnels and loops (Betti 1), mean over boxes.",
           _mean("betti", 1, 3), _columns("betti", (0, 0, 0, 1)), 2, inf),
    Metric("betti2_error", "cavities wrong", False, "Difference of the number of enclosed cavities (Betti 2), mean over boxes.",
           _mean("betti", 2, 3), _columns("betti", (0, 0, 0, 1)), 2, inf),
    Metric("ap50", "AP50", True, "Objects matched at an IoU above 0.5, over matched, missed and invented ones.",
           _average_precision(2), _columns("objects", (1, 1, -1, 0, 0))),
    Metric("ap75", "AP75", True, "The same at an IoU above 0.75.", _average_precision(3), _columns("objects", (1, 1, 0, -1, 0))),
    Metric("pq", "panoptic quality", True, "Matched objects times how well they overlap.", _panoptic, _columns("objects", (1, 1, 0, 0, 0))),
    Metric("vi", "VI bit", False, "Variation of information inside true objects: splits and merges together.",
           _variation, _columns("variation", (0, 0, 1)), largest=inf),
    Metric("vi_split", "VI splits", False, "Its part that comes of objects in pieces.",
           _mean("variation", 0, 2), _columns("variation", (0, 0, 1)), largest=inf),
    Metric("vi_merge", "VI merges", False, "Its part that comes of objects run together or missed.",
           _mean("variation", 1, 2), _columns("variation", (0, 0, 1)), largest=inf),
    Metric("ece", "calibration error", False, "How far the probabilities are off on average.", _calibration_error, _voxels("calibration")),
    Metric("error_auroc", "error AUROC", True, "How often a wrong voxel is more uncertain than a right one; 0.5 is chance.",
           _error_auroc, _voxels("entropies")),
    Metric("aurc", "AURC", False, "Share of wrong voxels when only the surest are kept, averaged over how many.", _aurc, _voxels("entropies"), 4),
)  # fmt: skip
