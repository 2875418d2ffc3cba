"""Where ids that a coarser level would lose are put."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.delivery.label_counts import Integers
from rescueseg.geometry import ZYX, Box, Spacing, zyx

_RADIUS = 3
"""How many coarse voxels along each axis an id may be moved."""
_TILE = 128
"""Coarse voxels along an axis that are read at a time."""


def every_nth(fine: zarr.Array[Any], box: Box, factors: ZYX) -> npt.NDArray[Any]:
    """Read a box of the coarser level: every `factors`-th voxel of the finer array."""
    slices = [
        slice(o * f, min((o + s) * f, n), f)
        for o, s, f, n in zip(box.offset_zyx, box.shape_zyx, factors, fine.shape, strict=True)
    ]
    return np.asarray(fine[tuple(slices)])


def place_ids(
    fine: zarr.Array[Any],
    factors: ZYX,
    shape_zyx: ZYX,
    sizes: Integers,
    ids: Integers,
    places: Integers,
    *,
    um: Spacing,
) -> Integers | None:
    """Choose coarse voxels for the ids that the coarser level would lose.

    Parameters
    ----------
    fine : zarr.Array
        The finer level, zyx.
    factors : tuple of int
        How much coarser the level is than `fine`.
    shape_zyx : tuple of int
        Its shape.
    sizes : ndarray of int64, (n,)
        How many of its voxels each id would have.
    ids : ndarray of int64, (n,)
        All ids, ascending.
    places : ndarray of int64, (n, 3)
        The coarse voxel in which each id should be, zyx.
    um : tuple of float
        Size of a coarse voxel, zyx, in micrometre.

    Returns
    -------
    ndarray of int64, (m, 2), or None
        Place of a coarse voxel in the flattened level, and the id that it gets; None where not all ids can be placed.
    """
    placing = _Placing(ids, sizes.copy(), shape_zyx, _near(um))
    lost = np.flatnonzero(sizes == 0)
    tiles = places[lost] // _TILE
    for tile in np.unique(tiles, axis=0):
        start = zyx(np.maximum(0, tile * _TILE - _RADIUS))
        stop = zyx(np.minimum(shape_zyx, (tile + 1) * _TILE + _RADIUS))
        box = Box.from_bounds(start, stop)
        voxels = every_nth(fine, box, factors).astype(np.int64)
        for row in lost[np.all(tiles == tile, axis=1)]:
            if not placing.place(int(ids[row]), places[row], voxels, box):
                return None
    return np.array(list(placing.changes.items()), np.int64).reshape(-1, 2)


def _near(um: Spacing) -> Integers:
    """Return the steps to near voxels, the nearest first, in z, y, x order where they are as near."""
    side = np.arange(-_RADIUS, _RADIUS + 1)
    steps = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    return steps[np.argsort(np.square(steps * np.asarray(um)).sum(axis=1), kind="stable")].astype(np.int64)


class _Placing:
    """What was placed so far, and how many voxels each id has left."""

    def __init__(self, ids: Integers, left: Integers, shape_zyx: ZYX, near: Integers) -> None:
        self.ids, self.left, self.shape_zyx, self.near = ids, left, shape_zyx, near
        self.changes: dict[int, int] = {}

    def place(self, number: int, place: Integers, voxels: Integers, box: Box) -> bool:
        """Put an id into the nearest voxel that is free; tell whether there is one."""
        around = place + self.near
        around = around[np.all((around >= 0) & (around < self.shape_zyx), axis=1)]
        flat = np.ravel_multi_index(tuple(around.T), self.shape_zyx)
        values = voxels[tuple((around - np.asarray(box.offset_zyx)).T)]
        rows = np.searchsorted(self.ids, values)
        free = (values == 0) | (self.left[np.minimum(rows, len(self.ids) - 1)] > 1)
        for at in np.flatnonzero(free):
            if int(flat[at]) not in self.changes:
                self.changes[int(flat[at])] = number
                if values[at]:
                    self.left[rows[at]] -= 1
                return True
        return False
