"""NRRD: what 3D Slicer saves; label files are its segmentations, with names and colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import (
    Frame,
    Kind,
    LabelFile,
    PatchFiles,
    PatchMetadata,
    colour,
    marked_ticket,
    medical_dtype,
    number_array,
    ticket_mark,
    write_file,
)
from rescueseg.annotation.formats.bounded import HEAD_BYTES, most_bytes, read_file, too_large, unpack
from rescueseg.annotation.formats.itksnap import write_with_workspace
from rescueseg.annotation.formats.space import affine_mm, straighten, uncrop
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.image_files.nrrd_files import nrrd_dtype, nrrd_placement
from rescueseg.image_files.segments import merge_segments, read_segments
from rescueseg.labels import PatchLabels

_MOST_LAYERS = 64


class Nrrd:
    """NRRD; written in RAS millimetre with gzip, labels as 3D Slicer's ``.seg.nrrd``."""

    name = "nrrd"
    extensions: tuple[str, ...] = (".seg.nrrd", ".nrrd", ".nhdr")
    carries: tuple[Kind, ...] = ("semantic", "instance")
    largest = 2**32 - 1
    ignore_apart = True

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image, mask, uncertainty, surroundings, and an ITK-SNAP workspace of them."""
        return write_with_workspace(self, folder, view, frame)

    def write_image(self, path: Path, image: npt.NDArray[Any], box: Box, frame: Frame) -> None:
        """Write a czyx or zyx image that covers `box`."""
        voxels = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
        write_nrrd(path, voxels, affine_mm(frame.spacing_um_zyx, box.offset_zyx), {})

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write classes or object numbers as segments of one layer."""
        fields = {"rescueseg": ticket_mark(frame.ticket_id)} | _segments(frame.names(labels), frame.box)
        affine = affine_mm(frame.spacing_um_zyx, frame.box.offset_zyx)
        write_nrrd(path, number_array(labels, self.largest, "NRRD"), affine, fields)

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read a label file; one without a position is taken as it is.

        Classes are identified by the names of their segments, in a file without names by their numbers; layers are
        merged. A segmentation that 3D Slicer cropped is placed back into the patch.
        """
        header, rest = _split(read_file(path, _MOST_LAYERS * most_bytes(frame.box.size)))
        shape, segments = _sizes(header), read_segments(header)
        layers = shape[0] if len(shape) == 4 and segments else 1
        size = int(np.prod(shape)) // max(layers, 1)
        if size > frame.box.size or layers > _MOST_LAYERS or (size != frame.box.size and not segments):
            return LabelFile(np.broadcast_to(np.uint8(0), tuple(reversed(shape[:16]))), PatchMetadata())
        voxels = _voxels(path, header, rest, layers * size).reshape(shape, order="F")
        names = {name: number for number, name in frame.names().items()} if frame.kind == "semantic" else {}
        merged = merge_segments(voxels if layers > 1 or len(shape) == 4 else voxels[np.newaxis], segments, names)
        straight, metadata = _straighten(merged, header)
        is_cropped = segments and metadata.ticket_id is None  # only 3D Slicer crops, and it drops our mark
        return LabelFile(*(uncrop(straight, metadata, frame.box) if is_cropped else (straight, metadata)))

    def metadata(self, path: Path) -> PatchMetadata:
        """Return ticket, position and spacing from the header."""
        with path.open("rb") as file:
            header, _ = _split(file.read(HEAD_BYTES))
        shape = _sizes(header)
        outline = np.broadcast_to(np.uint8(0), shape[-3:])
        return _straighten(outline, header)[1]


def write_nrrd(
    path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], fields: Mapping[str, str]
) -> None:
    """Write a zyx or czyx array as NRRD, atomically; channels become the first axis.

    Parameters
    ----------
    path : Path
        Ending in ``.nrrd``.
    voxels : ndarray
        bool is written as uint8, float16 as float32.
    affine : ndarray, 4×4
        x, y, z voxel indices to RAS millimetre.
    fields : mapping
        Further key/value pairs of the header.
    """
    channels = voxels.ndim == 4
    order = (0, 3, 2, 1) if channels else (2, 1, 0)
    directions = affine[:3, :3].T
    header: dict[str, Any] = {
        "space": "right-anterior-superior",
        "space directions": np.vstack([np.full(3, np.nan), directions]) if channels else directions,
        "space origin": affine[:3, 3],
        "space units": ["mm"] * 3,
        "kinds": ["list"] * channels + ["domain"] * 3,
        "encoding": "gzip",
        **fields,
    }
    data = np.asfortranarray(medical_dtype(voxels).transpose(order))
    write_file(path, lambda part: nrrd.write(str(part), data, header, detached_header=False))


def _segments(names: Mapping[int, str], box: Box) -> dict[str, str]:
    """Return the header fields of 3D Slicer's segmentations, one segment for each number."""
    z, y, x = (n - 1 for n in box.shape_zyx)
    fields: dict[str, str] = {}
    for position, (number, name) in enumerate(names.items()):
        fields |= {
            f"Segment{position}_ID": f"label_{number}",
            f"Segment{position}_Name": name,
            f"Segment{position}_NameAutoGenerated": "0",
            f"Segment{position}_Color": " ".join(f"{v / 255:.6g}" for v in colour(number)),
            f"Segment{position}_ColorAutoGenerated": "0",
            f"Segment{position}_Extent": f"0 {x} 0 {y} 0 {z}",
            f"Segment{position}_LabelValue": str(number),
            f"Segment{position}_Layer": "0",
            f"Segment{position}_Tags": "|",
        }
    representation = {"ContainedRepresentationNames": "Binary labelmap|", "SourceRepresentation": "Binary labelmap"}
    offset = {"ReferenceImageExtentOffset": "0 0 0", "ConversionParameters": ""}
    return fields | {f"Segmentation_{key}": value for key, value in (representation | offset).items()}


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and encoded voxels of an NRRD's bytes; the voxels must be in the same file."""
    ends = [m.end() for m in re.finditer(rb"\r?\n\r?\n", data[:HEAD_BYTES])][:1]
    if not data.startswith(b"NRRD") or not ends:
        raise ValueError("it has no NRRD header")
    head, rest = data[: ends[0]], data[ends[0] :]
    header = dict(nrrd.read_header(io.BytesIO(head)))
    if (header["type"] == "block") or int(header["dimension"]) > 16:
        raise ValueError("it holds no image")
    return header, rest


def _voxels(path: Path, header: dict[str, Any], rest: bytes, count: int) -> npt.NDArray[Any]:
    """Return the voxels of a mask, which may lie in a file of their own beside the header, behind lines or bytes."""
    kind, encoding, limit = nrrd_dtype(header), str(header["encoding"]), most_bytes(count)
    name = header.get("data file", header.get("datafile"))
    if name is not None:
        if not isinstance(name, str) or Path(name).name != name or name.upper().startswith("LIST"):
            raise LabelError("its 'data file' is not beside it", todo="Save header and voxels in one .nrrd file")
        rest = read_file(path.with_name(name), limit)
    for _ in range(int(header.get("line skip", header.get("lineskip", 0)))):
        rest = rest.partition(b"\n")[2]
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if skip > 0 and encoding != "raw":
        raise LabelError("it has a 'byte skip' before packed voxels", todo="Save header and voxels in one .nrrd file")
    rest = rest[-count * kind.itemsize :] if skip == -1 else rest[skip:]
    if encoding in ("ascii", "text", "txt"):
        return np.array(rest.split(), dtype=kind)
    return np.frombuffer(unpack(rest, encoding, limit), kind, count=count)


def _sizes(header: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header["sizes"])
    if len(shape) != int(header["dimension"]) or min(shape, default=0) < 1:
        raise ValueError(f"its sizes {shape} are not valid")
    if sum(n.bit_length() for n in shape) > 62:
        raise too_large()
    return shape


def _straighten(xyz: npt.NDArray[Any], header: dict[str, Any]) -> tuple[npt.NDArray[Any], PatchMetadata]:
    """Turn an array into the volume's axes by the header's space; without one, it stays."""
    ticket = marked_ticket(header.get("rescueseg"))
    placement = nrrd_placement(header) if xyz.ndim == 3 else None
    if placement is None:
        return xyz.T, PatchMetadata(ticket)
    straight, metadata = straighten(xyz, placement)
    return straight, PatchMetadata(ticket, metadata.offset_zyx, metadata.spacing_um_zyx)
