"""OME-Zarr 0.5: the patch as an image with its labels inside, as napari, Fiji's and web viewers open it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import (
    Frame,
    Kind,
    LabelFile,
    PatchFiles,
    PatchMetadata,
    marked_ticket,
    medical_dtype,
    number_array,
    ticket_mark,
)
from rescueseg.annotation.formats.bounded import most_bytes, too_large
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.image_files import ome_axes
from rescueseg.image_files.axes import axes_of_names
from rescueseg.labels import PatchLabels
from rescueseg.storage import replace_atomically
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout

LABELS, IGNORED = "annotation", "ignore"
_CHUNK_BYTES = 1 << 26


class OmeZarr:
    """A folder: the image, and below it ``labels/annotation`` and, beside objects, ``labels/ignore``.

    A chunk that is not there reads as background, as Zarr has it.
    """

    name = "ome-zarr"
    extensions: tuple[str, ...] = (".ome.zarr", ".zarr")
    carries: tuple[Kind, ...] = ("semantic", "instance")
    largest = 2**32 - 1
    ignore_apart = False

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image and mask as one folder, uncertainty as another."""
        ticket, inside = frame.ticket_id, view.inside.slices
        target, others = folder / f"{ticket}.ome.zarr", []
        is_resumed = target.exists()
        if not is_resumed:
            _write(target, view.image[(slice(None), *inside)], frame.box, frame, view.start)
        if view.uncertainty is not None:
            others.append(folder / f"{ticket}_uncertainty.ome.zarr")
            if not others[-1].exists():
                _write(others[-1], view.uncertainty[inside], frame.box, frame)
        return PatchFiles(target, target, folder / f"{ticket}.json", is_resumed, None, tuple(others))

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write labels into an image that is there; where there is none, beside an empty one."""
        number_array(labels, self.largest, "an OME-Zarr")
        if path.exists():
            _write_labels(path, labels, frame)
        else:
            _write(path, np.zeros(frame.box.shape_zyx, np.uint8), frame.box, frame, labels)

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read ``labels/annotation``, or the label image itself, where its own path is given."""
        if empty := next((p for p in path.rglob("*") if p.is_file() and p.stat().st_size == 0), None):
            raise ValueError(f"{empty.relative_to(path)} is empty")  # Zarr would take it for a chunk of background
        group, labels = _open(path)
        metadata = _metadata(group, labels)
        array = _array(labels, frame)
        has_ignore = frame.kind == "instance" and isinstance(group, zarr.Group)
        ignore = group.get(f"labels/{IGNORED}") if has_ignore else None
        return LabelFile(array, metadata, None if ignore is None else _array(ignore, frame) != 0)

    def metadata(self, path: Path) -> PatchMetadata:
        """Return ticket, position and spacing from the metadata."""
        return _metadata(*_open(path))


def _write(path: Path, image: npt.NDArray[Any], box: Box, frame: Frame, labels: PatchLabels | None = None) -> None:
    """Write an image that covers `box`, and its labels, beside the target and move it there."""
    voxels = medical_dtype(image)
    layout = ImageLayout(
        voxels.shape,
        voxels.dtype,
        frame.spacing_um_zyx,
        name=frame.ticket_id,
        attributes={"rescueseg": ticket_mark(frame.ticket_id)},
        origin_um_zyx=_origin(box, frame),
    )
    with replace_atomically(path) as part:
        level = ome_zarr.create_image(str(part), layout)
        level[...] = voxels
        if labels is not None:
            _write_labels(part, labels, frame)


def _write_labels(path: Path, labels: PatchLabels, frame: Frame) -> None:
    arrays = {LABELS: number_array(labels, 2**32 - 1, "an OME-Zarr")}
    if labels.instances is not None:
        arrays[IGNORED] = labels.ignore.astype(np.uint8)
    for name, array in arrays.items():
        level = ome_zarr.create_labels(
            str(path), name, array.shape, array.dtype, frame.spacing_um_zyx, _origin(frame.box, frame)
        )
        level[...] = array


def _origin(box: Box, frame: Frame) -> list[float]:
    return [o * s for o, s in zip(box.offset_zyx, frame.spacing_um_zyx, strict=True)]


def _open(path: Path) -> tuple[Any, Any]:
    """Return what was opened and its labels: twice the same, where the path is that of the labels.

    Raises
    ------
    LabelError
        If the image has label images beside ours: which one was painted would be a guess.
    """
    node: Any = zarr.open(LocalStore(path, read_only=True), mode="r")
    if isinstance(node, zarr.Array):
        return node, node
    others = sorted(set(node["labels"].group_keys()) - {IGNORED}) if "labels" in node else []
    if others and others != [LABELS]:
        raise LabelError(
            f"it holds the label images {', '.join(others)}",
            todo=f"Hand in the painted one by its path, such as {path.name}/labels/{others[-1]}",
        )
    return node, node.get(f"labels/{LABELS}", node)


def _level(labels: Any) -> tuple[Any, str]:
    """Return the full resolution of a label image, or a plain array, and its axes; nothing where it names none."""
    if isinstance(labels, zarr.Array):
        names = [str(name or "") for name in getattr(labels.metadata, "dimension_names", None) or ()]
        if not any(names):
            return labels, ""
        axes = axes_of_names(names)
        if len(axes) != labels.ndim:
            raise LabelError(f"its axes {', '.join(names)} are not known", todo="Save the mask with the axes z, y, x")
        return labels, axes
    multiscale = _multiscale(labels)
    level = labels[multiscale["datasets"][0]["path"]]
    return level, ome_axes.letters(multiscale, level.ndim, "")


def _multiscale(labels: Any) -> dict[str, Any]:
    attributes = labels.attrs.asdict()
    return dict(attributes.get("ome", attributes)["multiscales"][0])


def _array(labels: Any, frame: Frame) -> npt.NDArray[Any]:
    """Read the full resolution of a label image as zyx; of another size, only its shape."""
    level, axes = _level(labels)
    if math.prod(level.shape) != frame.box.size:
        return np.broadcast_to(np.uint8(0), tuple(level.shape))
    largest = math.prod(level.shards or level.chunks) * level.dtype.itemsize
    if level.dtype.kind not in "buif" or largest > max(_CHUNK_BYTES, most_bytes(frame.box.size)):
        raise too_large()
    array = np.asarray(level[...])
    if not axes:
        return array
    if not set("zyx") <= set(axes):
        raise LabelError(f"its axes are {axes}", todo="Save the mask with the axes z, y, x")
    order = [*(i for i, a in enumerate(axes) if a not in "zyx"), *(axes.index(a) for a in "zyx")]
    return array.transpose(order).reshape([level.shape[axes.index(a)] for a in "zyx"])


def _metadata(node: Any, labels: Any) -> PatchMetadata:
    """Return what the metadata say of ticket, place and voxel size, by the reading of images."""
    ticket = marked_ticket(node.attrs.get("rescueseg"))
    if isinstance(labels, zarr.Array):
        return PatchMetadata(ticket)
    multiscale, (_, axes) = _multiscale(labels), _level(labels)
    spacing, _ = ome_axes.spacing(multiscale, 0, axes, labels)
    if spacing is None:
        return PatchMetadata(ticket)
    placement = ome_axes.placement(multiscale, 0, axes, labels)
    if placement is None:
        return PatchMetadata(ticket, (0.0, 0.0, 0.0), spacing)
    z, y, x = (float(placement.affine[row, 3]) / s for row, s in zip((2, 1, 0), spacing, strict=True))
    return PatchMetadata(ticket, (z, y, x), spacing)
