"""Cellpose's network on slices of three orientations, trained by our own loop: flows that point to each object's middle."""
