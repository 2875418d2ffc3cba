"""Arrays that passes over a volume write, block by block: labels, and what one pass hands on to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.delivery.block_pass import BlockPass
from rescueseg.delivery.label_readers import ZarrLabels
from rescueseg.errors import storage_errors
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.storage import Storage

_CHUNK = 64
_DIGEST = "digest"


@dataclass(frozen=True)
class LabelArray:
    """An array of labels, zyx; it can be pickled, so blocks get it.

    Parameters
    ----------
    url : str
        The Zarr folder.
    path : str
        The array in it.
    """

    url: str
    path: str

    def reader(self, value: int | None = None, *, inverted: bool = False) -> ZarrLabels:
        """Return its reader; parameters as `ZarrLabels`."""
        return ZarrLabels(self.url, self.path, value, inverted)

    def read(self, box: Box) -> npt.NDArray[np.integer[Any]]:
        """Return the labels in a box of the volume."""
        return self.reader().read(box)

    def write(self, box: Box, labels: npt.NDArray[np.integer[Any]]) -> None:
        """Write a block; blocks share no shard.

        Raises
        ------
        StorageError
            If the disk is full or not writable.
        """
        with storage_errors(self.url):
            array = zarr.open_array(store=zarr_store(self.url), path=self.path, mode="r+", zarr_format=3)
            array[box.slices] = labels


def scratch_array(url: str, block_pass: BlockPass, dtype: npt.DTypeLike) -> LabelArray:
    """Return the array that a pass writes, and make it where it is not there.

    Parameters
    ----------
    url : str
        Where it goes; an array of anything else is replaced.
    block_pass : BlockPass
        What it is written by. Where the array is made anew, its markers are removed first: no block is in it.
    dtype : dtype
        An integer type.

    Raises
    ------
    StorageError
        If the disk is full or not writable.
    """
    if _digest(url) != block_pass.digest:
        Storage(block_pass.url).remove("")
        with storage_errors(url):
            zarr.create_array(
                zarr_store(url),
                shape=block_pass.shape_zyx,
                dtype=np.dtype(dtype),
                chunks=_chunks(block_pass.block_zyx),
                shards=block_pass.block_zyx,
                fill_value=0,
                attributes={_DIGEST: block_pass.digest},
                zarr_format=3,
                overwrite=True,
            )
    return LabelArray(url, "")


def _digest(url: str) -> Any:
    """Return what an array was made for, None where there is none."""
    try:
        return zarr.open_array(store=zarr_store(url), mode="r", zarr_format=3).attrs.get(_DIGEST)
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _chunks(block_zyx: ZYX) -> ZYX:
    """Return chunks that halos are read by: of 64 voxels at most where that divides the block, else the block.

    Examples
    --------
    >>> _chunks((64, 192, 200))
    (64, 64, 200)
    """
    parts = [math.gcd(b, _CHUNK) for b in block_zyx]
    return zyx(p if 4 * p >= _CHUNK else b for p, b in zip(parts, block_zyx, strict=True))
