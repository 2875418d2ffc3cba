"""Phase 6: window grid, predictors, block engine and the maps they write."""

from rescueseg.inference.maps import QUANTITIES, map_blocks, map_reference, open_map

__all__ = ["QUANTITIES", "map_blocks", "map_reference", "open_map"]
