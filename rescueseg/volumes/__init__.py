"""Image volumes: importing, opening, reading. Axis order is always z, y, x, with channels ``czyx``."""

from __future__ import annotations

from rescueseg.volumes.opening import open_image, open_truth
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

__all__ = ["VolumeImport", "import_volume", "open_image", "open_truth"]
