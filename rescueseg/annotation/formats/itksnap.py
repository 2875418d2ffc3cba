"""Files of ITK-SNAP beside the images: label descriptions, and a workspace that loads everything at once.

Both formats are those that ITK-SNAP itself writes (http://www.itksnap.org); a workspace is its registry as XML.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import (
    Frame,
    PatchFiles,
    PatchFormat,
    colour,
    write_file,
    write_labels_and_ignore,
)
from rescueseg.geometry import Box

_MOST_LABELS = 65535
_VERSION = "20190612"


class ImageFormat(PatchFormat, Protocol):
    """A format that writes single images too."""

    def write_image(self, path: Path, image: npt.NDArray[Any], box: Box, frame: Frame) -> None:
        """Write a czyx or zyx image that covers `box`."""


def write_with_workspace(kind: ImageFormat, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
    """Write a patch in a format that ITK-SNAP and 3D Slicer read, and the workspace of its files.

    Parameters
    ----------
    kind : ImageFormat
        NIfTI or NRRD.
    folder : Path
        Folder for the files.
    view : PatchView
        The patch; its image, uncertainty and mask on one grid, and the image of its surroundings apart.
    frame : Frame
        The patch that is written into the files.
    """
    ticket, inside = frame.ticket_id, view.inside.slices
    extension = kind.extensions[0]
    plain = extension.removeprefix(".seg")
    labels = folder / f"{ticket}_labels{extension}"
    image, uncertainty = folder / f"{ticket}_image{plain}", folder / f"{ticket}_uncertainty{plain}"
    is_resumed, others, overlays = labels.exists(), [], []
    kind.write_image(image, view.image[(slice(None), *inside)], frame.box, frame)
    if view.context != frame.box:
        context = folder / f"{ticket}_context{plain}"
        kind.write_image(context, view.image, view.context, frame)
        others.append(context)
    if view.uncertainty is not None:
        kind.write_image(uncertainty, view.uncertainty[inside], frame.box, frame)
        others.append(uncertainty)
        overlays.append(uncertainty)
    ignore = write_labels_and_ignore(kind, labels, view.start, frame, keep=is_resumed)
    descriptions, workspace = folder / f"{ticket}_itksnap.txt", folder / f"{ticket}.itksnap"
    names = {n: name for n, name in frame.names(view.start).items() if n <= _MOST_LABELS}
    write_file(descriptions, lambda part: part.write_text(label_description(names), encoding="utf-8"))
    text = workspace_xml(folder, image, labels, overlays, names)
    write_file(workspace, lambda part: part.write_bytes(text))
    return PatchFiles(image, labels, folder / f"{ticket}.json", is_resumed, ignore, (*others, descriptions, workspace))


def label_description(names: Mapping[int, str]) -> str:
    """Return an ITK-SNAP label description file: number, colour, opacity, two visibilities, name.

    Examples
    --------
    >>> print(label_description({1: "nucleus"}).splitlines()[-1])
        1  255   64   64        1  1  1    "nucleus"
    """
    lines = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    lines.append(f'{0:5d} {0:4d} {0:4d} {0:4d} {0:8d} {0:2d} {0:2d}    "Clear Label"')
    for number, name in names.items():
        red, green, blue = colour(number)
        quoted = name.replace('"', "'")
        lines.append(f'{number:5d} {red:4d} {green:4d} {blue:4d} {1:8d} {1:2d} {1:2d}    "{quoted}"')
    return "\n".join(lines) + "\n"


def workspace_xml(folder: Path, image: Path, labels: Path, overlays: Sequence[Path], names: Mapping[int, str]) -> bytes:
    """Return an ITK-SNAP workspace: main image, overlays, segmentation, label table."""
    table: dict[str, Any] = {"NumberOfElements": len(names)}
    for position, (number, name) in enumerate(names.items()):
        table[f"Element[{position}]"] = {
            "Alpha": 255,
            "Color": " ".join(map(str, colour(number))),
            "Flags": "1 1",
            "Index": number,
            "Label": name,
        }
    layers: dict[str, Any] = {"Layer[000]": _layer(image, "MainRole")}
    layers["Layer[000]"]["ProjectMetaData"] = {"IRIS": {"LabelTable": table}}
    for path, role in [*((path, "OverlayRole") for path in overlays), (labels, "SegmentationRole")]:
        layers[f"Layer[{len(layers):03d}]"] = _layer(path, role)
    registry = {"SaveLocation": str(folder.resolve()), "Version": _VERSION, "Layers": layers}
    root = _fill(ET.Element("registry"), registry)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _layer(path: Path, role: str) -> dict[str, Any]:
    return {"AbsolutePath": str(path.resolve()), "Role": role, "LayerMetaData": {"CustomNickName": ""}}


def _fill(element: ET.Element, content: Mapping[str, Any]) -> ET.Element:
    """Write nested dictionaries as entries and folders, entries first."""
    for key, value in sorted(content.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping):
            _fill(ET.SubElement(element, "folder", key=key), value)
        else:
            ET.SubElement(element, "entry", key=key, value=str(value))
    return element
