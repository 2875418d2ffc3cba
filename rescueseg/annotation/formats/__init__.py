"""Patches as files for any annotation tool, and label files back.

To add a format, fulfil `PatchFormat`, list it in `FORMATS` and add it to `tests/contracts/test_format.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.formats.arrays import Npz
from rescueseg.annotation.formats.base import (
    Frame,
    LabelFile,
    PatchFiles,
    PatchFormat,
    PatchMetadata,
    extension_of,
    ignore_path,
    relabel,
)
from rescueseg.annotation.formats.cvat import Cvat
from rescueseg.annotation.formats.imagej import ImageJ
from rescueseg.annotation.formats.nifti import Nifti
from rescueseg.annotation.formats.nrrd import Nrrd
from rescueseg.annotation.formats.omezarr import OmeZarr
from rescueseg.annotation.label_checks import check_labels
from rescueseg.errors import ConfigError, LabelError, RescuesegError, VolumeError
from rescueseg.labels import PatchLabels, object_numbers

__all__ = [
    "FORMATS",
    "Frame",
    "PatchFiles",
    "PatchFormat",
    "PatchMetadata",
    "format_named",
    "format_of",
    "metadata_of",
    "read_labels",
    "relabel",
]

FORMATS: tuple[PatchFormat, ...] = (Nifti(), Nrrd(), ImageJ(), OmeZarr(), Cvat(), Npz())
_OWN_NAME = re.compile(r"^((?:pool|validation|test)-\d{4}-[0-9a-f]{16})(?![0-9a-f])")
_SPACING_TOLERANCE = 1e-3
_OFFSET_TOLERANCE = 0.25


def format_named(name: str) -> PatchFormat:
    """Return a format by its name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    for kind in FORMATS:
        if kind.name == name:
            return kind
    raise ConfigError(f"unknown format '{name}'", todo=f"Use one of {', '.join(f.name for f in FORMATS)}")


def format_of(path: Path) -> PatchFormat | None:
    """Return the format of a label file by its name; None where no format has that extension.

    Examples
    --------
    >>> [kind.name if kind else None for kind in (format_of(Path("a.nii.gz")), format_of(Path("a.png")))]
    ['nifti', None]
    """
    named = next((kind for kind in FORMATS if extension_of(path, kind)), None)
    if named is None and any(parent.suffix.lower() == ".zarr" for parent in path.parents) and path.is_dir():
        return format_named(OmeZarr.name)  # a label image by its own path
    return named


def read_labels(path: Path, frame: Frame, ignore: Path | None = None) -> PatchLabels:
    """Read the label file of a patch, whatever tool saved it, and check that it is this patch's.

    Memory is bounded by the patch and nothing is unpickled: files from unknown sources can be read.

    Parameters
    ----------
    path : Path
        A label file of any known format.
    frame : Frame
        The patch.
    ignore : Path, optional
        Where numbers are objects: a mask of what was not annotated. Beside `path` when omitted, and none if there is
        no such file.

    Returns
    -------
    PatchLabels
        Over the patch. Axes that a tool permuted or flipped are restored, as are axes of length one that it dropped.

    Raises
    ------
    LabelError
        If the file is missing, damaged, of an unknown format, of another patch, position, spacing or shape, or holds
        numbers that are no labels.
    """
    kind = _format_of_file(path)
    content = _load(kind, path, frame)
    array = _array_of_patch(content, path, frame)
    if frame.kind == "semantic":
        return PatchLabels(check_labels(array, frame.box, len(frame.classes), where=str(path)))
    ignore_file = ignore_path(path, kind) if ignore is None else ignore
    mask = content.ignore
    if mask is None and kind.ignore_apart and (ignore is not None or ignore_file.exists()):
        mask = _array_of_patch(_load(_format_of_file(ignore_file), ignore_file, frame), ignore_file, frame) != 0
    return PatchLabels.of_instances(object_numbers(array, str(path)), mask)


def metadata_of(path: Path) -> PatchMetadata:
    """Return what a label file says about its patch, by its content and its name; for a damaged file by its name alone."""
    kind = format_of(path)
    try:
        metadata = PatchMetadata() if kind is None or not path.exists() else kind.metadata(path)
    except Exception:  # the readers of damaged files raise nearly anything; `read_labels` says what is wrong
        metadata = PatchMetadata()
    match = _OWN_NAME.match(path.name)
    if metadata.ticket_id is None and match:
        return replace(metadata, ticket_id=match[1])
    return metadata


def _format_of_file(path: Path) -> PatchFormat:
    kind = format_of(path)
    if kind is None:
        extensions = ", ".join(e for other in FORMATS for e in other.extensions)
        raise LabelError(
            "this is no label file that rescueseg reads", where=str(path), todo=f"Save the mask as {extensions}"
        )
    if not path.exists():
        raise LabelError("there is no such file", where=str(path), todo="Check the path")
    return kind


def _load(kind: PatchFormat, path: Path, frame: Frame) -> LabelFile:
    """Read a file; whatever is wrong with it becomes a `LabelError`."""
    try:
        return kind.load(path, frame)
    except (LabelError, VolumeError) as error:
        raise LabelError(error.what, where=error.where or str(path), todo=error.todo) from error
    except RescuesegError:
        raise
    except Exception as error:  # the readers of damaged files raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise LabelError(f"the file cannot be read: {reason}", where=str(path), todo="Save the mask again") from error


def _array_of_patch(content: LabelFile, path: Path, frame: Frame) -> npt.NDArray[Any]:
    """Return the array of a file; refuse it if its metadata or name says that it is of another patch."""
    array, box = content.array, frame.box
    if array.shape != box.shape_zyx and _squeezed(array.shape) == _squeezed(box.shape_zyx):
        array = array.reshape(box.shape_zyx)
    if array.shape != box.shape_zyx:
        raise LabelError(
            f"the mask has shape {array.shape}, its patch {box.shape_zyx} (z, y, x)",
            where=str(path),
            todo="Hand in the mask of this patch, unresampled and uncropped",
        )
    metadata = content.metadata
    ticket_id = metadata.ticket_id or (match[1] if (match := _OWN_NAME.match(path.name)) else frame.ticket_id)
    wrong = ""
    if ticket_id != frame.ticket_id:
        wrong = f"the mask is of ticket {ticket_id}, not of {frame.ticket_id}"
    elif metadata.spacing_um_zyx and not np.allclose(
        metadata.spacing_um_zyx, frame.spacing_um_zyx, _SPACING_TOLERANCE, 0
    ):
        wrong = f"the mask has voxels of {_joined(metadata.spacing_um_zyx)} µm, its patch {_joined(frame.spacing_um_zyx)} µm"
    elif metadata.offset_zyx and not _same_place(metadata, frame):
        wrong = f"the mask lies at voxel {_joined(metadata.offset_zyx)}, its patch at {_joined(box.offset_zyx)}"
    if wrong:
        raise LabelError(f"{wrong} (z, y, x)", where=str(path), todo="Hand in the mask of this patch")
    return array


def _same_place(metadata: PatchMetadata, frame: Frame) -> bool:
    """Tell whether a file begins where its patch does; a spacing that a tool rounded makes no difference."""
    assert metadata.offset_zyx is not None
    scale = np.divide(metadata.spacing_um_zyx or frame.spacing_um_zyx, frame.spacing_um_zyx)
    return np.allclose(np.multiply(metadata.offset_zyx, scale), frame.box.offset_zyx, 0, _OFFSET_TOLERANCE)


def _joined(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]
