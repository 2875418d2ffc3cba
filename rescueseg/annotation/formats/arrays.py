"""NumPy's npz: labels as scripts and `RemoteClient` hand them in."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import Frame, Kind, LabelFile, PatchFiles, PatchMetadata, write_file
from rescueseg.annotation.formats.bounded import HEAD_BYTES, most_bytes, read_stream, too_large
from rescueseg.errors import LabelError
from rescueseg.labels import IGNORE, PatchLabels

_CLASSES, _INSTANCES, _FRAME = "classes", "instances", "frame"


class Npz:
    """``classes`` and, of objects, ``instances``, with a ``frame``; or one array alone, or one named ``array``."""

    name = "npz"
    extensions: tuple[str, ...] = (".npz",)
    carries: tuple[Kind, ...] = ("semantic", "instance")
    largest = 2**32 - 1
    ignore_apart = False

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image, uncertainty (one file) and mask."""
        ticket, inside = frame.ticket_id, view.inside.slices
        image, labels = folder / f"{ticket}_image.npz", folder / f"{ticket}_labels.npz"
        arrays: dict[str, Any] = {"image": view.image[(slice(None), *inside)]}
        if view.uncertainty is not None:
            arrays["uncertainty"] = view.uncertainty[inside]
        _save(image, arrays)
        is_resumed = labels.exists()
        if not is_resumed:
            self.write_labels(labels, view.start, frame)
        return PatchFiles(image, labels, folder / f"{ticket}.json", is_resumed)

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write classes and object numbers, each in its array."""
        fields = {"ticket": frame.ticket_id, "offset_zyx": frame.box.offset_zyx, "spacing": frame.spacing_um_zyx}
        text = np.frombuffer(json.dumps(fields).encode(), np.uint8)
        arrays: dict[str, npt.NDArray[Any]] = {_CLASSES: labels.classes, _FRAME: text}
        if labels.instances is not None:
            arrays[_INSTANCES] = labels.instances
        _save(path, arrays)

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read a label file; nothing is unpickled."""
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            metadata = _metadata(archive, names)
            name = _INSTANCES if frame.kind == "instance" and _INSTANCES in names else _CLASSES
            if name not in names:
                plain = [name for name in names if name != _FRAME]
                if "array" not in plain and len(plain) != 1:
                    raise ValueError(f"it holds {len(plain)} arrays; one named 'array' is needed")
                return LabelFile(_array(archive, "array" if "array" in plain else plain[0], frame), metadata)
            array = _array(archive, name, frame)
            if name == _CLASSES or array.shape != frame.box.shape_zyx:
                return LabelFile(array, metadata)
            classes = _array(archive, _CLASSES, frame)
            if classes.shape != array.shape or not np.array_equal(classes == 1, array > 0):
                raise LabelError(
                    "classes and objects do not fit each other",
                    todo="Give class 1 to the voxels of objects and no others",
                )
            return LabelFile(array, metadata, classes == IGNORE)

    def metadata(self, path: Path) -> PatchMetadata:
        """Return what ``frame`` says."""
        with zipfile.ZipFile(path) as archive:
            return _metadata(archive, [name.removesuffix(".npy") for name in archive.namelist()])


def _save(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_file(path, write)


def _head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of an npy stream, which then stands at its voxels."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(file)
    if kind.hasobject or kind.kind not in "buif":
        raise ValueError(f"an array of type {kind} holds no labels")
    return tuple(shape), bool(fortran), kind


def _array(archive: zipfile.ZipFile, name: str, frame: Frame) -> npt.NDArray[Any]:
    """Read one array; of another size, only its shape."""
    with archive.open(f"{name}.npy") as file:
        shape, fortran, kind = _head(file)
        if math.prod(shape) != frame.box.size:
            return np.broadcast_to(np.uint8(0), shape) if math.prod(shape) < 2**62 else _refuse()
        data = read_stream(file, most_bytes(frame.box.size))
        flat = np.frombuffer(data, kind)
        return flat.reshape(shape, order="F" if fortran else "C")


def _refuse() -> npt.NDArray[Any]:
    raise too_large()


def _metadata(archive: zipfile.ZipFile, names: list[str]) -> PatchMetadata:
    if _FRAME not in names:
        return PatchMetadata()
    with archive.open(f"{_FRAME}.npy") as file:
        _head(file)
        fields = json.loads(read_stream(file, HEAD_BYTES))
    z, y, x = (float(v) for v in fields["offset_zyx"])
    c, b, a = (float(v) for v in fields["spacing"])
    return PatchMetadata(str(fields["ticket"]), (z, y, x), (c, b, a))
