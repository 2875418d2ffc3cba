"""Foreign image and label files, each opened as a `Source`: what it holds, how large a voxel is, where it lies."""

from __future__ import annotations

from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Source, Statement

__all__ = ["Source", "Statement", "open_source"]
