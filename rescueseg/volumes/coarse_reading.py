"""Reading a volume on any coarser grid, from the nearest level of its pyramid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Floats, zyx
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.normalise import Array

_READ, _AVERAGED = 2**20, 2**16
"""Voxels that are read, and averaged, at a time."""
_MOST_VOXELS = 2**23
"""Voxels of a level from which a whole volume is read."""
_MOST_KEPT = 8
"""Coarse grids kept of a volume while it is compared with others: 256 KiB each."""


@dataclass(frozen=True)
class Pyramid:
    """A volume and its coarser levels.

    Parameters
    ----------
    levels : tuple of array
        ``czyx``, finest first.
    """

    levels: tuple[Array, ...]
    _grids: dict[tuple[object, ...], Floats] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, url: str) -> Pyramid:
        """Open an image of a campaign."""
        return cls(tuple(ome_zarr.open_level(url, number) for number in range(len(ome_zarr.levels(url)))))

    @property
    def shape_zyx(self) -> ZYX:
        """Shape at full resolution."""
        return zyx(self.levels[0].shape[1:])

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.levels[0].shape[0])

    def coarse_cells(self) -> ZYX:
        """Return the smallest cells, in voxels, on which all of the volume is read from at most `_MOST_VOXELS` voxels.

        A flat volume is not to be read at full resolution along its long axes because its short one has few voxels.
        """
        levels = [level for level in self.levels if math.prod(level.shape[1:]) <= _MOST_VOXELS]
        return zyx(self._factors(levels[0] if levels else self.levels[-1]))

    def kept(self, key: tuple[object, ...], make: Callable[[], Floats]) -> Floats:
        """Return what is kept under a key, made where it is not there yet; the latest few are kept."""
        if key not in self._grids:
            while len(self._grids) >= _MOST_KEPT:
                self._grids.pop(next(iter(self._grids)))
            self._grids[key] = make()
        return self._grids[key]

    def read(self, channel: int, start_zyx: Sequence[float], step_zyx: Sequence[float], count_zyx: ZYX) -> Floats:
        """Return means over cells of a grid.

        Parameters
        ----------
        channel : int
            One of the image's.
        start_zyx : sequence of float
            Where the first cell begins, in voxels of full resolution.
        step_zyx : sequence of float
            Length of a cell; at least 1.
        count_zyx : tuple of int
            Cells along each axis; those beyond the volume repeat its border.

        Returns
        -------
        ndarray of float64, zyx
            Weighted means over what each cell covers; with steps of 1 from whole numbers, the voxels themselves.

        Examples
        --------
        >>> line = np.arange(6.0).reshape(1, 1, 1, 6)
        >>> Pyramid((line,)).read(0, (0, 0, 1), (1, 1, 2.5), (1, 1, 2)).tolist()
        [[[1.8, 4.2]]]
        """
        level, factors = self._level(step_zyx)
        low, edges = [], []
        for begin, step, count, factor in zip(start_zyx, step_zyx, count_zyx, factors, strict=True):
            edge = (begin + step * np.arange(count + 1)) / factor
            low.append(int(np.floor(edge[0] + 1e-6)))
            edges.append(edge - low[-1])
        high = [o + int(np.ceil(edge[-1] - 1e-6)) for o, edge in zip(low, edges, strict=True)]
        plane = max(1, math.prod(b - a for a, b in zip(low[1:], high[1:], strict=True)))
        read, result = _Slabs(level, channel, low, high, max(1, _READ // plane)), np.empty(count_zyx)
        cells = max(1, int(_AVERAGED // plane / step_zyx[0] * factors[0]))
        for first in range(0, count_zyx[0], cells):
            part = edges[0][first : first + cells + 1]
            top, bottom = int(np.floor(part[0] + 1e-6)), int(np.ceil(part[-1] - 1e-6))
            values = _means(read(top, bottom).astype(np.float64), part - top, 0)
            for axis in (1, 2):
                values = _means(values, edges[axis], axis)
            result[first : first + len(values)] = values
        return result

    def _level(self, step_zyx: Sequence[float]) -> tuple[Array, list[int]]:
        """Return the coarsest level whose voxels are no larger than the cells, and its factors."""
        for level in reversed(self.levels):
            factors = self._factors(level)
            if all(factor <= step + 1e-6 for factor, step in zip(factors, step_zyx, strict=True)):
                return level, factors
        return self.levels[0], [1, 1, 1]

    def _factors(self, level: Array) -> list[int]:
        """Return the voxels of full resolution in one of a level, along each axis."""
        return [2 ** round(math.log2(n / m)) for n, m in zip(self.shape_zyx, level.shape[1:], strict=True)]


class _Slabs:
    """Reads planes of a box, many at a time, and hands out few."""

    def __init__(self, level: Array, channel: int, low: Sequence[int], high: Sequence[int], planes: int) -> None:
        self._level, self._channel, self._low, self._high, self._planes = level, channel, low, high, planes
        self._first, self._slab = 0, np.zeros((0, 1, 1))

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        """Return planes, counted from the first of the box."""
        if top < self._first or bottom > self._first + len(self._slab):
            last = min(max(bottom, top + self._planes), self._high[0] - self._low[0])
            low, high = [self._low[0] + top, *self._low[1:]], [self._low[0] + last, *self._high[1:]]
            self._first, self._slab = top, _read_repeated(self._level, self._channel, low, high)
        return self._slab[top - self._first : bottom - self._first]


def _read_repeated(level: Array, channel: int, low: Sequence[int], high: Sequence[int]) -> npt.NDArray[Any]:
    """Read a box that may reach beyond the level, whose border then repeats."""
    inside = [
        (min(max(a, 0), n - 1), max(min(b, n), min(max(a, 0), n - 1) + 1))
        for a, b, n in zip(low, high, level.shape[1:], strict=True)
    ]
    voxels = np.asarray(level[(channel, *(slice(a, b) for a, b in inside))])
    pad = [(max(0, i[0] - a), max(0, b - i[1])) for a, b, i in zip(low, high, inside, strict=True)]
    return np.pad(voxels, pad, mode="edge") if any(p for pair in pad for p in pair) else voxels


def _means(values: Floats, edges: Floats, axis: int) -> Floats:
    """Return the means between edges along an axis, in voxels; parts of voxels count by their share."""
    if len(edges) - 1 == values.shape[axis] and np.allclose(edges, np.arange(len(edges))):
        return values
    lines = np.moveaxis(values, axis, -1)
    total = np.concatenate([np.zeros((*lines.shape[:-1], 1)), np.cumsum(lines, axis=-1)], axis=-1)
    whole = np.clip(np.floor(edges).astype(int), 0, lines.shape[-1])
    rest, following = edges - whole, np.minimum(whole, lines.shape[-1] - 1)
    at_edges = total[..., whole] + rest * lines[..., following]
    means: Floats = np.moveaxis(np.diff(at_edges, axis=-1) / np.diff(edges), -1, axis)
    return means
