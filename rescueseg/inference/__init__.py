"""A model over whole volumes: windows, blending, statistics over members, the maps they are written to."""
