"""Basins of a map of heights: which summit each voxel leads up to, where basins touch, and which belong together.

Heights are whole numbers, 0 outside. Each voxel leads to the highest of its 26 neighbours, of equals to the first one, until
a summit is reached: the voxels that lead to it are its basin. Where two basins touch, the saddle is the highest pair of
neighbours: the pair whose lower voxel is highest, and of those the one whose higher voxel is. Joining basins over their
saddles, highest first, until each hangs together with one seed, gives a maximum spanning forest of the voxels: a watershed
cut, in which every voxel belongs to an object and none to a line between them.

References
----------
Cousty, Bertrand, Najman & Couprie 2009, doi:10.1109/TPAMI.2008.173 (watershed cuts are spanning forests); Grimaud 1992,
doi:10.1117/12.60650 (dynamics).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

Heights = npt.NDArray[np.uint16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Slices = tuple[slice, slice, slice]

_TOGETHER = 1 << 19
"""Voxels that are compared at a time."""
_PLACE_BITS = 40
_LEVEL_BITS = 16


def climb(heights: Heights, inner: Slices) -> tuple[Int32, Int64]:
    """Return the basin of each voxel of a box, as far as it is seen there.

    Parameters
    ----------
    heights : ndarray of uint16, zyx
        The box and one voxel more on each side that is no border of the volume; 0 outside of all basins.
    inner : tuple of slice
        The box.

    Returns
    -------
    labels : ndarray of int32, zyx
        Basins of the box's voxels, 1…m; 0 outside.
    ends : ndarray of int64, (m,)
        Where their voxels lead, ascending: place in the flattened heights. Either a summit, or the first voxel beyond the box.

    Examples
    --------
    Two summits; of the second the box sees the slope alone:

    >>> heights = np.array([[[0, 4, 9, 3, 2, 5, 8]]], np.uint16)
    >>> labels, ends = climb(heights, (slice(0, 1), slice(0, 1), slice(0, 6)))
    >>> labels.tolist(), ends.tolist()
    ([[[0, 1, 1, 1, 2, 2]]], [2, 6])
    """
    leads = _highest_neighbours(heights)
    rest = np.ones(heights.shape, np.bool_)
    rest[inner] = heights[inner] == 0
    itself = np.flatnonzero(rest)
    leads[itself] = itself
    while True:
        further = leads[leads]
        if np.array_equal(further, leads):
            break
        leads = further
    leads, inside = leads.reshape(heights.shape)[inner], heights[inner] > 0
    is_end = np.zeros(heights.size, np.bool_)
    is_end[leads[inside]] = True
    ends = np.flatnonzero(is_end)
    number = np.zeros(heights.size, np.int32)
    number[ends] = np.arange(1, len(ends) + 1, dtype=np.int32)
    return np.where(inside, number[leads], np.int32(0)), ends


def _highest_neighbours(heights: Heights) -> Int32 | Int64:
    """Return the flat place of the highest voxel among each one and its neighbours, of equals the first."""
    planes, size = heights.shape[0], heights.size
    plane = size // planes
    step, mask = max(1, _TOGETHER // plane), (1 << _PLACE_BITS) - 1
    leads = np.empty(heights.shape, np.int32 if size < 1 << 31 else np.int64)
    for start in range(0, planes, step):
        low, high = max(0, start - 1), min(planes, start + step + 1)
        keys = heights[low:high].astype(np.int64) << _PLACE_BITS
        keys |= np.arange(size - 1 - low * plane, size - 1 - high * plane, -1).reshape(keys.shape)
        for axis in (2, 1, 0):
            keys = _highest_of_three(keys, axis)
        leads[start : start + step] = size - 1 - (keys[start - low :][:step] & mask)
    flat: Int32 | Int64 = leads.reshape(-1)
    return flat


def _highest_of_three(keys: Int64, axis: int) -> Int64:
    highest = keys.copy()
    here, there, out = np.moveaxis(keys, axis, 0), np.moveaxis(keys, axis, 0), np.moveaxis(highest, axis, 0)
    np.maximum(out[1:], here[:-1], out=out[1:])
    np.maximum(out[:-1], there[1:], out=out[:-1])
    return highest


# saddles --------------------------------------------------------------------------------------------------------------


def saddle(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer]) -> Int64:
    """Return the saddles between voxels of two heights: they sort as saddles do; `level_of` is the height of one.

    Examples
    --------
    >>> low, lower = saddle(np.array([5, 5]), np.array([8, 7]))
    >>> bool(low > lower), level_of(low)
    (True, np.int64(5))
    """
    saddles: Int64 = (np.minimum(a, b).astype(np.int64) << _LEVEL_BITS) | np.maximum(a, b)
    return saddles


def level_of(saddles: Int64) -> Int64:
    """Return the heights of saddles, at which one passes from one basin to the other."""
    return saddles >> _LEVEL_BITS


def find_saddles(labels: Int32, heights: Heights) -> Int64:
    """Return where basins touch: rows (a, b, saddle) with a < b, sorted; basins 1…m.

    Examples
    --------
    >>> labels, heights = np.array([[[1, 1, 2, 2]]], np.int32), np.array([[[9, 3, 2, 8]]], np.uint16)
    >>> [(a, b, int(level_of(s))) for a, b, s in find_saddles(labels, heights)]
    [(np.int64(1), np.int64(2), 2)]
    """
    step = max(1, _TOGETHER // max(1, labels[0].size))
    rows = [np.zeros((0, 3), np.int64)]
    for start in range(0, len(labels), step):
        these, those = labels[start : start + step + 1], heights[start : start + step + 1]
        rows.append(highest_saddles(np.concatenate(list(_touching(these, those, step)))))
    return highest_saddles(np.concatenate(rows))


def _touching(labels: Int32, heights: Heights, planes: int) -> Iterator[Int64]:
    """Yield rows (a, b, saddle) of the neighbours of the first planes that lie in different basins."""
    for direction in itertools.product((-1, 0, 1), repeat=3):
        if direction <= (0, 0, 0):
            continue
        here, there = zip(*(_overlap(n, d) for n, d in zip(labels.shape, direction, strict=True)), strict=True)
        if not direction[0]:
            here, there = (slice(0, planes), *here[1:]), (slice(0, planes), *there[1:])
        a, b = labels[here], labels[there]
        at = np.flatnonzero((a != b) & (a > 0) & (b > 0))
        a, b = a.reshape(-1)[at].astype(np.int64), b.reshape(-1)[at].astype(np.int64)
        saddles = saddle(heights[here].reshape(-1)[at], heights[there].reshape(-1)[at])
        yield np.column_stack([np.minimum(a, b), np.maximum(a, b), saddles])


def _overlap(length: int, step: int) -> tuple[slice, slice]:
    """Return the parts of an axis that have a neighbour in a direction, and their neighbours."""
    here, there = slice(max(0, -step), length - max(0, step)), slice(max(0, step), length - max(0, -step))
    return here, there


def highest_saddles(rows: Int64) -> Int64:
    """Return one row of each pair (a, b), with its highest saddle, sorted by pairs; rows (a, b, saddle) with a < b."""
    if not len(rows):
        return rows
    lowest = int(rows[:, 0].min())
    span = int(rows[:, 1].max()) - lowest + 1
    if span * span >= 1 << (63 - 2 * _LEVEL_BITS):
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        return rows[_lasts(rows[:, 0]) | _lasts(rows[:, 1])]
    keys = (rows[:, 0] - lowest) * span + (rows[:, 1] - lowest)
    keys = np.sort(keys << (2 * _LEVEL_BITS) | rows[:, 2])  # one number sorts several times quicker than three
    saddles, pairs = keys & ((1 << 2 * _LEVEL_BITS) - 1), keys >> (2 * _LEVEL_BITS)
    last = _lasts(pairs)
    a, b = np.divmod(pairs[last], span)
    return np.column_stack([a + lowest, b + lowest, saddles[last]])


def _lasts(values: Int64) -> npt.NDArray[np.bool_]:
    """Return which ones are followed by another value."""
    last = np.ones(len(values), np.bool_)
    last[:-1] = np.diff(values) != 0
    return last


# joining --------------------------------------------------------------------------------------------------------------


def join_basins(summits: npt.NDArray[np.integer], rows: Int64, depth: int) -> Int64:
    """Return which seed each basin belongs to.

    Parameters
    ----------
    summits : ndarray of integers, (n,)
        Heights of the summits of basins 0…n − 1, in the order of their places: of equals the first counts as higher.
    rows : ndarray of int64, (m, 3)
        Where they touch, one row per pair: (a, b, saddle) with a < b.
    depth : int
        A basin is a seed where its dynamics is at least this: how deep one has to go from its summit to get to a higher one.
        At least 1, so that a plateau has one seed.

    Returns
    -------
    ndarray of int64, (n,)
        Basin of the seed; the highest of those that hang together always is one.

    Examples
    --------
    Summits of 9, 5 and 8 in a row; the middle one lies only 1 above the saddle to the right:

    >>> rows = np.array([[0, 1, 2 << 16], [1, 2, 4 << 16]])
    >>> join_basins(np.array([9, 5, 8]), rows, 2).tolist()
    [0, 2, 2]
    """
    order = np.lexsort((rows[:, 1], rows[:, 0], -rows[:, 2]))
    rank = np.arange(1, len(rows) + 1, dtype=np.float64)
    size = len(summits)
    graph = coo_array((rank, (rows[order, 0], rows[order, 1])), shape=(size, size)).tocsr()
    tree = np.sort(minimum_spanning_tree(graph).data).astype(np.int64) - 1
    heights, whole, part = summits.tolist(), list(range(size)), list(range(size))
    edges = rows[order[tree]]
    for a, b, level in zip(edges[:, 0].tolist(), edges[:, 1].tolist(), level_of(edges[:, 2]).tolist(), strict=True):
        low = _join(whole, heights, a, b)
        if heights[low] - level < depth:
            _join(part, heights, a, b)
    seeds = np.asarray(part, np.int64).reshape(-1)
    while not np.array_equal(seeds, seeds[seeds]):
        seeds = seeds[seeds]
    return seeds


def _join(parent: list[int], heights: list[int], a: int, b: int) -> int:
    """Join the sets of two basins under the higher summit; return the lower one."""
    a, b = _root(parent, a), _root(parent, b)
    low, high = (a, b) if (heights[a], -a) < (heights[b], -b) else (b, a)
    parent[low] = high
    return low


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def join_small(sizes: Int64, rows: Int64, least: int) -> Int64:
    """Return which object each one is part of, when small ones join a neighbour: the smallest first, over its highest saddle.

    Parameters
    ----------
    sizes : ndarray of int64, (n,)
        Voxels of objects 0…n − 1.
    rows : ndarray of int64, (m, 3)
        Where they touch, one row per pair: (a, b, saddle) with a < b.
    least : int
        Smaller ones are small. Of equal sizes and of equal saddles the first counts.

    Returns
    -------
    ndarray of int64, (n,)
        The object it is in; -1 where that is small and has no neighbour.

    Examples
    --------
    >>> join_small(np.array([9, 2, 8, 1]), np.array([[0, 1, 2 << 16], [1, 2, 4 << 16]]), 5).tolist()
    [0, 2, 2, -1]
    """
    into, total = list(range(len(sizes))), sizes.tolist()
    around: list[dict[int, int]] = [{} for _ in total]
    for a, b, height in rows.tolist():
        around[a][b] = around[b][a] = height
    small = [(size, number) for number, size in enumerate(total) if size < least]
    heapq.heapify(small)
    while small:
        size, number = heapq.heappop(small)
        if into[number] != number or total[number] != size:
            continue
        neighbours = around[number]
        if not neighbours:
            into[number] = -1
            continue
        target = min(neighbours, key=lambda n: (-neighbours[n], n))
        into[number] = target
        total[target] += size
        del around[target][number]
        for other, height in neighbours.items():
            if other != target:
                del around[other][number]
                around[target][other] = around[other][target] = max(height, around[other].get(target, 0))
        if total[target] < least:
            heapq.heappush(small, (total[target], target))
    group = np.asarray([*into, -1], np.int64)
    while not np.array_equal(group, group[group]):
        group = group[group]
    return group[:-1]
