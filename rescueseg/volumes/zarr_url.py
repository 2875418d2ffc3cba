"""The Zarr store behind a URL."""

from __future__ import annotations

from typing import Any

import fsspec
from zarr.storage import FsspecStore, LocalStore


def zarr_store(url: str) -> Any:
    """Return the Zarr v3 store for a local folder or any fsspec URL."""
    if "://" not in url:
        return LocalStore(url)
    fs, path = fsspec.core.url_to_fs(url)
    if isinstance(fs, fsspec.implementations.local.LocalFileSystem):
        return LocalStore(path)
    return FsspecStore.from_url(url)
