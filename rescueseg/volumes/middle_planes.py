"""Three planes through the middle of a volume, for a look at it before it is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box
from rescueseg.image_files.source import Source

_LONGEST = 700
"""Pixels kept along an axis of a plane."""
_BLOCK = 64 * 2**20
"""Voxels read at a time."""
_WHOLE = 4 * 2**30
"""Bytes of a volume whose planes across z are read at every z."""
_FEW = 48
"""Positions along z at which those of a larger volume are read."""
_CHANNELS = 3


@dataclass(frozen=True, eq=False)
class MiddlePlanes:
    """Planes of an image and of its truth, thinned to what a picture shows.

    Parameters
    ----------
    image : tuple of ndarray
        Planes across z, y and x as channel, row, column; the rows of the last two are z.
    truth : tuple of ndarray
        The same planes of the truth as row, column; empty without one.
    at : tuple of int
        Where they lie along z, y and x.
    """

    image: tuple[npt.NDArray[Any], ...]
    truth: tuple[npt.NDArray[Any], ...]
    at: tuple[int, int, int]


def middle_planes(image: Source, truth: Source | None = None) -> MiddlePlanes:
    """Read the three planes through the middle; a large volume is read at some of its positions only.

    Parameters
    ----------
    image, truth : Source
        On one grid.
    """
    z, y, x = (n // 2 for n in image.shape_zyx)
    sources = [image] if truth is None else [image, truth]
    across = [[_across_z(s, z), *_along_z(s, y, x)] for s in sources]
    return MiddlePlanes(
        tuple(across[0]), tuple(plane[0] for plane in across[1]) if truth is not None else (), (z, y, x)
    )


def _step(length: int) -> int:
    return -(-length // _LONGEST)


def _across_z(source: Source, z: int) -> npt.NDArray[Any]:
    """Return one plane, read in blocks of rows."""
    _, height, width = source.shape_zyx
    step_y, step_x = _step(height), _step(width)
    rows = max(1, _BLOCK // (width * step_y)) * step_y
    blocks = [
        source.read(Box((z, top, 0), (1, min(rows, height - top), width)))[:_CHANNELS, 0, ::step_y, ::step_x]
        for top in range(0, height, rows)
    ]
    return np.concatenate(blocks, axis=1)


def _along_z(source: Source, y: int, x: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the planes across y and across x."""
    _, height, width = source.shape_zyx
    across_y = _side(source, (y, 0), (1, width))
    across_x = _side(source, (0, x), (height, 1))
    return across_y, across_x


def _side(source: Source, start: tuple[int, int], extent: tuple[int, int]) -> npt.NDArray[Any]:
    """Return channel, z, and the longer of two extents; of a large volume at a few z, each repeated up to the next."""
    depth, step = source.shape_zyx[0], _step(source.shape_zyx[0])
    voxels = source.channels * math.prod(source.shape_zyx)
    if voxels * source.dtype.itemsize <= _WHOLE and depth * max(extent) <= _BLOCK:
        side = source.read(Box((0, *start), (depth, *extent)))[:_CHANNELS, ::step]
    else:
        positions = np.linspace(0, depth - 1, min(depth, _FEW)).round().astype(int)
        lines = [source.read(Box((int(p), *start), (1, *extent)))[:_CHANNELS] for p in positions]
        nearest = np.abs(np.arange(0, depth, step)[:, None] - positions).argmin(1)
        side = np.concatenate(lines, axis=1)[:, nearest]
    return side.reshape(*side.shape[:2], -1)[:, :, :: _step(max(extent))]
