"""Windows of a volume by which its voxels are known again in another volume, however that is cut or turned.

A window is a row of 8 voxels along one axis (of 4 too in small volumes), hashed from its values alone: type, spacing and
truth do not count, and a row read backwards has the same hash. Of a large volume only the windows with the smallest
hashes are kept: two volumes that share voxels keep the same of those they share. This is content-defined sampling, as in
Manber 1994 (USENIX Winter, "Finding similar files in a large file system"), along three axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, partition, zyx
from rescueseg.volumes import image_layout
from rescueseg.volumes.normalise import Array

Rows = npt.NDArray[Any]
Words = npt.NDArray[np.uint32]

WINDOWS = (8, 4)
"""Lengths of the windows in voxels; the second is for small volumes only."""
SMALL = 64**3
"""Voxels up to which a volume has short windows too."""
MOST_ALIKE = 4
"""Windows of one hash in one volume: what is commoner tells nothing of the place."""
_LEAST_KEPT, _MOST_KEPT, _VOXELS_PER_KEPT = 100_000, 1_000_000, 1000
"""Windows kept of one length: one for 1000 voxels, but no fewer and no more than these."""
_SAMPLED = 48**3
_MOST_BITS = 12.0
ROW = np.dtype(
    [("hash", "<u8"), ("at", "<i4", (3,)), ("axis", "i1"), ("length", "i1"), ("backwards", "i1"), ("channel", "i1")]
)
"""One window: hash, first voxel z, y, x, axis, length, whether the hash was taken from its end, channel."""


@dataclass(frozen=True)
class Anchors:
    """The windows kept of a volume.

    Parameters
    ----------
    rows : ndarray of `ROW`, shape (n,)
        By hash.
    bits : float
        What two different neighbouring voxels tell: the collision entropy of their difference, at most 12 bits.
    """

    rows: Rows
    bits: float


def canonical(voxels: npt.NDArray[Any]) -> Words:
    """Return values as the bits of float32, so that the type does not count; −0 becomes 0.

    Examples
    --------
    >>> canonical(np.array([7], np.uint8)) == canonical(np.array([7.0], np.float32))
    array([ True])
    """
    floats = np.ascontiguousarray(voxels, dtype=np.float32) + np.float32(0)
    words: Words = floats.view(np.uint32)
    return words


def find_anchors(image: Array) -> Anchors:
    """Return the windows by which a volume is known again; it is read once, block by block.

    About 20 ns per voxel on one core (a microsecond in small volumes, of which all windows are kept), and 4 million voxels
    in memory at a time.

    Parameters
    ----------
    image : array
        ``czyx``.
    """
    shape = zyx(image.shape[1:])
    voxels = math.prod(shape) * image.shape[0]
    kept = min(_MOST_KEPT, max(_LEAST_KEPT, voxels // _VOXELS_PER_KEPT))
    limit = min(2**32 - 1, int(2**32 * kept / (3 * voxels)))
    lengths = WINDOWS if math.prod(shape) <= SMALL else WINDOWS[:1]
    reach = (max(lengths) - 1,) * 3
    parts: list[Rows] = []
    for channel in range(image.shape[0]):
        for shard in partition(shape, image_layout.SHARD_ZYX):
            wide = Box(shard.offset_zyx, zyx(n + r for n, r in zip(shard.shape_zyx, reach, strict=True))).clip(shape)
            words = canonical(np.asarray(image[(channel, *wide.slices)]))
            for chunk in partition(shard.shape_zyx, image_layout.CHUNK_ZYX):
                stop = [min(s + r, n) for s, r, n in zip(chunk.stop_zyx, reach, wide.shape_zyx, strict=True)]
                part = words[Box.from_bounds(chunk.offset_zyx, stop).slices]
                for length in lengths:
                    parts += _windows(part, length, chunk.shape_zyx, limit, channel, shard, chunk)
    rows = np.concatenate(parts) if parts else np.zeros(0, ROW)
    return Anchors(rows[np.argsort(rows["hash"], kind="stable")], bits_of(image))


def _windows(
    words: Words, length: int, own: tuple[int, ...], limit: int, channel: int, shard: Box, chunk: Box
) -> list[Rows]:
    """Return the windows with small hashes that begin in the first `own` voxels along each axis."""
    mixed = words * np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA77)
    origin = np.add(shard.offset_zyx, chunk.offset_zyx)
    found = []
    for axis in range(3):
        count = min(own[axis], words.shape[axis] - length + 1)
        if count < 1:
            continue
        cut = tuple(slice(0, count if a == axis else n) for a, n in enumerate(own))
        rows = [mixed[tuple(slice(i, i + count) if a == axis else c for a, c in enumerate(cut))] for i in range(length)]
        total = np.zeros(rows[0].shape, np.uint32)
        for i in range(length // 2):
            total += (rows[i] + rows[-1 - i]) * np.uint32(_COEFFICIENTS[i])
        total ^= total >> np.uint32(16)
        total *= np.uint32(0xC2B2AE3D)
        at = np.argwhere((total <= np.uint32(limit)) & (rows[0] != rows[-1]))
        if not len(at):
            continue
        steps = np.zeros((length, 3), np.int64)
        steps[:, axis] = np.arange(length)
        index = at[:, None, :] + steps
        values = words[index[..., 0], index[..., 1], index[..., 2]].astype(np.uint64)
        backwards = values[:, 0] > values[:, -1]
        values[backwards] = values[backwards][:, ::-1]
        part = np.zeros(len(at), ROW)
        part["hash"], part["at"], part["axis"], part["length"] = _hash(values), at + origin, axis, length
        part["backwards"], part["channel"] = backwards, channel
        found.append(_without_crowds(part))
    return found


def _without_crowds(rows: Rows) -> Rows:
    """Return rows without those whose hash `MOST_ALIKE` others before them have: enough to see that it is common."""
    order = np.argsort(rows["hash"], kind="stable")
    hashes = rows["hash"][order]
    beyond = np.zeros(len(rows), dtype=bool)
    beyond[order[MOST_ALIKE + 1 :]] = hashes[MOST_ALIKE + 1 :] == hashes[: -MOST_ALIKE - 1]
    return rows[~beyond]


_COEFFICIENTS = (0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5)


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a hash of 64 bits for each row of values."""
    result = np.full(len(values), values.shape[1], np.uint64)
    for column in values.T:
        result = (result ^ column) * np.uint64(0x9FB21C651E98DF25)
        result ^= result >> np.uint64(32)
    return result


def bits_of(image: Array) -> float:
    """Return the collision entropy of the difference of two neighbours that differ, from the middle of the volume."""
    shape = image.shape[1:]
    side = max(2, round(_SAMPLED ** (1 / 3)))
    start = [max(0, (n - side) // 2) for n in shape]
    middle = np.asarray(image[(0, *(slice(o, o + side) for o in start))]).astype(np.float64)
    axis = int(np.argmax(middle.shape))
    steps = np.diff(middle, axis=axis)
    steps = steps[steps != 0]
    if len(steps) < 2:
        return 0.0
    _, counts = np.unique(steps, return_counts=True)
    alike = float((counts * (counts - 1.0)).sum()) / (len(steps) * (len(steps) - 1.0))
    return min(_MOST_BITS, -math.log2(alike)) if alike > 0 else _MOST_BITS
