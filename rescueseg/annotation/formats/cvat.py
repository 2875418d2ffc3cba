"""CVAT for images 1.1: every z plane an image, every class or object in a plane a mask in run lengths.

Two zips: the images, of which CVAT makes a task, and the annotations, which it imports and exports. Run lengths count
background first, row by row inside the box that `left`, `top`, `width` and `height` give, as `cvat_sdk.masks` has it.
"""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from imagecodecs import png_encode

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import (
    IGNORE_NAME,
    Frame,
    Kind,
    LabelFile,
    PatchFiles,
    PatchMetadata,
    colour,
    number_array,
    write_file,
)
from rescueseg.annotation.formats.bounded import HEAD_BYTES, read_file, read_stream
from rescueseg.errors import LabelError
from rescueseg.labels import IGNORE, PatchLabels

OBJECT = "object"
"""Name of the attribute with an object's number."""
XML_NAME = "annotations.xml"
_PLANE = re.compile(r"^(?:.*/)?(?P<ticket>[A-Za-z0-9][A-Za-z0-9._-]*)/z(?P<z>\d{1,6})\.png$")
_BYTES_PER_VOXEL = 16
_DISPLAY_PERCENTILES = (0.2, 99.8)


class Cvat:
    """Images as a zip of PNG, labels as a zip of ``annotations.xml``; polygons and boxes are not read."""

    name = "cvat"
    extensions: tuple[str, ...] = (".zip", ".xml")
    carries: tuple[Kind, ...] = ("semantic", "instance")
    largest = 2**32 - 1
    ignore_apart = False

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write images, annotations, and the label definitions to paste into a new task."""
        ticket = frame.ticket_id
        image, labels = folder / f"{ticket}_image.zip", folder / f"{ticket}_labels.zip"
        definitions = folder / f"{ticket}_cvat_labels.json"
        is_resumed = labels.exists()
        planes = display_planes(view.image[(slice(None), *view.inside.slices)])
        _write_zip(image, ((plane_name(ticket, z), _png(plane)) for z, plane in enumerate(planes)))
        if not is_resumed:
            self.write_labels(labels, view.start, frame)
        text = json.dumps(label_definitions(frame), indent=1)
        write_file(definitions, lambda part: part.write_text(text, encoding="utf-8"))
        return PatchFiles(image, labels, folder / f"{ticket}.json", is_resumed, None, (definitions,))

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write labels as a zip."""
        number_array(labels, self.largest, "CVAT")
        _write_zip(path, [(XML_NAME, annotations_xml(labels, frame))])

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read an export of CVAT; every plane of the patch must be in it."""
        return _labels_of(io.BytesIO(_xml_of(path, HEAD_BYTES + _BYTES_PER_VOXEL * frame.box.size)), frame)

    def metadata(self, path: Path) -> PatchMetadata:
        """Return the ticket by the names of the images."""
        with _open_xml(path) as file:
            head = file.read(HEAD_BYTES)
        names = re.findall(rb'<image\b[^>]*?\bname="([^"]*)"', head)
        tickets = {match["ticket"] for name in names if (match := _PLANE.match(name.decode("utf-8", "replace")))}
        return PatchMetadata(tickets.pop() if len(tickets) == 1 else None)


def plane_name(ticket_id: str, z: int) -> str:
    """Return the name of a z plane's image, which carries the ticket.

    Examples
    --------
    >>> plane_name("pool-0001-3f2a", 7)
    'pool-0001-3f2a/z0007.png'
    """
    return f"{ticket_id}/z{z:04d}.png"


def label_definitions(frame: Frame) -> list[dict[str, Any]]:
    """Return the labels of a task, as CVAT's raw label editor takes them."""
    number = {
        "name": OBJECT,
        "mutable": True,
        "input_type": "number",
        "default_value": "0",
        "values": ["0", "4294967295", "1"],
    }
    names = [*frame.classes, IGNORE_NAME]
    numbers = [*range(1, len(frame.classes) + 1), IGNORE]
    return [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*colour(value)),
            "type": "mask",
            "attributes": [number] if frame.kind == "instance" and value != IGNORE else [],
        }
        for name, value in zip(names, numbers, strict=True)
    ]


def display_planes(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return czyx intensities as 8-bit planes, zyx or (from two channels on) zyx with red, green, blue last."""
    low, high = np.percentile(image.astype(np.float32), _DISPLAY_PERCENTILES, axis=(1, 2, 3), keepdims=True)
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-12), 0, 1)
    grey = np.rint(255 * scaled).astype(np.uint8)
    if grey.shape[0] == 1:
        return np.ascontiguousarray(grey[0])
    colours = np.zeros((*grey.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(grey[:3]):
        colours[..., channel] = plane
    return colours


def encode_runs(mask: npt.NDArray[np.bool_]) -> tuple[list[int], int, int, int, int]:
    """Return the run lengths of a yx mask that is not empty, and left, top, width, height of their box.

    Examples
    --------
    The box has two rows, "mask, background" and "mask, mask":

    >>> mask = np.array([[False, True, False], [False, True, True]])
    >>> encode_runs(mask)
    ([0, 1, 1, 2], 1, 0, 2, 2)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    flat = np.concatenate([[False], inside.ravel(), [not inside[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(ends, prepend=0).tolist(), left, top, inside.shape[1], inside.shape[0]


def decode_runs(runs: Sequence[int], width: int, height: int) -> npt.NDArray[np.bool_]:
    """Return the yx mask of run lengths.

    Raises
    ------
    ValueError
        If they do not fill the box.

    Examples
    --------
    >>> decode_runs([0, 1, 1, 2], width=2, height=2).tolist()
    [[True, False], [True, True]]
    """
    if min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise ValueError(f"the run lengths of a mask do not fill its {width}×{height} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def annotations_xml(labels: PatchLabels, frame: Frame) -> bytes:
    """Return ``annotations.xml``."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    ET.SubElement(task, "name").text = frame.ticket_id
    label_list = ET.SubElement(task, "labels")
    for definition in label_definitions(frame):
        label = ET.SubElement(label_list, "label")
        for key in ("name", "color", "type"):
            ET.SubElement(label, key).text = definition[key]
    depth, height, width = frame.box.shape_zyx
    for z in range(depth):
        image = ET.SubElement(
            root, "image", id=str(z), name=plane_name(frame.ticket_id, z), width=str(width), height=str(height)
        )
        for name, number, mask in _masks(labels, frame, z):
            runs, left, top, wide, high = encode_runs(mask)
            box = {"rle": ", ".join(map(str, runs)), "left": left, "top": top, "width": wide, "height": high}
            attributes = {"label": name, "source": "manual", "occluded": "0", **box, "z_order": 0}
            element = ET.SubElement(image, "mask", {key: str(value) for key, value in attributes.items()})
            if number:
                ET.SubElement(element, "attribute", name=OBJECT).text = str(number)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _masks(labels: PatchLabels, frame: Frame, z: int) -> Iterator[tuple[str, int, npt.NDArray[np.bool_]]]:
    """Yield label name, object number (0 for classes) and yx mask of everything in a plane."""
    plane = labels.classes[z]
    if labels.instances is None:
        names = frame.names()
        for value in np.unique(plane[plane > 0]).tolist():
            yield names[value], 0, plane == value
        return
    objects = labels.instances[z]
    for number in np.unique(objects[objects > 0]).tolist():
        yield frame.classes[0], number, objects == number
    if (plane == IGNORE).any():
        yield IGNORE_NAME, 0, plane == IGNORE


def _labels_of(file: io.BytesIO, frame: Frame) -> LabelFile:
    depth, height, width = frame.box.shape_zyx
    array = np.zeros(frame.box.shape_zyx, np.uint32)
    ignore = np.zeros(frame.box.shape_zyx, np.bool_)
    planes: set[int] = set()
    tickets: set[str] = set()
    for element in _images(file):
        name = element.get("name", "")
        match = _PLANE.match(name)
        if match is None:
            raise LabelError(f"the image '{name[:80]}' is of no ticket", todo="Keep the names of the images in CVAT")
        tickets.add(match["ticket"])
        if tickets != {frame.ticket_id}:
            return LabelFile(array, PatchMetadata((tickets - {frame.ticket_id}).pop()))
        z, size = int(match["z"]), (int(element.get("height", 0)), int(element.get("width", 0)))
        if z in planes:
            raise ValueError(f"the image '{name}' comes twice")
        if z >= depth or size != (height, width):
            return LabelFile(np.broadcast_to(np.uint8(0), (max(depth, z + 1), *size)), PatchMetadata(frame.ticket_id))
        planes.add(z)
        _draw(element, frame, array[z], ignore[z])
    if len(planes) != depth:
        raise LabelError(
            f"{depth - len(planes)} of {depth} planes are missing", todo="Export the whole task, with all its jobs"
        )
    if frame.kind == "semantic":
        array[ignore] = IGNORE
        return LabelFile(array, PatchMetadata(frame.ticket_id))
    return LabelFile(array, PatchMetadata(frame.ticket_id), ignore)


def _images(file: io.BytesIO) -> Iterator[ET.Element]:
    """Yield the images of an ``annotations.xml`` one by one; a document type, and with it entities, is refused."""
    if b"<!DOCTYPE" in file.getbuffer().tobytes():
        raise LabelError("it has a document type", todo="Export it as 'CVAT for images 1.1'")
    encoded = ET.XMLParser(encoding="utf-8")  # whatever the file declares
    parser: Any = ET.XMLPullParser(["start", "end"], _parser=encoded)
    root: ET.Element | None = None
    while chunk := file.read(1 << 16):
        parser.feed(chunk)
        for event, element in parser.read_events():
            if root is None:
                root = element
            if event == "start" and element.tag == "track":
                raise LabelError("it is an export for videos", todo="Export it as 'CVAT for images 1.1'")
            if event == "end" and element.tag == "image":
                yield element
                element.clear()
    parser.close()
    if root is None or root.tag != "annotations":
        raise ValueError("it holds no annotations of CVAT")


def _draw(image: ET.Element, frame: Frame, array: npt.NDArray[np.uint32], ignore: npt.NDArray[np.bool_]) -> None:
    """Draw the masks of one plane, the lower first."""
    where = image.get("name", "")
    numbers = {name: number for number, name in frame.names().items()}
    shapes = [child for child in image if child.tag not in ("tag",)]
    if other := next((child.tag for child in shapes if child.tag != "mask"), None):
        raise LabelError(f"the image '{where}' holds a {other}", todo="Turn it into a mask in CVAT")
    for mask in sorted(shapes, key=lambda child: int(child.get("z_order", 0))):
        label = mask.get("label", "")
        left, top, width, height = (int(mask.get(key, -1)) for key in ("left", "top", "width", "height"))
        if (
            min(left, top) < 0
            or min(width, height) < 1
            or left + width > array.shape[1]
            or top + height > array.shape[0]
        ):
            raise ValueError(f"a mask leaves the image '{where}'")
        runs = [int(run) for run in mask.get("rle", "").split(",")]
        region = (slice(top, top + height), slice(left, left + width))
        inside = decode_runs(runs, width, height)
        if label == IGNORE_NAME:
            ignore[region][inside] = True
            array[region][inside] = 0
            continue
        ignore[region][inside] = False
        array[region][inside] = _number(mask, label, frame, numbers, where)


def _number(mask: ET.Element, label: str, frame: Frame, numbers: dict[str, int], where: str) -> int:
    """Return the class or object number of a mask."""
    if label not in frame.classes:
        raise LabelError(
            f"the label '{label[:80]}' in '{where}' is no class", todo=f"Classes: {', '.join(frame.classes)}"
        )
    if frame.kind == "semantic":
        return numbers[label]
    text = next((child.text for child in mask if child.tag == "attribute" and child.get("name") == OBJECT), None)
    number = int(text or 0)
    if not 0 < number < 2**32:
        raise LabelError(
            f"a mask in '{where}' has no object number",
            todo=f"Give the masks of one object the same number in the attribute '{OBJECT}', from 1 on",
        )
    return number


def _write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)

    write_file(path, write)


def _open_xml(path: Path) -> Any:
    """Open ``annotations.xml``, in its zip or by itself."""
    if not path.name.lower().endswith(".zip"):
        return path.open("rb")
    return zipfile.ZipFile(path).open(XML_NAME)


def _xml_of(path: Path, limit: int) -> bytes:
    if not path.name.lower().endswith(".zip"):
        return read_file(path, limit)
    with zipfile.ZipFile(path) as archive, archive.open(XML_NAME) as file:
        return read_stream(file, limit)


def _png(plane: npt.NDArray[np.uint8]) -> bytes:
    return bytes(png_encode(plane))
