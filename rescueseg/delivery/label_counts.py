"""Which ids a block of labels holds, how often, and where each comes first."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from rescueseg.geometry import ZYX, Box

Integers = npt.NDArray[np.int64]


class LabelCounts(NamedTuple):
    """Ids of labels, the background left out."""

    ids: Integers
    """Ascending."""
    sizes: Integers
    """Voxels of each."""
    firsts: Integers
    """Linear index of the first voxel of each in the whole volume, z, y, x order."""


def count_labels(labels: npt.NDArray[Any], box: Box, shape_zyx: ZYX) -> LabelCounts:
    """Count the ids of a block.

    Parameters
    ----------
    labels : ndarray of integers, zyx
        0 is background.
    box : Box
        Where the block lies.
    shape_zyx : tuple of int
        Shape of the volume.

    Examples
    --------
    >>> count_labels(np.array([[[0, 7, 7, 3]]]), Box((1, 0, 0), (1, 1, 4)), (2, 1, 4))
    LabelCounts(ids=array([3, 7]), sizes=array([1, 2]), firsts=array([7, 5]))
    """
    flat = labels.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))  # of runs of equal voxels
    lengths = np.diff(np.append(starts, flat.size))
    values = flat[starts]
    starts, lengths, values = (a[values > 0] for a in (starts, lengths, values))
    codes, found = pd.factorize(values)
    sizes = np.bincount(codes, lengths, minlength=found.size).astype(np.int64)
    first = starts[np.searchsorted(np.maximum.accumulate(codes), np.arange(found.size))] if found.size else starts
    z, y, x = np.unravel_index(first, labels.shape)
    at = [i + o for i, o in zip((z, y, x), box.offset_zyx, strict=True)]
    firsts = (at[0] * shape_zyx[1] + at[1]) * shape_zyx[2] + at[2]
    order = np.argsort(found)
    return LabelCounts(found.astype(np.int64)[order], sizes[order], firsts.astype(np.int64)[order])
