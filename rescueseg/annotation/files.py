"""Patches as files for any annotation tool, and label files back: NIfTI, TIFF, npz."""

from __future__ import annotations

import json
import math
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.labels import starting_labels
from rescueseg.annotation.records import Lease
from rescueseg.campaign import Campaign
from rescueseg.errors import LabelError, storage_errors
from rescueseg.geometry import Box, Spacing

FORMATS = (".nii.gz", ".nii", ".tif", ".tiff", ".npz")


@dataclass(frozen=True)
class PatchFiles:
    """What an annotator opens."""

    image: Path
    labels: Path
    """The mask to correct and hand in; an existing file is left alone, it may hold work."""
    ticket: Path
    """JSON: lease, patch, spacing, class names."""
    kept: bool
    """Whether the mask was there already."""


def affine_mm(spacing_um_zyx: Spacing, offset_zyx: tuple[int, int, int] = (0, 0, 0)) -> npt.NDArray[np.float64]:
    """Return the NIfTI affine of a patch: x, y, z voxel indices to millimetre in the volume.

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    offset_zyx : tuple of int
        First voxel of the patch.
    """
    xyz = np.array(spacing_um_zyx[::-1]) / 1000.0
    affine = np.diag([*xyz, 1.0])
    affine[:3, 3] = xyz * offset_zyx[::-1]
    return affine


def write_patch(campaign: Campaign, lease: Lease, folder: Path) -> PatchFiles:
    """Write a leased patch as files: image, mask to start from, and a description.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    lease : Lease
        The lease.
    folder : Path
        Made if it is not there. Files are named by ticket; a mask that is there already is kept.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """
    from rescueseg import volumes

    ticket = lease.ticket
    record = campaign.volume(ticket.volume_id)
    affine = affine_mm(record.spacing_um_zyx, ticket.box.offset_zyx)
    image = volumes.read_box(volumes.open_image(campaign, ticket.volume_id), ticket.box)
    files = PatchFiles(
        folder / f"{ticket.ticket_id}_image.nii.gz",
        folder / f"{ticket.ticket_id}_labels.nii.gz",
        folder / f"{ticket.ticket_id}.json",
        (folder / f"{ticket.ticket_id}_labels.nii.gz").exists(),
    )
    described = {
        "lease": lease.lease_id,
        "annotator": lease.annotator,
        "expires_at": lease.expires_at.isoformat(),
        "ticket": ticket.to_json(),
        "spacing_um_zyx": list(record.spacing_um_zyx),
        "labels": {"0": "background", "255": "not annotated"}
        | {str(number): name for number, name in enumerate(campaign.config.classes, start=1)},
        "comment": lease.comment,
    }
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        write_nifti(files.image, image[0] if image.shape[0] == 1 else image, affine)
        if not files.kept:
            write_nifti(files.labels, starting_labels(campaign, lease), affine)
        text = json.dumps(described, indent=1)
        _write(files.ticket, lambda part: part.write_text(text + "\n", encoding="utf-8"))
    return files


def write_nifti(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    """Write a zyx or czyx array as NIfTI, atomically; channels become the fourth axis."""
    nib = _nibabel()
    xyz = voxels.T if voxels.ndim == 3 else np.moveaxis(voxels, 0, -1).transpose(2, 1, 0, 3)
    kind = {"bool": np.uint8, "float16": np.float32}.get(xyz.dtype.name, xyz.dtype)
    nifti = nib.Nifti1Image(xyz.astype(kind), affine, dtype=np.dtype(kind))
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, code="aligned")
    nifti.set_qform(affine, code="aligned")
    _write(path, lambda part: nib.save(nifti, part))


def _nibabel() -> Any:
    """Import nibabel, whose annotations are partial, when it is needed."""
    import nibabel

    return nibabel


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target and move it there."""
    part = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        write(part)
        os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)


def read_labels(path: Path, box: Box) -> npt.NDArray[Any]:
    """Read a label file.

    Parameters
    ----------
    path : Path
        NIfTI (any axis-aligned orientation), TIFF stack, or npz with one array (or one named ``array``).
    box : Box
        The patch; axes of length one that a format dropped are put back.

    Returns
    -------
    ndarray, zyx
        Not checked but for its shape.

    Raises
    ------
    LabelError
        If the file is missing, damaged, of an unknown format or of another shape.
    """
    name = path.name.lower()
    if not name.endswith(FORMATS):
        raise LabelError(
            "this is no label file that rescueseg reads", where=str(path), todo=f"Save the mask as {', '.join(FORMATS)}"
        )
    if not path.is_file():
        raise LabelError("there is no such file", where=str(path), todo="Check the path")
    read = _read_nifti if name.endswith((".nii.gz", ".nii")) else _read_npz if name.endswith(".npz") else _read_tiff
    from tifffile import TiffFileError

    nib = _nibabel()
    damaged = (
        OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, TiffFileError,
        nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
    )  # fmt: skip
    try:
        array = read(path, box)
    except damaged as error:
        raise LabelError(f"the file cannot be read: {error}", where=str(path), todo="Save the mask again") from error
    if array.shape != box.shape_zyx and _squeezed(array.shape) == _squeezed(box.shape_zyx):
        array = array.reshape(box.shape_zyx)
    return array


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def _too_large(shape: tuple[int, ...], path: Path, box: Box) -> None:
    """Refuse another image before its voxels are read."""
    if math.prod(shape) != box.size:
        raise LabelError(
            f"the mask has shape {shape}, its patch {box.shape_zyx} (z, y, x)",
            where=str(path),
            todo="Hand in the mask of this patch, unresampled and uncropped",
        )


def _read_nifti(path: Path, box: Box) -> npt.NDArray[Any]:
    nib = _nibabel()
    nifti = nib.load(path)
    _too_large(tuple(reversed(nifti.shape)), path, box)
    if nifti.header["sform_code"] or nifti.header["qform_code"]:
        nifti = nib.as_closest_canonical(nifti)
    return np.asarray(nifti.dataobj).T


def _read_tiff(path: Path, box: Box) -> npt.NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(path) as tif:
        if not tif.series:
            raise ValueError("it holds no image")
        _too_large(tif.series[0].shape, path, box)
        return np.asarray(tif.series[0].asarray())


def _read_npz(path: Path, box: Box) -> npt.NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        if "array" not in names and len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays; one named 'array' is needed")
        array: npt.NDArray[Any] = archive["array" if "array" in names else names[0]]
    _too_large(array.shape, path, box)
    return array
