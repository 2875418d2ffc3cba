"""The files of a Zarr folder: how large each one is and what is in it, noted while they are written.

A folder of Zarr says nothing about which of its shards exist: one that was lost reads as black. What was written is
therefore listed, and `rescueseg.volumes.checked_array` holds what it reads against the list.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import google_crc32c
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import WrapperStore

from rescueseg.errors import damaged, storage_errors
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.storage import Storage

_PIECE = 2**20
METADATA = "zarr.json"


class FileSum(NamedTuple):
    """What is known of a file: its bytes, and two checksums."""

    size: int
    crc32c: int
    """Checked when it is first read: a hundred times quicker than decoding it."""
    sha256: str
    """Checked by `rescueseg verify`."""


FileTable = Mapping[str, FileSum]
"""By path below the folder, as Zarr names it: ``0/c/0/0/1/0``, ``labels/truth/zarr.json``."""


def sum_of(*pieces: Any) -> FileSum:
    """Return the sums of a file's content, given in one or several pieces.

    Examples
    --------
    >>> sum_of(b"123456789").crc32c == sum_of(b"1234", b"56789").crc32c == 0xE3069283
    True
    """
    return _sum(pieces)


def _sum(pieces: Iterable[Any]) -> FileSum:
    size, crc, sha = 0, 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        crc = google_crc32c.extend(crc, piece)
        sha.update(piece)
    return FileSum(size, crc, sha.hexdigest())


def sum_of_file(storage: Storage, path: str) -> FileSum:
    """Return the sums of a stored file, read in small pieces.

    Raises
    ------
    StorageError
        If it is missing or cannot be read.
    """
    full = storage.path(path)
    try:
        with storage.fs.open(full, "rb") as file:
            return _sum(iter(lambda: file.read(_PIECE), b""))
    except FileNotFoundError as error:
        raise damaged(full, "it is missing") from error
    except OSError as error:
        raise damaged(full, f"it cannot be read: {error.strerror or error}") from error


def check_file(storage: Storage, path: str, expected: FileSum) -> None:
    """Read all of a file and hold it against its sums.

    Raises
    ------
    StorageError
        If it is missing, or holds anything else.
    """
    content = sum_of_file(storage, path)
    if content.size != expected.size:
        raise damaged(storage.path(path), f"it holds {content.size} bytes, {expected.size} were written")
    if content != expected:
        raise damaged(storage.path(path), "its checksum does not fit what it holds")


def zarr_files(storage: Storage, folder: str) -> Iterator[str]:
    """Yield the files in a folder that Zarr would read, as paths below the folder."""
    root = PurePosixPath(storage.path(folder))
    for place, _, names in storage.fs.walk(str(root)):
        inner = PurePosixPath(place).relative_to(root)
        for name in names:
            if name == METADATA or ("c" in inner.parts and name.isdigit()):
                yield str(inner / name)


class WrittenFiles:
    """Notes the sums of the shards that are written into a folder, while their bytes are at hand.

    Parameters
    ----------
    url : str
        The folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sums: dict[str, FileSum] = {}

    def store(self, url: str) -> Any:
        """Return the Zarr store of the folder, or of one below it; what is written through it is noted.

        Raises
        ------
        UnreadableVolumeError
            If the package that speaks the URL's protocol is not installed.
        """
        inner = url.removeprefix(self.url).strip("/")
        return _NotingStore(zarr_store(url), self.sums, f"{inner}/" if inner else "")

    def table(self, storage: Storage, folder: str) -> dict[str, FileSum]:
        """Return the sums of all files in the folder: those noted, and those of its metadata, which are read.

        Raises
        ------
        StorageError
            If a file is missing or has another size than was written.
        """
        table = {}
        for name in sorted({*zarr_files(storage, folder), *self.sums}):
            path = f"{folder}/{name}"
            table[name] = self.sums.get(name) or sum_of_file(storage, path)
            if not storage.exists(path) or storage.fs.size(storage.path(path)) != table[name].size:
                raise damaged(storage.path(path), "it is not what was just written")
        return table


class _NotingStore(WrapperStore[Store]):
    """Notes what is written; metadata are rewritten through other stores as well, and so not noted."""

    def __init__(self, store: Store, sums: dict[str, FileSum], prefix: str) -> None:
        super().__init__(store)
        self._sums, self._prefix = sums, prefix

    def _with_store(self, store: Store) -> _NotingStore:
        return _NotingStore(store, self._sums, self._prefix)

    async def set(self, key: str, value: Buffer) -> None:
        if not key.endswith(METADATA):
            self._sums[self._prefix + key] = await asyncio.to_thread(sum_of, value.as_numpy_array())
        await self._store.set(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self._sums.pop(self._prefix + key, None)
        await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        for name in [n for n in self._sums if n.startswith(f"{self._prefix}{prefix}")]:
            del self._sums[name]
        await self._store.delete_dir(prefix)


def sync_files(storage: Storage, folder: str, names: Iterable[str]) -> None:
    """Wait until files and the folders that hold them outlast a power cut; elsewhere than on a local disk they do.

    Parameters
    ----------
    storage : Storage
        What they lie in.
    folder : str
        The folder that they lie in at any depth; it is among those waited for.
    names : iterable of str
        Their paths below it.

    Raises
    ------
    StorageError
        If the disk is full.
    """
    if not storage.is_local:
        return
    root = Path(storage.path(folder))
    folders = {root}
    with storage_errors(str(root)):
        for name in names:
            path = root / name
            _sync(path)
            folders.update(p for p in path.parents if p.is_relative_to(root))
        for place in sorted(folders, key=lambda p: len(p.parts), reverse=True):
            _sync(place)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
