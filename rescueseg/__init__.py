"""rescueseg: rescue hard 3D microscopy segmentations with the fewest annotated voxels."""

from __future__ import annotations

__version__ = "0.2.0"
