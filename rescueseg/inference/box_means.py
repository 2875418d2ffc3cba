"""Means of maps over boxes, block by block, each by one integral image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, Floats, Integers, overlapping, partition, zyx
from rescueseg.inference.maps import VolumeMaps


def box_sums(array: npt.NDArray[Any], offset_zyx: ZYX, starts: Integers, stops: Integers) -> Floats:
    """Sum a block of a map over the part of each box that lies in it, by one integral image.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        The block; any real dtype, summed in float64.
    offset_zyx : tuple of int
        Where the block begins in the volume.
    starts, stops : ndarray of int64, shape (n, 3)
        Bounds of the boxes in the volume (see `box_bounds`); they may reach beyond the block.

    Returns
    -------
    ndarray of float64, shape (n,)
        0 for a box that does not touch the block.

    Examples
    --------
    A block of ones, 2×2×2 voxels, that begins at z = 4; the first box lies half outside it:

    >>> starts, stops = np.array([[3, 0, 0], [4, 0, 0]]), np.array([[5, 2, 2], [5, 1, 1]])
    >>> box_sums(np.ones((2, 2, 2)), (4, 0, 0), starts, stops).tolist()
    [4.0, 1.0]
    """
    table = np.zeros([n + 1 for n in array.shape], dtype=np.float64)
    inner = table[1:, 1:, 1:]
    inner[...] = array
    for axis in range(3):
        np.cumsum(inner, axis=axis, out=inner)
    low = np.clip(starts - np.array(offset_zyx), 0, array.shape)
    high = np.maximum(np.clip(stops - np.array(offset_zyx), 0, array.shape), low)
    total = np.zeros(len(starts), dtype=np.float64)
    for corner in np.ndindex(2, 2, 2):
        z, y, x = (np.where(c, high[:, axis], low[:, axis]) for axis, c in enumerate(corner))
        total += (-1.0) ** (3 - sum(corner)) * table[z, y, x]
    return total


def touching(block: Box, starts: Integers, stops: Integers) -> npt.NDArray[np.int64]:
    """Return the indices of the boxes that share a voxel with a block.

    Examples
    --------
    >>> starts = np.array([[0, 0, 0], [0, 0, 8]])
    >>> touching(Box((0, 0, 0), (8, 8, 8)), starts, starts + 8).tolist()
    [0]
    """
    return np.flatnonzero(overlapping(starts, stops, block))


SCORES = ("predictive_entropy", "mutual_information", "mc_variance", "tta_variance")
"""Maps whose box means are scores by themselves."""
_BLOCK_VOXELS = 4_000_000
"""Largest block read at once; bounds the memory whatever the shards are."""


def map_pieces(maps: VolumeMaps, chunk_zyx: ZYX) -> list[Box]:
    """Return the boxes in which to read the maps of a volume: their shards, cut where they are too large.

    Parameters
    ----------
    maps : VolumeMaps
        The volume's.
    chunk_zyx : tuple of int
        Chunk of its maps, in voxels.

    Raises
    ------
    InferenceError
        If the maps are not complete.
    """
    return [piece for shard in maps.blocks() for piece in _pieces(shard, chunk_zyx)]


def _pieces(block: Box, chunk_zyx: ZYX) -> list[Box]:
    """Cut a block at the borders of its chunks until the pieces are small enough to read."""
    shape = list(block.shape_zyx)
    while np.prod(shape) > _BLOCK_VOXELS:
        chunks = [-(-n // c) for n, c in zip(shape, chunk_zyx, strict=True)]
        axis = int(np.argmax(chunks))
        if chunks[axis] == 1:
            break
        shape[axis] = -(-chunks[axis] // 2) * chunk_zyx[axis]
    return [
        Box(zyx(a + b for a, b in zip(block.offset_zyx, part.offset_zyx, strict=True)), part.shape_zyx)
        for part in partition(block.shape_zyx, shape)
    ]
