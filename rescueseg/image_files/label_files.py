"""Label files on the grid of their image: truth and scribbles, read by one rule.

Where both files say how their grids lie, labels that a tool saved turned or flipped are turned back, and labels of
another place are refused. Where one of them says nothing, voxels are matched in the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nrrd
import numpy as np
import numpy.typing as npt

from rescueseg.errors import LabelError
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.image_files.nrrd_files import is_nrrd, nrrd_placement
from rescueseg.image_files.placement import Placement, Turn, turn_onto
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.segments import merge_segments, read_segments
from rescueseg.image_files.source import ArraySource, Source, unreadable

_TODO = "Export the labels on the grid of their image, unresampled and uncropped"


@dataclass(frozen=True)
class Grid:
    """The voxels of an image.

    Parameters
    ----------
    shape_zyx : tuple of int
        How many.
    placement : Placement or None
        Where they lie in the space of the image's file.
    """

    shape_zyx: ZYX
    placement: Placement | None = None

    @classmethod
    def of(cls, image: Source) -> Grid:
        """Return the grid of an image."""
        return cls(image.shape_zyx, image.placement)


def open_labels(path: str, grid: Grid, names: Mapping[str, int]) -> Source:
    """Open a label file, laid on the grid of its image.

    Parameters
    ----------
    path : str
        Any format of `open_source`; of a segmentation of 3D Slicer, classes are known by the names of its segments.
    grid : Grid
        The image.
    names : mapping of str to int
        Number of each class by its name; empty where the numbers are objects.

    Returns
    -------
    Source
        One channel of the image's shape.

    Raises
    ------
    UnreadableVolumeError, InvalidVolumeError
        If the file cannot be read.
    LabelError
        If it is of another shape, place, spacing or orientation, or its segments are no classes.
    """
    segmentation = _open_segmentation(path, names) if is_nrrd(path) else None
    labels = segmentation or open_source(path)
    try:
        with unreadable(path):
            return lay_on(labels, grid, cropped=segmentation is not None)
    except BaseException:
        labels.close()
        raise


def _open_segmentation(path: str, names: Mapping[str, int]) -> Source | None:
    """Open a segmentation of 3D Slicer; None for other NRRD files."""
    with unreadable(path):
        segments = read_segments(nrrd.read_header(path))
        if not segments:
            return None
        voxels, header = nrrd.read(path, index_order="F")
        layers = voxels if voxels.ndim == 4 else voxels[np.newaxis]
        merged = merge_segments(layers, segments, names)
        return ArraySource(merged, "xyz", None, path, chunked=False, placement=nrrd_placement(header))


def lay_on(labels: Source, grid: Grid, *, cropped: bool = False) -> Source:
    """Return labels as they lie on the grid of their image.

    Parameters
    ----------
    labels : Source
        As their file holds them.
    grid : Grid
        The image.
    cropped : bool
        Whether they may cover a part of the image only; the rest is background.

    Raises
    ------
    LabelError
        If they do not lie on it.
    """
    if labels.channels != 1:
        raise LabelError(f"the labels have {labels.channels} channels: shape {labels.shape}", todo="Save one channel")
    turn = Turn()
    if labels.placement is not None and grid.placement is not None and labels.placement.space == grid.placement.space:
        turn = turn_onto(grid.placement, labels.placement, labels.shape_zyx)
    shape = turn.shape(labels.shape_zyx)
    covered = Box(turn.start_zyx, shape) if min(turn.start_zyx) >= 0 else None
    is_whole = shape == grid.shape_zyx and turn.start_zyx == (0, 0, 0)
    if not is_whole and not (cropped and covered and Box((0, 0, 0), grid.shape_zyx).contains(covered)):
        begin = "" if turn.start_zyx == (0, 0, 0) else f", begin at voxel {turn.start_zyx} of it"
        turned = "" if turn.is_none else f" ({turn})"
        raise LabelError(
            f"the labels have shape {shape}{turned}, the image {grid.shape_zyx} (z y x){begin}", todo=_TODO
        )
    return labels if is_whole and turn.is_none else _LaidLabels(labels, turn, grid.shape_zyx)


@dataclass(frozen=True)
class _LaidLabels:
    """Labels turned and placed on the grid of their image."""

    labels: Source
    turn: Turn
    shape_zyx: ZYX
    channels: int = 1
    spacing_um_zyx: Spacing | None = None
    spacing_note: str = ""
    placement: Placement | None = None
    hints: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image."""
        return self.shape_zyx

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type."""
        return self.labels.dtype

    @property
    def chunked(self) -> bool:
        """As of the file."""
        return self.labels.chunked

    @property
    def remarks(self) -> tuple[str, ...]:
        """As of the file, and what was turned."""
        turned = () if self.turn.is_none else (f"labels turned to the image as their header says: {self.turn}",)
        return (*self.labels.remarks, *turned)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box of the image, czyx; outside of the labels there is background."""
        voxels = np.zeros((1, *box.shape_zyx), self.dtype)
        covered = Box(self.turn.start_zyx, self.turn.shape(self.labels.shape_zyx))
        part = box.intersection(covered)
        if part is None:
            return voxels
        inside = part.relative_to(covered)
        start, shape = [0, 0, 0], [0, 0, 0]
        for axis, (source, flipped) in enumerate(zip(self.turn.axes, self.turn.flipped, strict=True)):
            length = self.labels.shape_zyx[source]
            start[source] = length - inside.stop_zyx[axis] if flipped else inside.offset_zyx[axis]
            shape[source] = inside.shape_zyx[axis]
        stored = self.labels.read(Box(zyx(start), zyx(shape)))[0]
        voxels[(0, *part.relative_to(box).slices)] = self.turn.apply(stored)
        return voxels

    def close(self) -> None:
        """Close the file."""
        self.labels.close()
