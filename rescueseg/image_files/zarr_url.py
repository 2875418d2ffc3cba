"""The Zarr store behind a URL."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.registry import known_implementations
from zarr.storage import FsspecStore, LocalStore

from rescueseg.errors import UnreadableVolumeError


def zarr_store(url: str) -> Any:
    """Return the Zarr v3 store for a local folder or any fsspec URL.

    Raises
    ------
    UnreadableVolumeError
        If the package that speaks the URL's protocol is not installed.
    """
    if "://" not in url:
        return LocalStore(url)
    protocol = url.split("://", 1)[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        entry: dict[str, str] = known_implementations.get(protocol, {})
        package = entry.get("class", "").split(".")[0]
        raise UnreadableVolumeError(
            f"{protocol}:// is not known"
            if not package
            else f"{protocol}:// needs the package {package}, which is not installed",
            where=url,
            todo=f"pip install {package}" if package not in ("", "fsspec") else str(error).rstrip("."),
        ) from error
    if isinstance(fs, fsspec.implementations.local.LocalFileSystem):
        return LocalStore(path)
    return FsspecStore.from_url(url)
