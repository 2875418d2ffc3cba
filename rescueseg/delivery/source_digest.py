"""By what a file, a folder, a pattern or a store elsewhere is known again: a change of any of its files shows."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rescueseg.storage import digest_json
from rescueseg.volumes.volume_files import VolumeImport

_DESCRIPTIONS = ("zarr.json", ".zattrs", ".zarray", ".zgroup", "attributes.json")
_CHANGES = ("size", "mtime", "LastModified", "last_modified", "updated", "created", "ETag", "etag", "md5Hash")
"""What file systems say of a file that another one in its place would not share."""


def source_digest(volume: VolumeImport) -> str:
    """Return the digest of what a volume is imported from, without reading a voxel.

    Parameters
    ----------
    volume : VolumeImport
        Its path may be a file, a folder, a pattern, a list of planes, ``file.h5:dataset`` or a URL.

    Returns
    -------
    str
        Of the path, what is said of it, and of each file its size and when it was changed. Of a store elsewhere the files
        that describe it stand for all of them: whoever writes a store anew writes these too.
    """
    files = [entry for name in volume.path.split("\n") for entry in _files(name)]
    said = None if volume.said is None else repr(volume.said)
    return digest_json([volume.path, files, list(volume.spacing or ()), said])


def _files(name: str) -> Iterator[list[Any]]:
    if "://" in name:
        try:
            fs, path = fsspec.core.url_to_fs(name)
        except (ImportError, ValueError):  # the import says what is wrong
            return
        if not isinstance(fs, LocalFileSystem):
            yield from _remote(fs, path)
            return
        name = path
    for path in _local(name):
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        yield from ([str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in inside)


def _local(name: str) -> list[Path]:
    """Return the files and folders that a path stands for, as the readers take it."""
    if Path(name).exists():
        return [Path(name)]
    if any(c in name for c in "*?["):
        return [Path(n) for n in sorted(glob.glob(name))]  # noqa: PTH207
    file = Path(name.rsplit(":", 1)[0])  # file.h5:dataset
    return [file] if file.is_file() else []


def _remote(fs: Any, path: str) -> Iterator[list[Any]]:
    folder = path.rstrip("/")
    described = [f"{folder}{level}/{name}" for level in ("", "/0") for name in _DESCRIPTIONS]
    for file in (path, *described):
        try:
            info = fs.info(file)
        except OSError:
            continue
        if info.get("type") == "file":
            yield [file, {key: str(info[key]) for key in _CHANGES if info.get(key) is not None}]
            if file == path:
                return
