"""NIfTI: what ITK-SNAP, 3D Slicer, napari and nearly every other tool opens."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

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
    write_file,
)
from rescueseg.annotation.formats.bounded import HEAD_BYTES, most_bytes, read_file, too_large
from rescueseg.annotation.formats.itksnap import write_with_workspace
from rescueseg.annotation.formats.space import affine_mm, straighten
from rescueseg.geometry import Box
from rescueseg.image_files.placement import nifti_placement
from rescueseg.labels import PatchLabels

_DESCRIPTION_BYTES = 79
_PAIR = (".hdr", ".img")


class Nifti:
    """NIfTI-1 and 2, plain, gzipped or in two files; written in millimetre, RAS, at the patch's place in its volume."""

    name = "nifti"
    extensions: tuple[str, ...] = (".nii.gz", ".nii", ".hdr", ".img")
    carries: tuple[Kind, ...] = ("semantic", "instance")
    largest = 2**32 - 1
    ignore_apart = True

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image, mask, uncertainty, surroundings, and an ITK-SNAP workspace of them."""
        return write_with_workspace(self, folder, view, frame)

    def write_image(self, path: Path, image: npt.NDArray[Any], box: Box, frame: Frame) -> None:
        """Write a czyx or zyx image that covers `box`."""
        voxels = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
        write_nifti(path, voxels, affine_mm(frame.spacing_um_zyx, box.offset_zyx))

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write classes or object numbers."""
        affine = affine_mm(frame.spacing_um_zyx, frame.box.offset_zyx)
        write_nifti(path, number_array(labels, self.largest, "NIfTI"), affine, frame.ticket_id)

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read a label file; one without a position is taken as it is."""
        gzipped = path.name.lower().endswith(".gz")
        if path.name.lower().endswith(_PAIR):
            image: Any = nibabel.load(path)  # voxels are read below, once their number is known
        else:
            image = parse(read_file(path, most_bytes(frame.box.size), gzipped=gzipped))
        if int(np.prod(image.shape)) != frame.box.size:
            return LabelFile(np.empty(tuple(reversed(image.shape[:16])), np.uint8), PatchMetadata())
        voxels = np.asarray(image.dataobj)
        ticket = marked_ticket(image.header["descrip"].tobytes())
        xyz = voxels.reshape(voxels.shape[:3]) if voxels.ndim > 3 else voxels
        placement = nifti_placement(image)
        if placement is None or xyz.ndim < 3:
            return LabelFile(xyz.T, PatchMetadata(ticket))
        straight, metadata = straighten(xyz, placement)
        return LabelFile(straight, PatchMetadata(ticket, metadata.offset_zyx, metadata.spacing_um_zyx))

    def metadata(self, path: Path) -> PatchMetadata:
        """Return ticket, position and spacing from the header."""
        if path.name.lower().endswith(_PAIR):
            image: Any = nibabel.load(path)
        else:
            with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
                image = parse(file.read(HEAD_BYTES))
        ticket = marked_ticket(image.header["descrip"].tobytes())
        placement = nifti_placement(image)
        if placement is None:
            return PatchMetadata(ticket)
        outline = np.broadcast_to(np.uint8(0), image.shape[:3])
        _, metadata = straighten(outline, placement)
        return PatchMetadata(ticket, metadata.offset_zyx, metadata.spacing_um_zyx)


def write_nifti(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], ticket_id: str = "") -> None:
    """Write a zyx or czyx array as NIfTI, atomically; channels become the fourth axis.

    Parameters
    ----------
    path : Path
        Ending in ``.nii`` or ``.nii.gz``.
    voxels : ndarray
        bool is written as uint8, float16 as float32.
    affine : ndarray, 4×4
        x, y, z voxel indices to millimetre; see `rescueseg.annotation.formats.space.affine_mm`.
    ticket_id : str
        Ticket of the labels; written into the header's description.
    """
    nifti = nifti_image(voxels, affine, ticket_id)
    write_file(path, lambda part: nibabel.save(nifti, part))


def nifti_image(voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], ticket_id: str = "") -> Any:
    """Return a zyx or czyx array as a nibabel image; parameters as of `write_nifti`."""
    nib: Any = nibabel  # its type annotations are partial
    xyz = medical_dtype(voxels.T if voxels.ndim == 3 else np.moveaxis(voxels, 0, -1).transpose(2, 1, 0, 3))
    nifti = nib.Nifti1Image(xyz, affine, dtype=xyz.dtype)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, code="aligned")
    nifti.set_qform(affine, code="aligned")
    mark = ticket_mark(ticket_id).encode() if ticket_id else b""
    nifti.header["descrip"] = mark if len(mark) <= _DESCRIPTION_BYTES else b""
    return nifti


def image_class(data: bytes) -> Any:
    """Return nibabel's class for a NIfTI file's bytes, version 1 or 2."""
    second = data[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
    return nibabel.Nifti2Image if second else nibabel.Nifti1Image


def parse(data: bytes) -> Any:
    """Return the image in a NIfTI file's bytes, its voxels not looked at.

    Raises
    ------
    LabelError
        If its header is longer than any honest one.
    Exception
        Nearly any, for damaged bytes.
    """
    image = image_class(data).from_bytes(data)
    if int(image.dataobj.offset) > HEAD_BYTES:
        raise too_large()
    return image
