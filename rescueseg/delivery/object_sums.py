"""What is counted of each object in a block, in integers: sums over blocks are exact, so that no block shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rescueseg.delivery.block_pass import Arrays
from rescueseg.geometry import ZYX, Box

Int64 = npt.NDArray[np.int64]
DIRECTIONS: tuple[ZYX, ...] = tuple(
    (z, y, x) for z, y, x in itertools.product((-1, 0, 1), repeat=3) if (z, y, x) > (0, 0, 0)
)
"""The 13 directions to neighbours, one of each opposite pair."""
KINDS: tuple[ZYX, ...] = ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1))
"""Along which axes directions go; those of one kind weigh the same."""
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Axes of the second moments."""
_TOGETHER = 1 << 20
"""Voxels that are summed at a time; values below 2³² then stay exact in float64."""


@dataclass(frozen=True)
class ObjectSums:
    """Counts of n objects.

    Parameters
    ----------
    ids : ndarray of int64, (n,)
        Ascending.
    voxels : ndarray of int64, (n,)
        How many each has.
    low, high : ndarray of int64, (n, 3)
        First voxel of its bounding box, and the first beyond it, zyx.
    first, second : ndarray of int64, (n, 3) and (n, 6)
        Sums of the voxels' coordinates z, y, x from the middle of the volume, and of their products in the order of `PAIRS`.
    exits : ndarray of int64, (n, 7)
        How often a line of voxels leaves it, by `KINDS`.
    of_class : ndarray of int64, (n, K + 1)
        How many of its voxels have each class.
    quantities : ndarray of int64, (n, q)
        Sums of what was given.
    """

    ids: Int64
    voxels: Int64
    low: Int64
    high: Int64
    first: Int64
    second: Int64
    exits: Int64
    of_class: Int64
    quantities: Int64

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name, as a block of a pass returns them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def middle(shape_zyx: ZYX) -> Int64:
    """Return the voxel from which coordinates count: sums of their squares stay below 2⁶³ in volumes of any use."""
    return np.asarray(shape_zyx, np.int64) // 2


def count_objects(
    numbers: npt.NDArray[np.integer[Any]],
    around: npt.NDArray[np.integer[Any]],
    box: Box,
    shape_zyx: ZYX,
    classes: npt.NDArray[np.uint8],
    n_classes: int,
    quantities: Sequence[npt.NDArray[np.int64]] = (),
) -> ObjectSums:
    """Count the objects of a block.

    Parameters
    ----------
    numbers : ndarray of integers, zyx
        Which object each voxel belongs to; 0 is background.
    around : ndarray of integers, zyx
        The block with one voxel more on each side, 0 beyond the volume: two neighbours belong to one object where they
        are equal.
    box : Box
        Where the block lies.
    shape_zyx : tuple of int
        Shape of the volume.
    classes : ndarray of uint8, zyx
        The class of each voxel, 0…K.
    n_classes : int
        K.
    quantities : sequence of ndarray of int64, zyx
        What is summed besides; values below 2³².

    Returns
    -------
    ObjectSums
        Of the objects that have voxels in the block.
    """
    flat = numbers.reshape(-1)
    inside = np.flatnonzero(flat)
    code, found = pd.factorize(flat[inside])
    order = np.argsort(found)
    rank = np.empty(found.size, np.int64)
    rank[order] = np.arange(found.size)
    code = rank[code]
    sums = _zeros(found[order].astype(np.int64), n_classes, len(quantities))
    for start in range(0, inside.size, _TOGETHER):
        part = slice(start, start + _TOGETHER)
        _add_part(sums, code[part], inside[part], box, shape_zyx)
        _add(sums.of_class, code[part], (classes.reshape(-1)[inside[part]] == k for k in range(n_classes + 1)))
        _add(sums.quantities, code[part], (q.reshape(-1)[inside[part]] for q in quantities))
    everywhere = np.full(flat.size, -1, np.int32)
    everywhere[inside] = code
    _add_exits(sums.exits, everywhere.reshape(numbers.shape), around)
    return sums


def _zeros(ids: Int64, n_classes: int, n_quantities: int) -> ObjectSums:
    n = ids.size
    widths = (3, 6, len(KINDS), n_classes + 1, n_quantities)
    first, second, exits, of_class, quantities = (np.zeros((n, width), np.int64) for width in widths)
    low = np.full((n, 3), np.iinfo(np.int64).max)
    return ObjectSums(
        ids, np.zeros(n, np.int64), low, np.zeros((n, 3), np.int64), first, second, exits, of_class, quantities
    )


def _add_part(sums: ObjectSums, code: Int64, inside: Int64, box: Box, shape_zyx: ZYX) -> None:
    """Add voxels, given by their places in the flattened block, to counts, bounds and moments."""
    place = [at + o for at, o in zip(np.unravel_index(inside, box.shape_zyx), box.offset_zyx, strict=True)]
    sums.voxels[:] += np.bincount(code, minlength=sums.ids.size)
    for axis in range(3):
        np.minimum.at(sums.low[:, axis], code, place[axis])
        np.maximum.at(sums.high[:, axis], code, place[axis] + 1)
    centred = [p - m for p, m in zip(place, middle(shape_zyx), strict=True)]
    _add(sums.first, code, centred)
    _add(sums.second, code, (centred[a] * centred[b] for a, b in PAIRS))


def _add(table: Int64, code: Int64, values: Iterable[npt.NDArray[Any]]) -> None:
    """Add values of voxels to the columns of a table, exactly."""
    for column, value in enumerate(values):
        table[:, column] += np.bincount(code, value, minlength=len(table)).astype(np.int64)


def _add_exits(exits: Int64, code: npt.NDArray[np.int32], around: npt.NDArray[np.integer[Any]]) -> None:
    own = around[1:-1, 1:-1, 1:-1]
    for direction in DIRECTIONS:
        next_one = around[tuple(slice(1 + d, 1 + d + n) for d, n in zip(direction, own.shape, strict=True))]
        leaving = code[(own != next_one) & (code >= 0)]
        kind = KINDS.index((abs(direction[0]), abs(direction[1]), abs(direction[2])))
        exits[:, kind] += np.bincount(leaving, minlength=len(exits))


def join_sums(results: Sequence[Arrays] | Iterable[Arrays], all_ids: Int64) -> ObjectSums:
    """Add up what was counted block by block.

    Parameters
    ----------
    results : iterable of mapping
        The arrays of `ObjectSums` of each block.
    all_ids : ndarray of int64, (n,)
        All ids that occur, ascending.

    Returns
    -------
    ObjectSums
        Of the whole volume.
    """
    total: ObjectSums | None = None
    for arrays in results:
        if total is None:
            total = _zeros(all_ids, arrays["of_class"].shape[1] - 1, arrays["quantities"].shape[1])
        rows = np.searchsorted(all_ids, arrays["ids"])
        _join_block(total, rows, arrays)
    if total is None:
        raise ValueError("a volume has at least one block")
    return total


def _join_block(total: ObjectSums, rows: Int64, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    total.low[rows] = np.minimum(total.low[rows], arrays["low"])
    total.high[rows] = np.maximum(total.high[rows], arrays["high"])
    for name in ("voxels", "first", "second", "exits", "of_class", "quantities"):
        getattr(total, name)[rows] += arrays[name]
