"""How good a segmentation is: counts, overlap scores, surface distances, calibration.

Everything that is a ratio is computed from counts pooled over boxes, so that a box counts by what it holds and an empty
one does no harm. Voxels labelled 255 (ignore) never count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from rescueseg.labels import IGNORE
from rescueseg.records import Record

CALIBRATION_BINS = 15
UNCERTAINTY_BINS = 192
_LOGITS = (-27 * math.log(2), 11 * math.log(2))
"""Range of the logit bins, as far as float16 maps tell values from 0 (6e-8) and from `high` (2⁻¹¹ of it)."""

BinSpacing = Literal["equal", "logit"]


class Counts(Record):
    """Voxels of one class: true positives, false positives, false negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn)

    @property
    def dice(self) -> float | None:
        """2·TP / (2·TP + FP + FN); None when neither truth nor prediction holds the class."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float | None:
        """TP / (TP + FP + FN); None when neither truth nor prediction holds the class."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); None when the prediction does not hold the class."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); None when the truth does not hold the class."""
        return _ratio(self.tp, self.tp + self.fn)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def dice_of(counts: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the Dice of counts (…, 3) ordered TP, FP, FN; nan where all three are 0.

    Examples
    --------
    >>> dice_of(np.array([[6.0, 2, 2], [0, 0, 0]])).tolist()
    [0.75, nan]
    """
    tp, wrong = counts[..., 0], counts[..., 1] + counts[..., 2]
    total = 2 * tp + wrong
    return np.where(total > 0, 2 * tp / np.where(total > 0, total, 1), np.nan)


def count_voxels(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], n_classes: int) -> tuple[Counts, ...]:
    """Count true positives, false positives and false negatives of classes 1…K.

    Parameters
    ----------
    prediction, truth : ndarray, zyx
        Class indices; where the truth is 255 nothing is counted.
    n_classes : int
        K, foreground classes.

    Examples
    --------
    Five voxels, the last of which was not annotated (255):

    >>> counts = count_voxels(np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 255]), n_classes=1)
    >>> counts[0].tp, counts[0].fp, counts[0].fn
    (1, 1, 1)
    """
    has_truth = truth != IGNORE
    confusion = np.bincount(
        truth[has_truth].astype(np.int64) * (n_classes + 1) + prediction[has_truth], minlength=(n_classes + 1) ** 2
    ).reshape(n_classes + 1, n_classes + 1)
    return tuple(
        Counts(
            tp=int(confusion[c, c]),
            fp=int(confusion[:, c].sum() - confusion[c, c]),
            fn=int(confusion[c].sum() - confusion[c, c]),
        )
        for c in range(1, n_classes + 1)
    )


def mean_over_classes(counts: Sequence[Counts], score: str) -> float | None:
    """Return the mean of a score over the classes that have it; None when none has.

    Examples
    --------
    >>> mean_over_classes([Counts(tp=1, fp=2), Counts()], "dice")
    0.5
    """
    values = [float(value) for c in counts if (value := getattr(c, score)) is not None]
    return sum(values) / len(values) if values else None


def bin_edges(count: int, high: float, spacing: BinSpacing = "equal") -> npt.NDArray[np.float64]:
    """Return the edges of bins from 0 to `high`, shape (count + 1,).

    Bins of equal width, or equal on the scale ln(v / (high − v)): those grow finer by the octave towards both ends, where
    a model that is too sure, or never sure, has all its voxels. 192 of them keep the error-detection AUROC within 0.002
    and AURC within 0.0005 of the ranks of what the maps hold. float16 maps hold nothing between 0 and 6e-8 nats (a
    probability of 3e-9 for the other class): voxels surer than that tie, whatever the bins; float32 maps tell them apart.

    Examples
    --------
    >>> bin_edges(4, 1.0).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if spacing == "equal":
        return np.linspace(0, high, count + 1)
    inner = high * expit(np.linspace(*_LOGITS, count + 1)[1:-1])
    return np.concatenate([[0.0], inner, [high]])


class Bins:
    """Streaming histogram of a quantity with, per bin, how many voxels were right.

    Parameters
    ----------
    count : int
        How many bins.
    high : float
        Upper end; the lower is 0. Values beyond fall into the last bin.
    spacing : str
        "equal" or "logit"; see `bin_edges`.
    """

    def __init__(self, count: int, high: float, spacing: BinSpacing = "equal") -> None:
        self.high, self.spacing = high, spacing
        self._inner = bin_edges(count, high, spacing)[1:-1]
        self.voxels = np.zeros(count, dtype=np.int64)
        self.right = np.zeros(count, dtype=np.int64)
        self.total = np.zeros(count, dtype=np.float64)

    def add(self, values: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> None:
        """Count voxels with a quantity (flat, float) and whether their predicted class is right (flat, bool)."""
        size = len(self.voxels)
        index = np.searchsorted(self._inner, values.astype(np.float64), side="right")
        self.voxels += np.bincount(index, minlength=size)
        self.right += np.bincount(index, weights=right, minlength=size).astype(np.int64)
        self.total += np.bincount(index, weights=values, minlength=size)

    def result(self) -> BinnedCounts:
        """Return the counts as a record."""
        return BinnedCounts(
            high=self.high,
            spacing=self.spacing,
            voxels=tuple(self.voxels.tolist()),
            right=tuple(self.right.tolist()),
            mean=tuple(np.where(self.voxels > 0, self.total / np.maximum(self.voxels, 1), 0.0).tolist()),
        )


class BinnedCounts(Record):
    """What `Bins` counted: per bin the voxels, how many were right, and the mean of the quantity."""

    high: float
    voxels: tuple[int, ...]
    right: tuple[int, ...]
    mean: tuple[float, ...]
    spacing: BinSpacing = "equal"

    def __add__(self, other: BinnedCounts) -> BinnedCounts:
        voxels = [a + b for a, b in zip(self.voxels, other.voxels, strict=True)]
        totals = (m * n + p * q for m, n, p, q in zip(self.mean, self.voxels, other.mean, other.voxels, strict=True))
        return BinnedCounts(
            high=self.high,
            spacing=self.spacing,
            voxels=tuple(voxels),
            right=tuple(a + b for a, b in zip(self.right, other.right, strict=True)),
            mean=tuple(total / max(n, 1) for total, n in zip(totals, voxels, strict=True)),
        )

    def table(self) -> npt.NDArray[np.float64]:
        """Return per bin the voxels, how many were right, and the sum of the quantity: shape (bins, 3)."""
        voxels, mean = np.array(self.voxels, np.float64), np.array(self.mean)
        return np.stack([voxels, np.array(self.right, np.float64), mean * voxels], axis=-1)

    def equal_width(self, count: int) -> BinnedCounts:
        """Return the counts in bins of equal width, what a bin holds spread evenly over it; for drawing."""
        edges, equal_edges = bin_edges(len(self.voxels), self.high, self.spacing), bin_edges(count, self.high)
        voxels, right = (
            np.diff(np.rint(np.interp(equal_edges, edges, np.concatenate([[0], np.cumsum(n)]))).astype(np.int64))
            for n in (self.voxels, self.right)
        )
        return BinnedCounts(
            high=self.high,
            voxels=tuple(voxels.tolist()),
            right=tuple(np.minimum(right, voxels).tolist()),
            mean=tuple(((equal_edges[1:] + equal_edges[:-1]) / 2).tolist()),
        )

    def calibration_error(self) -> float:
        """Return the expected calibration error: |mean confidence − accuracy|, averaged over voxels.

        The quantity must be the probability of the predicted class. Guo et al., arXiv:1706.04599.
        """
        error = float(calibration_error(self.table()))
        return 0.0 if math.isnan(error) else error

    def error_auroc(self) -> float | None:
        """Return the probability that a wrong voxel has a larger value than a right one (ties count half).

        None when all voxels are right or all are wrong. 0.5: the quantity says nothing about errors; 1: it finds all.
        """
        auroc = float(error_auroc(self.table()))
        return None if math.isnan(auroc) else auroc


def calibration_error(bins: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the expected calibration error of bins (…, n, 3) as `BinnedCounts.table` gives them; nan without voxels.

    Examples
    --------
    One bin of 10 voxels, of which 7 are right, with a mean confidence of 0.9:

    >>> round(float(calibration_error(np.array([[10.0, 7, 9]]))), 3)
    0.2
    """
    voxels = bins[..., 0].sum(axis=-1)
    gaps = np.abs(bins[..., 2] - bins[..., 1]).sum(axis=-1)
    return np.where(voxels > 0, gaps / np.where(voxels > 0, voxels, 1), np.nan)


def error_auroc(bins: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the error-detection AUROC of bins (…, n, 3); nan where all voxels are right or all are wrong.

    Examples
    --------
    Two bins of 4 voxels, the more uncertain last; columns are voxels, right voxels and the sum of the uncertainty:

    >>> float(error_auroc(np.array([[4.0, 4, 0.4], [4, 0, 2.0]])))
    1.0
    >>> float(error_auroc(np.array([[4.0, 2, 0.4], [4, 2, 2.0]])))
    0.5
    """
    right, wrong = bins[..., 1], bins[..., 0] - bins[..., 1]
    pairs = right.sum(axis=-1) * wrong.sum(axis=-1)
    ordered = ((np.cumsum(right, axis=-1) - 0.5 * right) * wrong).sum(axis=-1)
    return np.where(pairs > 0, ordered / np.where(pairs > 0, pairs, 1), np.nan)


def risk_coverage_area(bins: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the area under the risk-coverage curve (AURC) of bins of an uncertainty.

    Voxels are accepted from the surest on; the risk is the share of the accepted that are wrong, averaged over all
    coverages from 0 to 1 [1]_. Within a bin voxels come in random order, so that the integral is exact. A model that is
    wrong in a share e of the voxels has e where its uncertainty says nothing and e + (1 − e) ln(1 − e) where it
    names every error.

    Parameters
    ----------
    bins : ndarray (…, n, 3)
        Voxels, right voxels and the sum of the uncertainty by bin, the surest first.

    Returns
    -------
    ndarray (…)
        nan without voxels.

    References
    ----------
    .. [1] Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017, arXiv:1705.08500.

    Examples
    --------
    Half of the voxels are wrong, and the uncertainty names each of them, then none of them:

    >>> float(risk_coverage_area(np.array([[4.0, 4, 0.4], [4, 0, 2.0]])).round(3))
    0.153
    >>> float(risk_coverage_area(np.array([[8.0, 4, 2.4]])))
    0.5
    """
    voxels, wrong = bins[..., 0], bins[..., 0] - bins[..., 1]
    after, errors = np.cumsum(voxels, axis=-1), np.cumsum(wrong, axis=-1)
    before = after - voxels
    rate = wrong / np.where(voxels > 0, voxels, 1)
    # risk(n) = (errors before + rate (n - before)) / n, integrated over n from before to after
    growth = np.log(np.where(before > 0, after, 1) / np.where(before > 0, before, 1))
    area = rate * voxels + (errors - wrong - rate * before) * growth
    total = after[..., -1]
    return np.where(total > 0, area.sum(axis=-1) / np.where(total > 0, total, 1), np.nan)
