"""Predicted objects against true ones: matches at an overlap, panoptic quality, splits and merges. Pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import contingency_table, variation_of_information

from rescueseg.records import Record
from rescueseg.voxels.components import label_components

Numbers = npt.NDArray[Any]
THRESHOLDS = (0.5, 0.75)


class Instances(Record):
    """Objects of one class in one box."""

    found: int
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


def compare_instances(prediction: Numbers, truth: Numbers) -> Instances:
    """Match predicted and true objects.

    A pair matches when its IoU exceeds the threshold; from 0.5 on no object can have two partners. AP is then
    TP / (TP + FP + FN) and panoptic quality the sum of the IoU over TP + FP/2 + FN/2 [1]_. Variation of information [2]_
    counts the voxels of true objects only.

    Parameters
    ----------
    prediction, truth : ndarray of int, zyx
        Numbered objects, 0 background.

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
    overlaps = contingency_table(truth, prediction, normalize=False).tocoo()
    true_sizes, predicted_sizes = np.bincount(truth.ravel()), np.bincount(prediction.ravel())
    both = (overlaps.row > 0) & (overlaps.col > 0)
    shared = overlaps.data[both]
    union = true_sizes[overlaps.row[both]] + predicted_sizes[overlaps.col[both]] - shared
    iou = shared / union
    splits, merges = variation_of_information(truth, prediction, ignore_labels=(0,)) if truth.any() else (None, None)
    return Instances(
        found=int((predicted_sizes[1:] > 0).sum()),
        true=int((true_sizes[1:] > 0).sum()),
        matched=(int((iou > THRESHOLDS[0]).sum()), int((iou > THRESHOLDS[1]).sum())),
        iou=float(iou[iou > THRESHOLDS[0]].sum()),
        splits=None if splits is None else float(splits),
        merges=None if merges is None else float(merges),
    )
