"""Image volumes: importing, opening, reading. Axis order is always z, y, x, with channels ``czyx``."""

from __future__ import annotations

from rescueseg.volumes.opening import open_image, open_truth
from rescueseg.volumes.volume_import import import_volume

__all__ = ["import_volume", "open_image", "open_truth"]
