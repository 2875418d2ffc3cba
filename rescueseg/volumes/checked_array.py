"""Reading the arrays of a campaign: what was stored, or one error that names the damaged file; never black instead."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from rescueseg.errors import RescuesegError, StorageError, damaged
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.volumes.shards import METADATA, FileSum, FileTable, sum_of

TableOf = Callable[[str], FileTable | None]
"""Returns the list that a file of a folder has to stand in; None where nobody made one."""

_UNDECODABLE = (ValueError, RuntimeError, OSError, MemoryError, OverflowError, KeyError, AssertionError)
"""What the codecs raise when they are given damaged bytes."""
_MOST_KEPT = 2**16
_checked: dict[str, tuple[FileSum, tuple[int, ...]]] = {}
"""Shards that this process has checked, and the state of their files then."""


def open_checked(url: str, path: str, table_of: TableOf) -> CheckedArray:
    """Open an array of a campaign, read-only.

    Parameters
    ----------
    url : str
        The Zarr folder.
    path : str
        The array in it.
    table_of : callable
        Lists of the folder's files.

    Returns
    -------
    CheckedArray
        A Zarr array whose `__getitem__` raises `StorageError` instead of anything else where a file is damaged.

    Raises
    ------
    StorageError
        If its metadata are missing or damaged.
    """
    with _metadata_errors(f"{url}/{path}/{METADATA}"):
        array = zarr.open_array(store=CheckedStore(zarr_store(url), url, table_of), path=path, mode="r", zarr_format=3)
    return CheckedArray(array, f"{url}/{path}")


def open_attributes(url: str, table_of: TableOf) -> dict[str, Any]:
    """Return the attributes of a campaign's Zarr folder.

    Raises
    ------
    StorageError
        If its metadata are missing or damaged.
    """
    with _metadata_errors(f"{url}/{METADATA}"):
        store = CheckedStore(zarr_store(url), url, table_of)
        return zarr.open_group(store=store, mode="r", zarr_format=3, use_consolidated=False).attrs.asdict()


@contextmanager
def _metadata_errors(where: str) -> Iterator[None]:
    """Turn whatever Zarr raises when it reads damaged metadata into one error."""
    try:
        yield
    except RescuesegError:
        raise
    except FileNotFoundError as error:
        raise damaged(where, "it is missing") from error
    except Exception as error:  # of damaged JSON nearly anything
        raise damaged(where, f"it cannot be read: {error}") from error


class CheckedStore(WrapperStore[Store]):
    """A Zarr store that gives the files of a list as they were written, and none beside them.

    Parameters
    ----------
    store : zarr.abc.store.Store
        Where they lie.
    url : str
        Its address.
    table_of : callable
        Lists of its files.
    """

    def __init__(self, store: Store, url: str, table_of: TableOf) -> None:
        super().__init__(store)
        self._url, self._table_of = url, table_of

    def _with_store(self, store: Store) -> CheckedStore:
        return CheckedStore(store, self._url, self._table_of)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a file or a part of it, None where the list has none of this name."""
        table, path = self._table_of(key), f"{self._url}/{key}"
        expected = None if table is None else table.get(key)
        if table is not None and expected is None:
            return None
        try:
            if expected is not None and (state := self._unchecked_state(path, expected)) is not None:
                whole = await self._store.get(key, prototype)
                _check(path, whole, expected)
                _keep(path, expected, state)
                if byte_range is None and whole:
                    return whole
            data = await self._store.get(key, prototype, byte_range)
        except OSError as error:
            raise damaged(path, f"it cannot be read: {error.strerror or error}") from error
        if data is None and expected is not None:
            raise damaged(path, "it is missing")
        if data is not None and not len(data):
            raise damaged(path, "it is empty")
        return data

    def _unchecked_state(self, path: str, expected: FileSum) -> tuple[int, ...] | None:
        """Return the state of a file that is to be checked, None where that was done and it is the same since."""
        state: tuple[int, ...] = ()
        if "://" not in self._url:
            try:
                found = os.stat(path)  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError) as error:
                raise damaged(path, "it is missing") from error
            if found.st_size != expected.size:
                raise damaged(path, f"it holds {found.st_size} bytes, {expected.size} were written")
            state = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        return None if _checked.get(path) == (expected, state) else state


def _keep(path: str, expected: FileSum, state: tuple[int, ...]) -> None:
    if len(_checked) >= _MOST_KEPT:
        _checked.clear()
    _checked[path] = expected, state


def _check(path: str, data: Buffer | None, expected: FileSum) -> None:
    """Hold all of a file against its sums; the little metadata against the strong one."""
    if data is None:
        raise damaged(path, "it is missing")
    content: Any = data.as_numpy_array()
    strong = path.endswith(METADATA)
    same = sum_of(content) == expected if strong else google_crc32c.value(content) == expected.crc32c
    if not same or len(data) != expected.size:
        raise damaged(path, "its checksum does not fit what it holds")


class CheckedArray(zarr.Array[Any]):
    """A Zarr array of a campaign: damage is one error that names the file.

    Parameters
    ----------
    array : zarr.Array
        The array, opened through a `CheckedStore`.
    url : str
        Its address.
    """

    def __init__(self, array: zarr.Array[Any], url: str) -> None:
        super().__init__(array.async_array)
        self.url = url

    def require(self, shape: Sequence[int], dtype: npt.DTypeLike) -> CheckedArray:
        """Return the array itself if it is as its record says.

        Raises
        ------
        StorageError
            If its shape, its type or its fill value is another.
        """
        for what, has, needs in (
            ("shape", self.shape, tuple(shape)),
            ("type", self.dtype, np.dtype(dtype)),
            ("fill value", self.fill_value, 0),
        ):
            if has != needs:
                raise damaged(f"{self.url}/{METADATA}", f"its {what} is {has}, not {needs} as recorded")
        return self

    def __getitem__(self, selection: Any) -> Any:
        """Return the voxels of a selection.

        Raises
        ------
        StorageError
            If a file that holds some of them is missing or damaged.
        """
        try:
            return super().__getitem__(selection)
        except _UNDECODABLE as error:
            raise self._damage(selection, error) from error

    def _damage(self, selection: Any, error: Exception) -> Exception:
        """Return which shard cannot be decoded: the first one that fails alone; if none does, the error itself."""
        for key, part in self._shards(selection):
            try:
                super().__getitem__(part)
            except StorageError as named:
                return named
            except _UNDECODABLE as alone:
                return damaged(f"{self.url}/{key}", f"it cannot be decoded: {alone}")
        return error

    def _shards(self, selection: Any) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """Yield the shards that a basic selection touches, each with its part of the array."""
        given = list(selection if isinstance(selection, tuple) else (selection,))
        if at := [axis for axis, one in enumerate(given) if one is Ellipsis]:
            given[at[0] : at[0] + 1] = [slice(None)] * (self.ndim - len(given) + 1)
        given += [slice(None)] * (self.ndim - len(given))
        ranges = []
        for one, length, size in zip(given, self.shape, self.shards or self.chunks, strict=True):
            if not isinstance(one, slice):
                one = slice(one % length, one % length + 1)
            start, stop, _ = one.indices(length)
            shards = range(start // size, math.ceil(stop / size))
            ranges.append([(i, slice(i * size, min(length, (i + 1) * size))) for i in shards])
        for pieces in itertools.product(*ranges):
            key: str = self.metadata.encode_chunk_key(tuple(i for i, _ in pieces))
            yield key, tuple(part for _, part in pieces)
