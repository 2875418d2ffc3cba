"""The one way from one grid to another, for images and labels, in training and inference; and that of earlier models.

Both grids cover the same field of view, and a voxel is a cell of it: cell i of m spans from i/m to (i+1)/m of each axis.
What gets coarser is the mean over the cell, of an image its intensity, of labels the share of each class; so images,
labels and predictions lie on each other at every ratio, and mirroring commutes with resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

Resampling = Callable[[Tensor, Sequence[int]], Tensor]
"""Brings images (n, c, z, y, x) to another shape."""

_TOLERANCE = 1e-5
"""Of a share of a cell: so far float32 may be off."""


def resample(tensor: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Resample images (n, c, z, y, x): means over the cells along axes that get coarser, linear interpolation along others.

    Parameters
    ----------
    tensor : Tensor
        Floating point.
    shape_zyx : sequence of int
        Shape of the result; where it is the tensor's own, the tensor is returned as it is.

    Examples
    --------
    >>> resample(torch.tensor([0.0, 2.0, 4.0, 6.0]).expand(1, 1, 1, 1, 4), (1, 1, 2)).flatten().tolist()
    [1.0, 5.0]
    >>> resample(torch.tensor([1.0, 5.0]).expand(1, 1, 1, 1, 2), (1, 1, 4)).flatten().tolist()
    [1.0, 2.0, 4.0, 5.0]
    """
    size = tuple(int(n) for n in shape_zyx)
    coarser = [min(n, m) for n, m in zip(tensor.shape[2:], size, strict=True)]
    tensor = cell_means(tensor, coarser)
    if tuple(tensor.shape[2:]) != size:
        tensor = functional.interpolate(tensor, size=size, mode="trilinear", align_corners=False)
    return tensor


def resample_by_multiples(tensor: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Resample images as earlier versions did: only by whole multiples are voxels averaged, the rest is interpolated.

    Models that have learned from such images go on seeing such images; parameters as those of `resample`.

    Examples
    --------
    >>> resample_by_multiples(torch.tensor([0.0, 0.0, 6.0]).expand(1, 1, 1, 1, 3), (1, 1, 2)).flatten().tolist()
    [0.0, 4.5]
    >>> resample(torch.tensor([0.0, 0.0, 6.0]).expand(1, 1, 1, 1, 3), (1, 1, 2)).flatten().tolist()
    [0.0, 4.0]
    """
    size = tuple(int(n) for n in shape_zyx)
    if tuple(tensor.shape[2:]) == size:
        return tensor
    pool = [max(1, n // m) for n, m in zip(tensor.shape[2:], size, strict=True)]
    multiple = tuple(m * p for m, p in zip(size, pool, strict=True))
    if tuple(tensor.shape[2:]) != multiple:
        tensor = functional.interpolate(tensor, size=multiple, mode="trilinear", align_corners=False)
    return functional.avg_pool3d(tensor, pool) if max(pool) > 1 else tensor


def cell_means(tensor: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Return the means of (n, c, z, y, x) over the cells of another grid.

    Each voxel weighs as much as the cell holds of it.
    """
    ratios = [n / m for n, m in zip(tensor.shape[2:], shape_zyx, strict=True)]
    if all(ratio == 1 for ratio in ratios):
        return tensor
    if all(ratio.is_integer() for ratio in ratios):
        return functional.avg_pool3d(tensor, [int(ratio) for ratio in ratios])
    for axis, length in enumerate(shape_zyx, start=2):
        if tensor.shape[axis] != length:
            shares = cell_shares(tensor.shape[axis], length).to(tensor)
            tensor = (tensor.movedim(axis, -1) @ shares.T).movedim(-1, axis)
    return tensor


def cell_shares(length: int, cells: int) -> Tensor:
    """Return which share of each cell (row) each voxel (column) of an axis takes; float64.

    Examples
    --------
    >>> cell_shares(3, 2).round(decimals=2).tolist()
    [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    edges = torch.arange(cells + 1, dtype=torch.float64) * (length / cells)
    voxels = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], voxels + 1) - torch.maximum(edges[:-1, None], voxels)
    return overlap.clamp(min=0) * (cells / length)


def class_shares(labels: Tensor, shape_zyx: Sequence[int], n_classes: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Return what labels (n, z, y, x) say of a grid that is as fine or coarser: nothing vanishes, and nothing gets thicker.

    Parameters
    ----------
    labels : Tensor of integers
        0…n_classes, or `ignore`.
    shape_zyx : sequence of int
        Shape of the grid.
    n_classes, ignore : int
        Number of foreground classes, and the value where nobody labelled.

    Returns
    -------
    shares : Tensor of float32, shape (n, n_classes + 1, *shape_zyx)
        Share of each class in what is labelled of a cell, background first; zeros where nothing is.
    known : Tensor of float32, shape (n, 1, *shape_zyx)
        How much of a cell is labelled. Weighed by it, the mean of the shares is that of the labelled voxels.

    Examples
    --------
    >>> row = torch.tensor([0, 1, 1, 1, 0, 9, 9, 9])
    >>> shares, known = class_shares(row.expand(1, 1, 1, 8), (1, 1, 4), 1, ignore=9)
    >>> shares[0, 1].flatten().tolist(), known.flatten().tolist()
    ([0.5, 1.0, 0.0, 0.0], [1.0, 1.0, 0.5, 0.0])
    """
    classes = [labels == value for value in range(n_classes + 1)]
    means = cell_means(torch.stack([labels != ignore, *classes], dim=1).float(), shape_zyx)
    known = means[:, :1]
    return means[:, 1:] / known.clamp(min=_TOLERANCE), known


def resample_labels(labels: npt.NDArray[Any], shape_zyx: Sequence[int], ignore: int) -> npt.NDArray[np.int64]:
    """Resample classes or numbers of objects to any grid of the same field of view.

    A cell is foreground where foreground covers at least half of what is labelled of it, and then of the class or object
    with the largest share, the lowest number among equal ones. So a sheet of one voxel outlives a grid twice as coarse
    wherever it lies, then as a sheet of one cell; what is thinner than half a cell vanishes. A cell without a labelled
    voxel is not labelled.

    Parameters
    ----------
    labels : ndarray of integers, zyx
        0 background, positive numbers, and `ignore` where nobody labelled.
    shape_zyx : sequence of int
        Shape of the result.
    ignore : int
        255 for classes, a negative number for objects.

    Returns
    -------
    ndarray of int64, zyx

    Examples
    --------
    >>> resample_labels(np.array([[[0, 1, 1, 1, 0, 0, 9, 2, 9, 9]]]), (1, 1, 5), ignore=9).tolist()
    [[[1, 1, 0, 2, 9]]]
    """
    shape = tuple(int(n) for n in shape_zyx)
    if labels.shape == shape:
        return labels.astype(np.int64)
    axes = [cell_shares(n, m).numpy().astype(np.float32) for n, m in zip(labels.shape, shape, strict=True)]
    known = _shares(labels != ignore, axes)
    total, largest = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    result = np.zeros(shape, np.int64)
    for number, place in enumerate(ndimage.find_objects(np.where(labels == ignore, 0, labels)), start=1):
        if place is None:
            continue
        cells = tuple(_cells(s, n, m) for s, n, m in zip(place, labels.shape, shape, strict=True))
        parts = [axis[c, s] for axis, c, s in zip(axes, cells, place, strict=True)]
        share = _shares(labels[place] == number, parts)
        total[cells] += share
        larger = share > largest[cells] + _TOLERANCE
        largest[cells] = np.where(larger, share, largest[cells])
        result[cells] = np.where(larger, number, result[cells])
    result[total < known / 2 - _TOLERANCE] = 0
    result[known <= _TOLERANCE] = ignore
    return result


def _cells(voxels: slice, length: int, cells: int) -> slice:
    """Return the cells of an axis that voxels lie in."""
    return slice(voxels.start * cells // length, -(-voxels.stop * cells // length))


def _shares(mask: npt.NDArray[np.bool_], axes: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return which share of each cell a mask takes, from the shares of each axis."""
    z, y, x = axes
    planes = np.matmul(np.matmul(y, mask.astype(np.float32)), x.T)
    return np.tensordot(z, planes, axes=(1, 0)).astype(np.float32)
