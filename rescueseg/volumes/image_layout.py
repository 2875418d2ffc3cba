"""What an OME-Zarr image is to be: its shape, its voxels, and how they are cut into chunks and shards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from rescueseg.geometry import ZYX, zyx

CHUNK_ZYX: ZYX = (32, 64, 64)
SHARD_ZYX: ZYX = (64, 256, 256)


def choose_chunks(shape_zyx: Sequence[int]) -> tuple[ZYX, ZYX]:
    """Return the chunk and shard shape for a volume.

    Parameters
    ----------
    shape_zyx : sequence of int
        Shape of the volume in voxels.

    Returns
    -------
    tuple
        Chunks of about 32×64×64 voxels and shards of about 64×256×256, neither longer than the volume needs; each
        shard axis is a multiple of the chunk axis.
    """
    chunks = zyx(min(c, n) for c, n in zip(CHUNK_ZYX, shape_zyx, strict=True))
    shards = zyx(c * min(s // c, math.ceil(n / c)) for c, s, n in zip(chunks, SHARD_ZYX, shape_zyx, strict=True))
    return chunks, shards


@dataclass(frozen=True)
class ImageLayout:
    """What an image is to be.

    Parameters
    ----------
    shape : sequence of int
        ``czyx`` or ``zyx``.
    dtype : dtype
        Voxel type.
    spacing_um_zyx : sequence of float
        Voxel size in micrometre.
    chunks, shards : sequence of int, optional
        Their ``zyx`` shape; a channel axis gets 1. Chosen by `choose_chunks` when omitted. A shard axis must be a
        multiple of the chunk axis; the shard may reach beyond the volume.
    name : str
        Name in the metadata.
    fill_value : float
        What an unwritten voxel reads as.
    attributes : mapping
        Further attributes of the group, beside ``ome``.
    origin_um_zyx : sequence of float, optional
        Where the first voxel lies in micrometre.
    zstd_level : int
        How much work is put into compressing. Of maps, level 1 takes a third of the time of level 3 for 3 % more bytes.
    """

    shape: Sequence[int]
    dtype: npt.DTypeLike
    spacing_um_zyx: Sequence[float]
    chunks: Sequence[int] | None = None
    shards: Sequence[int] | None = None
    name: str = "image"
    fill_value: float = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin_um_zyx: Sequence[float] | None = None
    zstd_level: int = 3

    def chunks_and_shards(self) -> tuple[ZYX, ZYX]:
        """Return the chunk and shard shape, ``zyx``.

        Examples
        --------
        >>> ImageLayout((1, 64, 512, 512), "uint8", (0.3, 0.1, 0.1), chunks=(16, 64, 64)).chunks_and_shards()
        ((16, 64, 64), (64, 256, 256))
        """
        default_chunk, default_shard = choose_chunks(self.shape[-3:])
        chunk = zyx(self.chunks) if self.chunks is not None else default_chunk
        largest = zyx(c * max(1, s // c) for c, s in zip(chunk, default_shard, strict=True))
        return chunk, largest if self.shards is None else zyx(self.shards)
