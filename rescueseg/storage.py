"""Small files and Zarr stores below one URL: atomic writes, checked reads, no path that leaves the root."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from rescueseg.errors import CampaignError, StorageError, damaged, storage_errors

FORMAT = 2
"""Of the records that this version writes; raised when an earlier version would misread one."""
_KEYS = {1: {"format", "record"}, FORMAT: {"format", "record", "sha256"}}
"""What stands around a record, by format."""
_ARRAY = "array.npy"
"""Name of the one array in an npz file."""


def canonical_json(data: Any) -> str:
    """Return JSON with sorted keys and no spaces, for digests.

    Examples
    --------
    >>> canonical_json({"shape_zyx": (4, 8, 8), "axes": "zyx"})
    '{"axes":"zyx","shape_zyx":[4,8,8]}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_json(data: Any) -> str:
    """Return the sha256 of the canonical JSON of `data`.

    Examples
    --------
    The order of the keys does not matter:

    >>> digest_json({"axes": "zyx", "classes": 2})[:12]
    'b374fcb445f2'
    >>> digest_json({"classes": 2, "axes": "zyx"})[:12]
    'b374fcb445f2'
    """
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def digest_array(array: npt.NDArray[Any]) -> str:
    """Return the sha256 of an array's dtype, shape and C-order bytes.

    Examples
    --------
    The memory layout does not matter, the type of the voxels does:

    >>> mask = np.array([[[0, 1], [1, 255]]], dtype=np.uint8)
    >>> digest_array(mask) == digest_array(np.asfortranarray(mask))
    True
    >>> digest_array(mask) == digest_array(mask.astype(np.uint16))
    False
    """
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def file_digest(path: str) -> str:
    """Return the sha256 of a local file.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"the file cannot be read: {error.strerror}", where=path, todo="Check the path") from error


def check_format(version: Any, newest: int, where: str) -> None:
    """Refuse what a later version of rescueseg wrote.

    Parameters
    ----------
    version : int
        Format of the file.
    newest : int
        The latest that this version reads.
    where : str
        The file.

    Raises
    ------
    StorageError
        If the file's format is later, or no number.
    """
    if not isinstance(version, int) or version > newest:
        raise StorageError(
            f"a later version of rescueseg wrote this file: its format is {version}, this version reads up to {newest}",
            where=where,
            todo="Install that version or a later one, and run again; nothing was changed",
        )


def record_bytes(record: Any) -> bytes:
    """Return what the file of a record holds: its format, the record, and the sha256 of the record.

    Parameters
    ----------
    record : JSON value
        Also with tuples, or with numbers as keys: they are read back as lists and as texts.

    Examples
    --------
    >>> print(record_bytes({"z": 4}).decode().strip())
    {
     "format": 2,
     "record": {
      "z": 4
     },
     "sha256": "2cb4c442ff7a0c4a8785959b9b9b4cbad72240bc2648c27514b0db900513eaf4"
    }
    """
    as_read = json.loads(json.dumps(record, allow_nan=False))
    document = {"format": FORMAT, "record": as_read, "sha256": digest_json(as_read)}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def parse_record(data: bytes, where: str) -> Any:
    """Return the record in a file that `record_bytes` made, or an earlier version.

    Format 1 has no checksum; before it, the file held the bare record.

    Parameters
    ----------
    data : bytes
        All of the file.
    where : str
        Its path, for the error message.

    Raises
    ------
    StorageError
        If it is damaged, or of a later format than this version reads.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"{error}" if data else "it is empty") from error
    if not isinstance(document, dict) or not ("record" in document or len(_KEYS[FORMAT] & document.keys()) > 1):
        return document
    version = document.get("format")
    if isinstance(version, int):
        check_format(version, FORMAT, where)
    if not isinstance(version, int) or document.keys() != _KEYS.get(version):
        raise damaged(where, "what stands around its record is not what was written")
    if version > 1 and document["sha256"] != _digest_or_none(document["record"]):
        raise damaged(where, "its checksum does not fit what it holds")
    return document["record"]


def _digest_or_none(record: Any) -> str | None:
    """Return the digest of a record, None of one with a number that JSON does not know, which is never written."""
    try:
        return digest_json(record)
    except ValueError:
        return None


def write_atomically(path: Path, data: bytes, *, read_only: bool = False) -> None:
    """Write a local file so that a reader, or a rerun after a kill, finds the old or the new one, never a part.

    Parameters
    ----------
    path : Path
        The file; its folder is made when missing.
    data : bytes
        All of it.
    read_only : bool
        Whether nobody may write into the file from then on; it can still be replaced or removed.

    Raises
    ------
    StorageError
        If the disk is full or not writable; the old file is untouched.
    """
    with storage_errors(str(path)):
        new_folders = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            if read_only:
                os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        for folder in dict.fromkeys((path.parent, *(new.parent for new in new_folders))):
            _sync_folder(folder)


@contextmanager
def replace_atomically(path: Path, *, ending: str = "") -> Iterator[Path]:
    """Yield where to write a local file or folder; once it is written, it takes its place, all of it or nothing.

    It is written to no disk by force, as `write_atomically` does: a power cut may take back what was replaced.

    Parameters
    ----------
    path : Path
        The file or folder, in a folder that exists. An old file is replaced; an old folder must be removed before.
    ending : str
        What the name must end with, for writers that go by it, such as ``.nii.gz``.

    Yields
    ------
    Path
        A new hidden name beside it. On an error what was written there is removed, and the old file untouched.

    Raises
    ------
    OSError
        If it cannot be moved to its place.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part{ending}")
    try:
        yield part
        part.replace(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Storage:
    """A root URL and what lies below it.

    Parameters
    ----------
    url : str
        A local folder or any fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.fs, root = fsspec.core.url_to_fs(url)
        self.is_local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)
        self.root = str(Path(root).resolve()) if self.is_local else root.rstrip("/")
        self.url = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def path(self, relative: str) -> str:
        """Return the full path of something below the root.

        Raises
        ------
        CampaignError
            If the path is absolute or climbs out of the root.
        """
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or "\0" in relative:
            raise CampaignError(
                f"the path '{relative}' leaves the campaign",
                where=self.url,
                todo="Use a path below the campaign folder",
            )
        if self.is_local and not Path(self.root, relative).resolve().is_relative_to(self.root):
            raise CampaignError(
                f"the path '{relative}' leaves the campaign by a link", where=self.url, todo="Remove the link"
            )
        return f"{self.root}/{parts}" if str(parts) != "." else self.root

    def name_of(self, relative: str) -> str:
        """Return what messages call something below the root; unlike `path`, nothing is looked up on the disk."""
        return f"{self.root}/{relative}"

    def url_of(self, relative: str) -> str:
        """Return the URL of something below the root, as another process opens it."""
        path = self.path(relative)
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def exists(self, relative: str) -> bool:
        """Tell whether a file or folder is there."""
        return bool(self.fs.exists(self.path(relative)))

    def list(self, relative: str) -> list[str]:
        """Return the sorted names inside a folder; empty when it does not exist."""
        if not self.exists(relative):
            return []
        self.fs.invalidate_cache()
        return sorted(
            str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(self.path(relative), detail=False)
        )

    def write_bytes(self, relative: str, data: bytes, *, read_only: bool = False) -> None:
        """Write a file so that a reader sees the old or the new one, never a part; `read_only` is for local ones.

        Raises
        ------
        StorageError
            If the disk is full or not writable; the old file is untouched.
        """
        path = self.path(relative)
        if self.is_local:
            write_atomically(Path(path), data, read_only=read_only)
            return
        with storage_errors(path):
            self.fs.pipe_file(path, data)

    def read_bytes(self, relative: str) -> bytes:
        """Read a file.

        Raises
        ------
        StorageError
            If it is not there.
        """
        path = self.path(relative)
        try:
            return bytes(self.fs.cat_file(path))
        except FileNotFoundError as error:
            raise StorageError(
                "the file is missing", where=path, todo="Restore it or run the step that writes it"
            ) from error
        except IsADirectoryError as error:
            raise damaged(path, "a folder stands in its place") from error
        except OSError as error:
            raise StorageError(
                f"the file cannot be read: {error.strerror or error}",
                where=path,
                todo="Check its owner and the disk, then run again",
            ) from error

    def write_json(self, relative: str, record: Any) -> None:
        """Write a record atomically, with its format and its checksum; see `record_bytes`."""
        self.write_bytes(relative, record_bytes(record))

    def read_json(self, relative: str) -> Any:
        """Return the record that `write_json` wrote, or an earlier version.

        Raises
        ------
        StorageError
            If it is missing, damaged, or of a later format than this version reads.
        """
        return parse_record(self.read_bytes(relative), self.path(relative))

    def write_array(self, relative: str, array: npt.NDArray[Any], *, read_only: bool = False) -> None:
        """Write one array as compressed npz, atomically; `read_only` as in `write_atomically`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, array=array)
        self.write_bytes(relative, buffer.getvalue(), read_only=read_only)

    def read_array(self, relative: str) -> npt.NDArray[Any]:
        """Read what `write_array` wrote, and check it by the CRC in the file; nothing is unpickled.

        Raises
        ------
        StorageError
            If it is missing or damaged.
        """
        content = self.read_bytes(relative)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                member = io.BytesIO(archive.read(_ARRAY))  # to its end, where the CRC is compared
            array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        except MemoryError:
            raise
        except Exception as error:  # the readers of damaged files raise nearly anything
            what = str(error) or type(error).__name__
            raise damaged(self.path(relative), what if content else "it is empty") from error
        return array

    def remove(self, relative: str) -> None:
        """Remove a file or folder, if there."""
        path = self.path(relative)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)
