"""Finds which voxels of two volumes are equal: copies, crops and tiles, turned and mirrored in any way.

Windows with equal hashes (see `rescueseg.volumes.anchors`) vote for how the axes are exchanged and mirrored and how far
the grids are shifted; what gets votes is then compared on the voxels themselves. An overlap counts when blocks of it have
equal voxels that tell enough: only those that differ from every neighbour do, as much as such a difference tells, and
together they must exceed by 10 bits what an agreement by chance anywhere in the two volumes could reach. Flat, saturated or empty
regions tell nothing. Where an overlap has several answers, as in periodic images, all of them are returned, up to 8.

Not found: overlaps less than 8 voxels long along every axis (4 in volumes of up to 64³ voxels); overlaps of volumes above
10⁷ voxels with fewer than some 5,000 voxels; a piece that one volume holds twice, under one name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.shared_places import GridMap
from rescueseg.volumes.anchors import MOST_ALIKE, Anchors, Rows, Words, canonical
from rescueseg.volumes.normalise import Array

Integers = npt.NDArray[np.int64]
Signs = tuple[int, int, int]

ORIENTATIONS: tuple[tuple[ZYX, Signs], ...] = tuple(
    (zyx(axes), zyx(signs))
    for axes in itertools.permutations((0, 1, 2))
    for signs in itertools.product((1, -1), repeat=3)
)  # fmt: skip
"""For each axis of one volume the axis of the other that runs along it, and its sign; the plain one is first."""
_MOST_PAIRS = 5000
_MOST_TRIES = 48
_MOST_FOUND = 8
_CHANCE_BITS = 10.0
_EQUAL_SHARE = 0.25
"""Of the voxels of a block: two copies rescaled to 8 bit by somewhat different factors still have many equal ones."""
_FEW_BITS, _MASK_SHARE = 4.0, 0.95
"""Below so many bits a volume is a mask, or nearly so: this share of all voxels compared must be equal."""
_BLOCK = (16, 16, 16)
_BLOCKS = 24
"""Blocks of an overlap that are compared, over all of it, and as many where windows agree."""


def equal_voxels(one: Array, other: Array, anchors: Anchors, others: Anchors) -> list[tuple[GridMap, float]]:
    """Return where the voxels of a volume lie in another, as far as they are equal.

    Parameters
    ----------
    one, other : array
        ``czyx``.
    anchors, others : Anchors
        Their windows.

    Returns
    -------
    list of (GridMap, float)
        From `other` to `one`, with steps of 1 or −1 and no tolerance, and which share of the voxels compared is equal;
        empty where nothing is. Where few are equal, such as those that a rescaling left as they were, the map may be
        right for them and wrong for the rest.
    """
    left, right = _pairs(anchors.rows, others.rows)
    if not len(left):
        return []
    votes = _Votes(left, right)
    needed = math.log2(9.0 * math.prod(one.shape) * math.prod(other.shape)) + _CHANCE_BITS
    bits = min(anchors.bits, others.bits)
    found: list[tuple[GridMap, float]] = []
    tries = 0
    while len(found) < _MOST_FOUND and tries < _MOST_TRIES:
        best = votes.best()
        if best is None:
            break
        tries += 1
        orientation, start, supporters = best
        grid = _grid(orientation, start)
        channels = int(left["channel"][supporters[0]]), int(right["channel"][supporters[0]])
        marks = left["at"][supporters[:: max(1, len(supporters) // _BLOCKS)]].astype(np.int64)
        told, share = _evidence(one, other, grid, channels, marks, bits)
        if told >= needed:
            found.append((grid, share))
            votes.explain(supporters)
            tries = 0
        else:
            votes.reject(orientation, start)
    return found


def _pairs(one: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Return the windows of two volumes that have equal hashes and are rare in both, pair by pair."""
    names, first, counts = np.unique(one["hash"], return_index=True, return_counts=True)
    others, other_first, other_counts = np.unique(other["hash"], return_index=True, return_counts=True)
    _, here, there = np.intersect1d(names, others, assume_unique=True, return_indices=True)
    rare = (counts[here] <= MOST_ALIKE) & (other_counts[there] <= MOST_ALIKE)
    here, there = here[rare], there[rare]
    here, there = here[:: max(1, len(here) // _MOST_PAIRS)], there[:: max(1, len(there) // _MOST_PAIRS)]
    left, right = [], []
    for i, j in itertools.product(range(MOST_ALIKE), repeat=2):
        both = (counts[here] > i) & (other_counts[there] > j)
        left.append(first[here[both]] + i)
        right.append(other_first[there[both]] + j)
    return one[np.concatenate(left)], other[np.concatenate(right)]


class _Votes:
    """What pairs of windows say of how one volume lies in the other: each votes for 8 of 48 orientations."""

    def __init__(self, left: Rows, right: Rows) -> None:
        self._open = np.ones(len(left), dtype=bool)
        pairs, keys = [], []
        here, there = left["at"].astype(np.int64), right["at"].astype(np.int64)
        same = left["backwards"] == right["backwards"]
        for number, (axes, signs) in enumerate(ORIENTATIONS):
            along = np.take(axes, left["axis"]) == right["axis"]
            index = np.flatnonzero(along & (same == (np.take(signs, left["axis"]) > 0)))
            key = np.full((len(index), 4), number, np.int64)
            for axis, (source, sign) in enumerate(zip(axes, signs, strict=True)):
                length = np.where(left["axis"][index] == axis, left["length"][index], 1)
                a, b = here[index, axis], there[index, source]
                key[:, 1 + axis] = a - b if sign > 0 else a + b + length
            pairs.append(index)
            keys.append(key)
        self._pairs, all_keys = np.concatenate(pairs), np.concatenate(keys)
        self._keys, self._group = np.unique(all_keys, axis=0, return_inverse=True)
        self._group = self._group.reshape(-1)
        self._rejected = np.zeros(len(self._keys), dtype=bool)

    def best(self) -> tuple[int, tuple[int, int, int], Integers] | None:
        """Return the orientation and shift with most votes, of equal ones the plainest, and the pairs that vote for it."""
        counts = np.bincount(self._group[self._open[self._pairs]], minlength=len(self._keys))
        counts[self._rejected] = 0
        if not counts.any():
            return None
        winner = int(np.argmax(counts))
        number, *start = (int(v) for v in self._keys[winner])
        pairs = self._pairs[self._group == winner]
        return number, zyx(start), np.asarray(pairs[self._open[pairs]], np.int64)

    def explain(self, pairs: Integers) -> None:
        """Count these pairs no more: what they say was found to be so."""
        self._open[pairs] = False

    def reject(self, number: int, start: Sequence[int]) -> None:
        """Leave an orientation and shift out."""
        self._rejected |= (self._keys == np.array([number, *start])).all(axis=1)


def _grid(orientation: int, start: Sequence[int]) -> GridMap:
    axes, signs = ORIENTATIONS[orientation]
    z, y, x = (float(o) for o in start)
    return GridMap(axes, (float(signs[0]), float(signs[1]), float(signs[2])), (z, y, x))


def _evidence(
    one: Array, other: Array, grid: GridMap, channels: tuple[int, int], marks: Integers, bits: float
) -> tuple[float, float]:
    """Return what the equal voxels of an overlap tell, in bits (see `_told`), and their share of those compared."""
    shape, whole = zyx(one.shape[1:]), Box((0, 0, 0), zyx(other.shape[1:]))
    common = grid.box(whole).intersection(Box((0, 0, 0), shape))
    if common is None:
        return 0.0, 0.0
    counts: list[tuple[int, int]] = []
    for block in _blocks(common, marks):
        around = block.expand((1, 1, 1)).clip(shape)
        own = grid.inverse().box(block)
        own_around = own.expand((1, 1, 1)).clip(whole.shape_zyx)
        here, telling = _telling(canonical(np.asarray(one[(channels[0], *around.slices)])), block.relative_to(around))
        part = canonical(np.asarray(other[(channels[1], *own_around.slices)]))
        there, telling_there = (turned(voxels, grid) for voxels in _telling(part, own.relative_to(own_around)))
        alike = here == there
        telling &= telling_there | ~alike  # what is constant beyond the block in either volume says nothing
        counts.append((int(telling.sum()), int((telling & alike).sum())))
    all_voxels, all_equal = (sum(column) for column in zip(*counts, strict=True))
    share = all_equal / max(1, all_voxels)
    if bits < _FEW_BITS:  # in masks some blocks agree by chance: all of them must
        return (_told(all_voxels, all_equal, bits) if share >= _MASK_SHARE else 0.0), share
    return sum(_told(voxels, equal, bits) for voxels, equal in counts), share


def _telling(voxels: Words, box: Box) -> tuple[Words, npt.NDArray[np.bool_]]:
    """Return the voxels of a box, and which of them differ from every neighbour, outside the box too."""
    telling = np.full(voxels.shape, voxels.size > 1)
    for axis in range(3):
        lines, marked = np.moveaxis(voxels, axis, 0), np.moveaxis(telling, axis, 0)
        differs = lines[1:] != lines[:-1]
        marked[1:] &= differs
        marked[:-1] &= differs
    return voxels[box.slices], telling[box.slices]


def _told(voxels: int, equal: int, bits: float) -> float:
    """Return by how many bits it is surprising that so many of the telling voxels are equal.

    Examples
    --------
    By chance one in 2⁸ would be:

    >>> _told(100, 100, 8.0), round(_told(100, 50, 8.0)), _told(100, 10, 8.0)
    (800.0, 300, 0.0)
    """
    chance = min(0.5, 2.0**-bits)
    share = equal / voxels if voxels else 0.0
    if share < max(_EQUAL_SHARE, chance):
        return 0.0
    rest = (1 - share) * math.log2((1 - share) / (1 - chance)) if share < 1 else 0.0
    return voxels * (share * math.log2(share / chance) + rest)


def _blocks(common: Box, marks: Integers) -> list[Box]:
    """Return the blocks of an overlap to compare: all of a small one, else some over all of it and where windows agree."""
    grid = [math.ceil(n / b) for n, b in zip(common.shape_zyx, _BLOCK, strict=True)]
    total = math.prod(grid)
    numbers = set(range(total) if total <= 2 * _BLOCKS else np.linspace(0, total - 1, _BLOCKS).astype(int).tolist())
    if total > 2 * _BLOCKS:
        cells = np.clip((marks - np.array(common.offset_zyx)) // np.array(_BLOCK), 0, np.array(grid) - 1)
        numbers |= set(np.ravel_multi_index(tuple(cells.T), tuple(grid)).tolist())
    blocks = []
    for number in sorted(numbers):
        cell = np.unravel_index(number, tuple(grid))
        start = zyx(o + int(c) * b for o, c, b in zip(common.offset_zyx, cell, _BLOCK, strict=True))
        inside = Box(start, _BLOCK).intersection(common)
        if inside is not None:
            blocks.append(inside)
    return blocks


def turned(part: npt.NDArray[Any], grid: GridMap) -> npt.NDArray[Any]:
    """Return a part of one volume with the axes of another, in which `grid` says how it lies."""
    return part.transpose(grid.axes)[tuple(slice(None, None, int(s)) for s in grid.steps)]
