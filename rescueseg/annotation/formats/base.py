"""What every file format of patches promises, and what a label file must fit."""

from __future__ import annotations

import colorsys
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import DeskInfo, PatchView
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Spacing
from rescueseg.labels import IGNORE, PatchLabels

Kind = Literal["semantic", "instance"]

IGNORE_NAME = "not annotated"
EIGHT_BITS = 254
"""Most objects that fit into 8 bits beside 0 and 255."""
MARK = "rescueseg "
"""What a file's own description starts with, before the ticket id."""


@dataclass(frozen=True)
class Frame:
    """The patch that a label file must fit.

    Parameters
    ----------
    ticket_id : str
        Its ticket.
    box : Box
        The patch in its volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    classes : tuple of str
        Names of classes 1…K.
    kind : {"semantic", "instance"}
        Whether the numbers in a file are classes or objects.
    """

    ticket_id: str
    box: Box
    spacing_um_zyx: Spacing
    classes: tuple[str, ...]
    kind: Kind = "semantic"

    @classmethod
    def of(cls, view: PatchView, info: DeskInfo) -> Frame:
        """Return the frame of a patch on a desk."""
        return cls(view.ticket.ticket_id, view.ticket.box, view.spacing_um_zyx, info.classes, info.kind)

    def names(self, labels: PatchLabels | None = None) -> dict[int, str]:
        """Return a name for each number in a file: classes and ignore, or the objects of `labels`."""
        if self.kind == "semantic":
            return dict(enumerate(self.classes, start=1)) | {IGNORE: IGNORE_NAME}
        found = [] if labels is None or labels.instances is None else np.unique(labels.instances).tolist()
        return {int(number): f"{self.classes[0]} {number}" for number in found if number}


@dataclass(frozen=True)
class Stated:
    """What a file says of its patch; None where it says nothing."""

    ticket_id: str | None = None
    offset_zyx: tuple[float, float, float] | None = None
    """First voxel of the file in the volume."""
    spacing_um_zyx: Spacing | None = None


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a label file holds.

    Parameters
    ----------
    array : ndarray, zyx
        Classes with 255 for ignore, or object numbers; not checked yet.
    stated : Stated
        What the file says of its patch.
    ignore : ndarray of bool, zyx, optional
        Voxels not annotated, where the file keeps them apart.
    """

    array: npt.NDArray[Any]
    stated: Stated
    ignore: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PatchFiles:
    """What an annotator opens."""

    image: Path
    labels: Path
    """The mask to correct and hand in; an existing one is left alone, it may hold work."""
    ticket: Path
    """JSON: lease, patch, spacing, class names."""
    kept: bool
    """Whether the mask was there already."""
    ignore: Path | None = None
    """Mask of what was not annotated, where numbers are objects and the format has no other place for it."""
    others: tuple[Path, ...] = ()
    """Uncertainty, surroundings, label descriptions, workspace."""

    @property
    def everything(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(dict.fromkeys(p for p in (self.image, self.labels, self.ignore, *self.others, self.ticket) if p))


class PatchFormat(Protocol):
    """A file format in which a patch goes out to a tool and its labels come back.

    `tests/contracts/test_format.py` is the definition of done.
    """

    name: str
    """What the command line calls it."""
    extensions: tuple[str, ...]
    """Of label files; the first is the one that is written."""
    carries: tuple[Kind, ...]
    largest: int
    """Largest number a label file can hold."""
    ignore_apart: bool
    """Whether objects need a second file for what was not annotated."""

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image, mask to correct and what helps; the JSON of the ticket is left to the caller.

        Raises
        ------
        LabelError
            If the mask holds more objects than the format can number.
        """

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write labels as a tool would save them, atomically; errors as in `write`."""

    def load(self, path: Path, frame: Frame) -> Loaded:
        """Read a label file in memory bounded by the patch; may raise anything for a damaged one."""

    def stated(self, path: Path) -> Stated:
        """Return what the head of a file says of its patch; may raise anything for a damaged one."""


def colour(number: int) -> tuple[int, int, int]:
    """Return an 8-bit RGB colour; neighbouring numbers get distant hues, ignore is grey."""
    if number == IGNORE:
        return 128, 128, 128
    red, green, blue = colorsys.hsv_to_rgb((number - 1) * 0.618034 % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def ticket_mark(ticket_id: str) -> str:
    """Return how a ticket's id stands in a file's description."""
    return MARK + ticket_id


def marked_ticket(text: object) -> str | None:
    """Return the ticket id in a file's description, None where there is none."""
    said = text.decode("latin1") if isinstance(text, bytes) else str(text or "")
    lines = (line.strip("\0 ").removeprefix("Info = ") for line in said.splitlines())
    return next((line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)), None)


def relabelled(labels: PatchLabels) -> PatchLabels:
    """Return the same objects numbered 1…n, in the order of their numbers; classes stay as they are."""
    if labels.instances is None:
        return labels
    found, positions = np.unique(labels.instances, return_inverse=True)
    first = 0 if found.size and found[0] == 0 else 1
    numbers = np.arange(first, first + found.size, dtype=np.uint32)
    return PatchLabels(labels.classes, numbers[positions].reshape(labels.instances.shape))


def number_array(labels: PatchLabels, largest: int, what: str) -> npt.NDArray[Any]:
    """Return the one array that goes into a file: classes, or object numbers in the narrowest type from 16 bits on.

    Parameters
    ----------
    labels : PatchLabels
        zyx.
    largest : int
        Largest number the file can hold; objects get 8 bits where that is below 256.
    what : str
        Who cannot hold more, for the message.

    Raises
    ------
    LabelError
        If an object's number is larger.
    """
    if labels.instances is None:
        return labels.classes
    most = int(labels.instances.max(initial=0))
    if most > largest:
        raise LabelError(
            f"object number {most} does not fit: {what} holds at most {largest} objects",
            todo="Use a format or tool with more bits, such as NIfTI or napari, or smaller patches",
        )
    kind = np.uint8 if largest < 256 else np.uint16 if most < 2**16 else np.uint32
    return labels.instances.astype(kind)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target and move it there."""
    part = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        write(part)
        os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)


def write_labels_and_ignore(
    kind: PatchFormat, path: Path, labels: PatchLabels, frame: Frame, *, keep: bool = False
) -> Path | None:
    """Write labels, and beside objects the mask of what was not annotated; return where that lies.

    With `keep`, files that are there stay.
    """
    if not keep:
        kind.write_labels(path, labels, frame)
    if labels.instances is None or not kind.ignore_apart:
        return None
    apart = ignore_path(path, kind)
    if not (keep and apart.exists()):
        kind.write_labels(apart, PatchLabels(labels.ignore.astype(np.uint8)), frame)
    return apart


def ignore_path(labels: Path, kind: PatchFormat) -> Path:
    """Return where the mask of what was not annotated lies beside a file of objects."""
    extension = extension_of(labels, kind) or ""
    stem = labels.name[: len(labels.name) - len(extension)].removesuffix("_labels")
    return labels.with_name(f"{stem}_ignore{extension}")


def extension_of(path: Path, kind: PatchFormat) -> str | None:
    """Return the extension by which a format knows a file as its own, as it is spelt there; None for other files."""
    name = path.name.lower()
    known = max((e for e in kind.extensions if name.endswith(e)), key=len, default=None)
    return None if known is None else path.name[len(path.name) - len(known) :]


def shown_dtype(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an image in a type that medical formats know: bool as uint8, half as single precision."""
    kind = {"bool": np.uint8, "float16": np.float32}.get(image.dtype.name, image.dtype)
    return image.astype(kind, copy=False)
