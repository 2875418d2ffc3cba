"""Whether objects are told from one another: matches at an overlap, panoptic quality, splits and merges. Pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import label
from skimage.metrics import contingency_table, variation_of_information

from rescueseg.records import Record

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


def pieces(mask: npt.NDArray[np.bool_]) -> Numbers:
    """Return the connected pieces of a mask, numbered; voxels that share a face, an edge or a corner belong together."""
    return np.asarray(label(mask, connectivity=3))


def separate(numbered: Numbers) -> Numbers:
    """Return the objects numbered anew; one that the box cuts into pieces counts as these, for nobody could join them."""
    return np.asarray(label(numbered, background=0, connectivity=3))


def compare_instances(found: Numbers, wanted: Numbers) -> Instances:
    """Match predicted and true objects.

    A pair matches when its IoU exceeds the threshold; from 0.5 on no object can have two partners. AP is then
    TP / (TP + FP + FN) and panoptic quality the sum of the IoU over TP + FP/2 + FN/2 [1]_. Variation of information [2]_
    counts the voxels of true objects only.

    Parameters
    ----------
    found, wanted : ndarray of int, zyx
        Numbered objects, 0 background.

    References
    ----------
    .. [1] Kirillov et al., Panoptic segmentation, CVPR 2019, arXiv:1801.00868.
    .. [2] Meilă, doi:10.1016/j.jmva.2006.11.013; as scikit-image computes it.
    """
    overlaps = contingency_table(wanted, found, normalize=False).tocoo()
    true_sizes, found_sizes = np.bincount(wanted.ravel()), np.bincount(found.ravel())
    both = (overlaps.row > 0) & (overlaps.col > 0)
    shared = overlaps.data[both]
    union = true_sizes[overlaps.row[both]] + found_sizes[overlaps.col[both]] - shared
    iou = shared / union
    splits, merges = variation_of_information(wanted, found, ignore_labels=(0,)) if wanted.any() else (None, None)
    return Instances(
        found=int((found_sizes[1:] > 0).sum()),
        true=int((true_sizes[1:] > 0).sum()),
        matched=(int((iou > THRESHOLDS[0]).sum()), int((iou > THRESHOLDS[1]).sum())),
        iou=float(iou[iou > THRESHOLDS[0]].sum()),
        splits=None if splits is None else float(splits),
        merges=None if merges is None else float(merges),
    )
