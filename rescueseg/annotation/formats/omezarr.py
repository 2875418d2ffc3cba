"""OME-Zarr 0.5: the patch as an image with its labels inside, as napari, Fiji's and web viewers open it."""

from __future__ import annotations

import math
import shutil
import uuid
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
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.source import to_um

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
        ignore = group.get(f"labels/{IGNORED}") if frame.kind == "instance" else None
        return LabelFile(array, metadata, None if ignore is None else _array(ignore, frame) != 0)

    def metadata(self, path: Path) -> PatchMetadata:
        """Return ticket, position and spacing from the metadata."""
        return _metadata(*_open(path))


def _write(path: Path, image: npt.NDArray[Any], box: Box, frame: Frame, labels: PatchLabels | None = None) -> None:
    """Write an image that covers `box`, and its labels, beside the target and move it there."""
    part = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    voxels = medical_dtype(image)
    try:
        attributes = {"rescueseg": ticket_mark(frame.ticket_id)}
        level = ome_zarr.create_image(
            str(part), voxels.shape, voxels.dtype, frame.spacing_um_zyx,
            name=frame.ticket_id, attributes=attributes, origin_um_zyx=_origin(box, frame),
        )  # fmt: skip
        level[...] = voxels
        if labels is not None:
            _write_labels(part, labels, frame)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
    """Return the groups of an image and of its labels: twice the same, where the path is that of the labels."""
    group = zarr.open_group(LocalStore(path, read_only=True), mode="r")
    return group, group.get(f"labels/{LABELS}", group)


def _array(labels: Any, frame: Frame) -> npt.NDArray[Any]:
    """Read the full resolution of a label image; of another size, only its shape."""
    ome = labels.attrs.asdict()
    level = labels[ome.get("ome", ome)["multiscales"][0]["datasets"][0]["path"]]
    if math.prod(level.shape) != frame.box.size:
        return np.broadcast_to(np.uint8(0), tuple(level.shape))
    largest = math.prod(level.shards or level.chunks) * level.dtype.itemsize
    if level.dtype.kind not in "buif" or largest > max(_CHUNK_BYTES, most_bytes(frame.box.size)):
        raise too_large()
    return np.asarray(level[...])


def _metadata(group: Any, labels: Any) -> PatchMetadata:
    """Return what the metadata say; the multiscale's own transformation comes after that of the level."""
    attributes = labels.attrs.asdict()
    multiscale = attributes.get("ome", attributes)["multiscales"][0]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale["axes"]]
    scale, origin = np.ones(len(axes)), np.zeros(len(axes))
    dataset = multiscale["datasets"][0]
    for step in (*dataset.get("coordinateTransformations", []), *multiscale.get("coordinateTransformations", [])):
        if step["type"] == "scale":
            scale, origin = scale * step["scale"], origin * step["scale"]
        elif step["type"] == "translation":
            origin = origin + step["translation"]
    ticket = marked_ticket(group.attrs.get("rescueseg"))
    units = [to_um(1.0, axis.get("unit")) for axis in axes[-3:]]
    if len(axes) < 3 or any(unit is None for unit in units):
        return PatchMetadata(ticket)
    z, y, x = (float(s) * float(u or 1) for s, u in zip(scale[-3:], units, strict=True))
    k, j, i = (float(o) / float(s) for o, s in zip(origin[-3:], scale[-3:], strict=True))
    return PatchMetadata(ticket, (k, j, i), (z, y, x))
