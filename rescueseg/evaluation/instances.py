"""Predicted objects against true ones: matches at an overlap, panoptic quality, splits and merges. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import contingency_table, variation_of_information

from rescueseg.records import Record
from rescueseg.voxels.components import label_components

Numbers = npt.NDArray[Any]
Booleans = npt.NDArray[np.bool_]
THRESHOLDS = (0.5, 0.75)


class Instances(Record):
    """Objects of one class in one box: those that are counted there."""

    found: int
    """Predicted ones: those of the pairs above 0.5, and those without a partner."""
    true: int
    matched: tuple[int, int]
    """Pairs with an IoU above 0.5 and above 0.75."""
    iou: float
    """Sum of the IoU of the pairs above 0.5."""
    splits: float | None
    merges: float | None
    """Conditional entropies of prediction given truth and of truth given prediction, in bits; None without true objects."""


def connected_components(mask: npt.NDArray[np.bool_]) -> Numbers:
    """Return the connected components, numbered; voxels that share a face, an edge or a corner belong together.

    Examples
    --------
    >>> connected_components(np.array([[[True, True, False, True]]])).tolist()
    [[[1, 1, 0, 2]]]
    """
    return label_components(mask, 26)[0]


def renumber_objects(numbered: Numbers) -> Numbers:
    """Return objects numbered anew; one that the box cuts into parts counts as several, for inside the box nothing joins them.

    Examples
    --------
    >>> renumber_objects(np.array([[[7, 7, 0, 7, 9]]])).tolist()
    [[[1, 1, 0, 2, 3]]]
    """
    return label_components(numbered, 26)[0]


@dataclass(frozen=True)
class Matches:
    """How predicted and true objects overlap. Made by `match_objects`.

    Parameters
    ----------
    true_sizes, predicted_sizes : ndarray of int
        Voxels by number; 0 stands for the background, and nothing of it is counted.
    unknown_sizes : ndarray of int
        Voxels of each predicted object where the truth is unknown.
    true_index, predicted_index : ndarray of int
        Numbers of the pairs that overlap.
    shared : ndarray of int
        Voxels that these pairs have in common.
    iou : ndarray of float
        Shared voxels over the union without what is unknown.
    """

    true_sizes: Numbers
    predicted_sizes: Numbers
    unknown_sizes: Numbers
    true_index: Numbers
    predicted_index: Numbers
    shared: Numbers
    iou: npt.NDArray[np.float64]

    @property
    def is_pair(self) -> Booleans:
        """Whether the overlapping objects are partners; no object has two."""
        return np.asarray(self.iou > THRESHOLDS[0])

    def count(
        self, true_counts: Booleans | None = None, predicted_counts: Booleans | None = None
    ) -> tuple[int, int, tuple[int, int], float]:
        """Return `found`, `true`, `matched` and `iou` of `Instances`.

        Parameters
        ----------
        true_counts, predicted_counts : ndarray of bool, optional
            By number, whether an object is counted here; all when omitted. A pair is counted where its true object is.
            A predicted object without a partner that lies mostly in the unknown is counted nowhere.
        """
        true_exists, alone = self.true_sizes > 0, self.predicted_sizes > 0
        true_exists[0] = alone[0] = False
        alone &= 2 * self.unknown_sizes <= self.predicted_sizes
        alone[self.predicted_index[self.is_pair]] = False
        if true_counts is not None:
            true_exists &= true_counts
        if predicted_counts is not None:
            alone &= predicted_counts
        iou = self.iou[self.is_pair & true_exists[self.true_index]]
        matched = len(iou), int((iou > THRESHOLDS[1]).sum())
        return matched[0] + int(alone.sum()), int(true_exists.sum()), matched, float(iou.sum())


def match_objects(prediction: Numbers, truth: Numbers, unknown: Booleans | None = None) -> Matches:
    """Match predicted and true objects by their overlap; see `compare_instances`.

    Parameters
    ----------
    prediction, truth : ndarray of int, zyx
        Numbered objects, 0 background.
    unknown : ndarray of bool, zyx, optional
        Where the truth is not known: no true object lies there, and predicted ones may reach into it.
    """
    overlaps = contingency_table(truth, prediction, normalize=False).tocoo()
    true_sizes, predicted_sizes = np.bincount(truth.ravel()), np.bincount(prediction.ravel())
    unknown_sizes = np.zeros_like(predicted_sizes)
    if unknown is not None:
        unknown_sizes = np.bincount(prediction[unknown], minlength=len(predicted_sizes))
    both = (overlaps.row > 0) & (overlaps.col > 0)
    row, col, shared = overlaps.row[both], overlaps.col[both], overlaps.data[both]
    union = true_sizes[row] + (predicted_sizes - unknown_sizes)[col] - shared
    return Matches(true_sizes, predicted_sizes, unknown_sizes, row, col, shared, shared / union)


def splits_and_merges(prediction: Numbers, truth: Numbers) -> tuple[float, float] | tuple[None, None]:
    """Return the conditional entropies of prediction given truth and of truth given prediction, in bits.

    Voxels of true objects count; None where there is none.
    """
    if not truth.any():
        return None, None
    splits, merges = variation_of_information(truth, prediction, ignore_labels=(0,))
    return float(splits), float(merges)


def compare_instances(prediction: Numbers, truth: Numbers, unknown: Booleans | None = None) -> Instances:
    """Match predicted and true objects.

    A pair matches when its IoU exceeds the threshold; from 0.5 on no object can have two partners. AP is then
    TP / (TP + FP + FN) and panoptic quality the sum of the IoU over TP + FP/2 + FN/2 [1]_. What lies where the truth is
    unknown is in no union, and a predicted object without a partner, more than half of which lies there, is not counted
    [1]_. Variation of information [2]_ counts the voxels of true objects only.

    Parameters
    ----------
    prediction, truth : ndarray of int, zyx
        Numbered objects, 0 background.
    unknown : ndarray of bool, zyx, optional
        Where the truth is not known; the prediction is numbered without regard to it.

    References
    ----------
    .. [1] Kirillov et al., Panoptic segmentation, CVPR 2019, arXiv:1801.00868.
    .. [2] Meilă, doi:10.1016/j.jmva.2006.11.013; as scikit-image computes it.

    Examples
    --------
    Two objects of the truth run together in the prediction; the pair of the first has an IoU of 4/7:

    >>> truth = np.array([[[1, 1, 1, 1, 0, 2, 2]]])
    >>> merged = compare_instances(np.array([[[1, 1, 1, 1, 1, 1, 1]]]), truth)
    >>> merged.found, merged.true, merged.matched, round(merged.iou, 2)
    (1, 2, (1, 0), 0.57)
    """
    found, true, matched, iou = match_objects(prediction, truth, unknown).count()
    splits, merges = splits_and_merges(prediction, truth)
    return Instances(found=found, true=true, matched=matched, iou=iou, splits=splits, merges=merges)
