"""Phase 6: window grid, predictors, block engine and the maps they write."""

from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import QUANTITIES, map_blocks, map_reference, open_map

__all__ = ["QUANTITIES", "infer_volume", "map_blocks", "map_reference", "open_map"]
