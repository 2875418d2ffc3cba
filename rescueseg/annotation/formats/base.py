"""The protocol of file formats for patches, and the patch that a label file must fit."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import CampaignInfo, PatchView
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Spacing
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.storage import replace_atomically

Kind = Literal["semantic", "instance"]

IGNORE_NAME = "not annotated"
MOST_OBJECTS_8_BIT = 254
"""Most objects that can be numbered with 8 bits, beside 0 for background and 255 for ignore."""
_INNER = (".nii", ".ome", ".seg")
"""First halves of extensions such as ``.nii.gz``; what else stands before the last dot belongs to the name."""
MARK = "rescueseg "
"""Start of the description that rescueseg writes into a file; the ticket id follows."""


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
    def of(cls, view: PatchView, info: CampaignInfo) -> Frame:
        """Return the frame of a patch that a client has opened."""
        return cls(view.ticket.ticket_id, view.ticket.box, view.spacing_um_zyx, info.classes, info.kind)

    def names(self, labels: PatchLabels | None = None) -> dict[int, str]:
        """Return a name for each number in a file: classes and ignore, or the objects of `labels`."""
        if self.kind == "semantic":
            return dict(enumerate(self.classes, start=1)) | {IGNORE: IGNORE_NAME}
        numbers = [] if labels is None or labels.instances is None else np.unique(labels.instances).tolist()
        return {int(number): f"{self.classes[0]} {number}" for number in numbers if number}


@dataclass(frozen=True)
class PatchMetadata:
    """What a label file says about its patch; None where it says nothing."""

    ticket_id: str | None = None
    offset_zyx: tuple[float, float, float] | None = None
    """First voxel of the file in the volume."""
    spacing_um_zyx: Spacing | None = None


@dataclass(frozen=True, eq=False)
class LabelFile:
    """The content of a label file.

    Parameters
    ----------
    array : ndarray, zyx
        Classes with 255 for ignore, or object numbers; not validated.
    metadata : PatchMetadata
        What the file says about its patch.
    ignore : ndarray of bool, zyx, optional
        Voxels not annotated, where the file has a mask of them.
    """

    array: npt.NDArray[Any]
    metadata: PatchMetadata
    ignore: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PatchFiles:
    """The files of a patch that an annotator opens."""

    image: Path
    labels: Path
    """The mask to correct and hand in. An existing one is not overwritten: it may hold work."""
    ticket: Path
    """JSON: lease, patch, spacing, class names."""
    is_resumed: bool
    """Whether the mask existed before."""
    ignore: Path | None = None
    """Mask of what was not annotated, where numbers are objects and the format has no other place for it."""
    others: tuple[Path, ...] = ()
    """Uncertainty, surroundings, label descriptions, workspace."""

    @property
    def everything(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(dict.fromkeys(p for p in (self.image, self.labels, self.ignore, *self.others, self.ticket) if p))


class PatchFormat(Protocol):
    """A file format in which a patch goes out to a tool and its labels come back.

    `tests/contracts/test_format.py` is the definition of done.
    """

    name: str
    """Its name on the command line."""
    extensions: tuple[str, ...]
    """Extensions of label files; the first is used for writing."""
    carries: tuple[Kind, ...]
    largest: int
    """Largest number a label file can hold."""
    ignore_apart: bool
    """Whether objects need a second file for what was not annotated."""

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image, mask to correct and helpful extras; the caller writes the JSON of the ticket.

        Raises
        ------
        LabelError
            If the mask holds more objects than the format can number.
        """

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write labels as a tool would save them, atomically; errors as in `write`."""

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read a label file in memory bounded by the patch; may raise anything for a damaged file."""

    def metadata(self, path: Path) -> PatchMetadata:
        """Return what the header of a file says about its patch; may raise anything for a damaged file."""


def colour(number: int) -> tuple[int, int, int]:
    """Return an 8-bit RGB colour; neighbouring numbers get distant hues, ignore is grey.

    Examples
    --------
    >>> colour(1), colour(255)
    ((255, 64, 64), (128, 128, 128))
    """
    if number == IGNORE:
        return 128, 128, 128
    red, green, blue = colorsys.hsv_to_rgb((number - 1) * 0.618034 % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def ticket_mark(ticket_id: str) -> str:
    """Return the description that marks a file as one of a ticket."""
    return MARK + ticket_id


def marked_ticket(text: object) -> str | None:
    """Return the ticket id in a file's description, None where there is none.

    Examples
    --------
    >>> marked_ticket(ticket_mark("pool-0001-3f2a")), marked_ticket("made with Fiji")
    ('pool-0001-3f2a', None)
    """
    description = text.decode("latin1") if isinstance(text, bytes) else str(text or "")
    lines = (line.strip("\0 ").removeprefix("Info = ") for line in description.splitlines())
    return next((line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)), None)


def relabel(labels: PatchLabels) -> PatchLabels:
    """Return the same objects numbered 1…n, in the order of their numbers; classes stay as they are.

    Examples
    --------
    >>> ids = np.array([[[0, 40, 40, 7]]], np.uint32)
    >>> relabel(PatchLabels.of_instances(ids)).instances.tolist()
    [[[0, 2, 2, 1]]]
    """
    if labels.instances is None:
        return labels
    ids, positions = np.unique(labels.instances, return_inverse=True)
    first = 0 if ids.size and ids[0] == 0 else 1
    numbers = np.arange(first, first + ids.size, dtype=np.uint32)
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
        Name of the format, for the error message.

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
    """Write beside the target, by a name of the same extension, and move it there."""
    inner = Path(path.stem).suffix
    with replace_atomically(path, ending=inner * (inner.lower() in _INNER) + path.suffix) as part:
        write(part)


def write_labels_and_ignore(
    kind: PatchFormat, path: Path, labels: PatchLabels, frame: Frame, *, keep: bool = False
) -> Path | None:
    """Write labels, and beside objects a mask of what was not annotated; return the path of that mask.

    With `keep`, existing files stay.
    """
    if not keep:
        kind.write_labels(path, labels, frame)
    if labels.instances is None or not kind.ignore_apart:
        return None
    ignore_file = ignore_path(path, kind)
    if not (keep and ignore_file.exists()):
        kind.write_labels(ignore_file, PatchLabels(labels.ignore.astype(np.uint8)), frame)
    return ignore_file


def ignore_path(labels: Path, kind: PatchFormat) -> Path:
    """Return the path of the mask of what was not annotated, beside a file of object numbers."""
    extension = extension_of(labels, kind) or ""
    stem = labels.name[: len(labels.name) - len(extension)].removesuffix("_labels")
    return labels.with_name(f"{stem}_ignore{extension}")


def extension_of(path: Path, kind: PatchFormat) -> str | None:
    """Return the extension of a file, as it is spelt, if it is one of a format's; else None.

    Examples
    --------
    >>> from rescueseg.annotation.formats.nifti import Nifti
    >>> extension_of(Path("liver_labels.NII.gz"), Nifti()), extension_of(Path("liver.tif"), Nifti())
    ('.NII.gz', None)
    """
    name = path.name.lower()
    extension = max((e for e in kind.extensions if name.endswith(e)), key=len, default=None)
    return None if extension is None else path.name[len(path.name) - len(extension) :]


def medical_dtype(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an image in a type that medical formats know: bool as uint8, half as single precision."""
    kind = {"bool": np.uint8, "float16": np.float32}.get(image.dtype.name, image.dtype)
    return image.astype(kind, copy=False)
