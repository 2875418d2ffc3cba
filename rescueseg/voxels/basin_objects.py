"""Objects of a map of heights: its basins, joined where the saddle between them is not deep, numbered by their first voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.voxels.basins import Heights, Int32, Int64, climb, find_saddles, highest_saddles, join_basins, join_small

LEVELS_PER_VOXEL = 256
"""Heights of a map of lengths rise by one for so small a part of the finest voxel size."""
LEVELS = (1 << 16) - 2
"""The largest height is one more."""

Numbers = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Basins:
    """The basins of a volume, 0…n − 1 in the order of their summits' places in the flattened volume.

    Parameters
    ----------
    summits : ndarray of int64, (n,)
        Those places, ascending.
    heights : ndarray of int64, (n,)
        Of the summits.
    sizes : ndarray of int64, (n,)
        Voxels.
    first : ndarray of int64, (n,)
        Place of each one's first voxel.
    rows : ndarray of int64, (m, 3)
        Where they touch, one row per pair: (a, b, saddle) with a < b.
    """

    summits: Int64
    heights: Int64
    sizes: Int64
    first: Int64
    rows: Int64


def heights_of(values: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], step: float | np.float32) -> Heights:
    """Return a map as heights.

    Parameters
    ----------
    values : ndarray of float32, zyx
        The map; below 0 counts as 0.
    inside : ndarray of bool, zyx
        Where objects are.
    step : float
        How much the map rises from one height to the next.

    Returns
    -------
    ndarray of uint16, zyx
        1 where the map is lowest, 0 outside.

    Examples
    --------
    >>> heights_of(np.array([[[0.0, 0.2, 0.5]]], np.float32), np.array([[[False, True, True]]]), 0.1).tolist()
    [[[0, 3, 6]]]
    """
    heights = np.zeros(inside.shape, np.uint16)
    for plane, level, within in zip(heights, values, inside, strict=True):
        plane[within] = 1 + np.rint(np.clip(level[within] / np.float32(step), 0, LEVELS)).astype(np.uint16)
    return heights


def find_basins_of(heights: Heights) -> tuple[Basins, Int32]:
    """Return the basins of an array in memory, and which of them each voxel is in: 1…n, 0 outside."""
    labels, summits = climb(heights, (slice(None), slice(None), slice(None)))
    at = np.flatnonzero(labels)
    basin_of = labels.reshape(-1)[at] - 1
    first = np.full(len(summits), heights.size, np.int64)
    np.minimum.at(first, basin_of, at)
    basins = Basins(
        summits,
        heights.reshape(-1)[summits].astype(np.int64),
        np.bincount(basin_of, minlength=len(summits)).astype(np.int64),
        first,
        find_saddles(labels, heights) - np.array([1, 1, 0]),
    )
    return basins, labels


def number_basins(basins: Basins, depth: int, least: int) -> Numbers:
    """Return the number of the object that each basin is part of, 0 where that is too small.

    Parameters
    ----------
    basins : Basins
        Of a volume.
    depth : int
        As `rescueseg.voxels.basins.join_basins` has it.
    least : int
        Objects of fewer voxels join a neighbour, or vanish where there is none.

    Returns
    -------
    ndarray of uint32, (n,)
        1…N by the first voxels in z, y, x order.
    """
    seeds = join_basins(basins.heights, basins.rows, depth)
    seed_basins, part_of = np.unique(seeds, return_inverse=True)
    sizes = np.zeros(len(seed_basins), np.int64)
    np.add.at(sizes, part_of, basins.sizes)
    a, b = part_of[basins.rows[:, 0]], part_of[basins.rows[:, 1]]
    apart = a != b
    pairs = np.column_stack([np.minimum(a, b)[apart], np.maximum(a, b)[apart], basins.rows[apart, 2]])
    object_of = join_small(sizes, highest_saddles(pairs), least)[part_of]
    first = np.full(len(seed_basins), np.iinfo(np.int64).max)
    stays = object_of >= 0
    np.minimum.at(first, object_of[stays], basins.first[stays])
    remaining = np.unique(object_of[stays])
    numbers = np.zeros(len(seed_basins), np.uint32)
    numbers[remaining[np.argsort(first[remaining])]] = np.arange(1, len(remaining) + 1, dtype=np.uint32)
    return np.where(stays, numbers[object_of], np.uint32(0))


def number_objects(heights: Heights, depth: int, least: int) -> Numbers:
    """Return the objects of an array of heights: uint32, zyx, 1…N by the first voxels, 0 outside.

    Parameters as those of `number_basins`.

    References
    ----------
    Cousty, Bertrand, Najman & Couprie 2009, doi:10.1109/TPAMI.2008.173.

    Examples
    --------
    Between the first two summits one has to go down by 1 alone:

    >>> number_objects(np.array([[[5, 4, 6, 0, 2, 7]]], np.uint16), 2, 1).tolist()
    [[[1, 1, 1, 0, 2, 2]]]
    """
    basins, labels = find_basins_of(heights)
    numbers = number_basins(basins, depth, least)
    return np.concatenate([np.zeros(1, np.uint32), numbers])[labels]
