"""Label files on the grid of their image: truth and scribbles, read by one rule.

Where both files say how their grids lie, labels that a tool saved turned or flipped are turned back, and labels of
another place are refused. Where one of them says nothing, voxels are matched in the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import nrrd
import numpy as np
import numpy.typing as npt

from rescueseg.errors import InvalidVolumeError, LabelError
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.image_files.nrrd_files import is_nrrd, nrrd_placement
from rescueseg.image_files.placement import Placement, Turn, turn_onto
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.segments import merge_segments, read_segments
from rescueseg.image_files.source import ArraySource, Source, Statement, unreadable

_SAME_SPACING = 1e-2
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
    spacing_um_zyx : tuple of float or None
        The voxel size that the image's file states.
    """

    shape_zyx: ZYX
    placement: Placement | None = None
    spacing_um_zyx: Spacing | None = None

    @classmethod
    def of(cls, image: Source) -> Grid:
        """Return the grid of an image."""
        return cls(image.shape_zyx, image.placement, image.spacing_um_zyx)


def open_labels(path: str, grid: Grid, names: Mapping[str, int], said: Statement | None = None) -> Source:
    """Open a label file, laid on the grid of its image.

    Parameters
    ----------
    path : str
        Any format of `open_source`; of a segmentation of 3D Slicer, classes are known by the names of its segments.
    grid : Grid
        The image.
    names : mapping of str to int
        Number of each class by its name; empty where the numbers are objects.
    said : Statement, optional
        What a person says of the image where the labels are of the same format: it holds for them too, without the
        axes that labels do not have.

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
    labels = segmentation or _open_as_said(path, said)
    try:
        with unreadable(path):
            return lay_on(labels, grid, cropped=segmentation is not None)
    except BaseException:
        labels.close()
        raise


def _open_as_said(path: str, said: Statement | None) -> Source:
    """Open labels by what a person says of their image, as far as it fits them."""
    if said is None or said == Statement():
        return open_source(path)
    plain = replace(said, axes="".join(a for a in said.axes if a in "zyx"), series=None, position=None)
    statements = dict.fromkeys([said, replace(said, axes=plain.axes), replace(plain, axes=said.axes), plain])
    for statement in statements:
        with suppress(InvalidVolumeError):
            source = open_source(path, statement)
            if statement.axes and isinstance(source, ArraySource):
                source.remarks = (*source.remarks, f"read with the axes {statement.axes}, as said of the image")
            return source
    return open_source(path, said)


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
    turn, remark = Turn(), ""
    if labels.placement is None and grid.placement is None:
        _require_same_spacing(labels.spacing_um_zyx, grid.spacing_um_zyx)
    elif labels.placement is None or grid.placement is None:
        _require_same_spacing(labels.spacing_um_zyx, grid.spacing_um_zyx)
        silent, telling = ("image", "labels") if grid.placement is None else ("labels", "image")
        remark = (
            f"the file of the {telling} says how it lies in space and that of the {silent} does not: voxels are matched "
            "in the order of the files"
        )
    elif labels.placement.space == grid.placement.space:
        turn = turn_onto(grid.placement, labels.placement, labels.shape_zyx)
    else:
        remark = (
            f"the labels lie in {labels.placement.space} space and their image in {grid.placement.space} space, which "
            "cannot be compared: voxels are matched in the order of the files"
        )
    shape = turn.shape(labels.shape_zyx)
    covered = Box(turn.start_zyx, shape) if min(turn.start_zyx) >= 0 else None
    is_whole = shape == grid.shape_zyx and turn.start_zyx == (0, 0, 0)
    if not is_whole and not (cropped and covered and Box((0, 0, 0), grid.shape_zyx).contains(covered)):
        begin = "" if turn.start_zyx == (0, 0, 0) else f", begin at voxel {turn.start_zyx} of it"
        turned = "" if turn.is_none else f" ({turn})"
        raise LabelError(
            f"the labels have shape {shape}{turned}, the image {grid.shape_zyx} (z y x){begin}", todo=_TODO
        )
    return labels if is_whole and turn.is_none and not remark else _LaidLabels(labels, turn, grid.shape_zyx, remark)


def _require_same_spacing(labels: Spacing | None, image: Spacing | None) -> None:
    """Refuse labels whose file states another voxel size than that of their image; 1 × 1 × 1 is what nobody stated."""
    if labels is None or image is None or labels == (1.0, 1.0, 1.0):
        return
    if not np.allclose(labels, image, rtol=_SAME_SPACING, atol=0):
        sizes = [" × ".join(f"{s:.6g}" for s in spacing) for spacing in (labels, image)]
        raise LabelError(f"the labels have voxels of {sizes[0]} µm, their image of {sizes[1]} µm (z, y, x)", todo=_TODO)


@dataclass(frozen=True)
class _LaidLabels:
    """Labels turned and placed on the grid of their image."""

    labels: Source
    turn: Turn
    shape_zyx: ZYX
    remark: str = ""
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
        return (*self.labels.remarks, *turned, *([self.remark] if self.remark else []))

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
