"""Which chunks of a Zarr array are stored: by a listing of its folder and the indexes of its shards."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ShardingCodec

from rescueseg.errors import UnreadableVolumeError

_Index = tuple[int, ...]
_ABSENT = np.iinfo(np.uint64).max
_PATIENCE = 2.0
"""Seconds of listing after which a line says what is being done."""
_logger = logging.getLogger(__name__)


def absent_chunks(array: zarr.Array[Any], url: str, told: Callable[[_Index, _Index], str]) -> list[_Index]:
    """Return the positions of chunks that are not stored, in the grid of the smallest chunks.

    Parameters
    ----------
    array : zarr.Array
        The array.
    url : str
        Folder or URL of its store.
    told : callable
        Makes words of the position and the extent of a chunk.

    Raises
    ------
    UnreadableVolumeError
        If the index of a shard is cut off or points beyond its file.
    """
    fs, root = fsspec.core.url_to_fs(url)
    folder = f"{root.rstrip('/')}/{array.path}".rstrip("/")
    sizes = _listing(fs, folder)
    stored = tuple(array.shards or array.chunks)
    encode: Any = array.metadata.encode_chunk_key
    per_shard = tuple(s // c for s, c in zip(stored, array.chunks, strict=True))
    size = tuple(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    absent: list[_Index] = []
    for index in itertools.product(*(range(-(-n // s)) for n, s in zip(array.shape, stored, strict=True))):
        key = encode(index)
        inside: npt.NDArray[np.bool_] = np.full(per_shard, key in sizes)
        if array.shards is not None and key in sizes:
            try:
                inside = _shard(array, fs, f"{folder}/{key}", sizes[key], per_shard)
            except ValueError as error:
                raise UnreadableVolumeError(
                    f"shard {key} cannot be read ({error}): {told(index, stored)}",
                    todo="Copy the file anew from its source",
                ) from error
        if not inside.all():
            first = [i * n for i, n in zip(index, per_shard, strict=True)]
            found = (tuple(int(a) + b for a, b in zip(at, first, strict=True)) for at in np.argwhere(~inside))
            absent += [f for f in found if all(a < n for a, n in zip(f, size, strict=True))]
    return sorted(absent)


def _listing(fs: Any, folder: str) -> dict[str, int]:
    """Return every file below a folder, by its path there, with its size."""
    if not isinstance(fs, fsspec.implementations.local.LocalFileSystem):
        found = fs.find(folder, detail=True)
        return {name.partition(f"{folder.strip('/')}/")[2]: int(info["size"] or 0) for name, info in found.items()}
    sizes: dict[str, int] = {}
    folders, started, said = [""], time.monotonic(), False
    while folders:
        below = folders.pop()
        with os.scandir(f"{folder}/{below}") as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{below}{entry.name}/")
                else:
                    sizes[f"{below}{entry.name}"] = entry.stat().st_size
        if not said and time.monotonic() - started > _PATIENCE:
            said = True
            _logger.warning("%s: looking for absent chunks, %d files so far …", folder, len(sizes))
    return sizes


def _shard(array: zarr.Array[Any], fs: Any, path: str, size: int, per_shard: _Index) -> npt.NDArray[np.bool_]:
    """Return which chunks a shard holds.

    Raises
    ------
    ValueError
        If its index does not fit its file.
    """
    codecs: Any = array.metadata.codecs  # type: ignore[union-attr]
    codec = next((c for c in codecs if isinstance(c, ShardingCodec)), None)
    if codec is None or len(codecs) != 1:
        return np.ones(per_shard, np.bool_)
    checksum = 4 * sum(type(c).__name__ == "Crc32cCodec" for c in codec.index_codecs)
    length = 16 * math.prod(per_shard) + checksum
    if size < length:
        raise ValueError("its index is cut off")
    at_start = codec.index_location.value == "start"
    content = fs.cat_file(path, start=0 if at_start else size - length, end=length if at_start else size)
    entries = np.frombuffer(content[: length - checksum], "<u8").reshape(*per_shard, 2)
    present = (entries != _ABSENT).any(-1)
    begins, lengths = entries[present, 0], entries[present, 1]
    if (begins > size).any() or (lengths > size - np.minimum(begins, size)).any():
        raise ValueError("its index points beyond the file")
    return np.asarray(present)
