"""Labels that somebody uploads: read with bounds on disk and memory, and checked to be of the right patch."""

from __future__ import annotations

import gzip
import io
import math
import tempfile
import zlib
from collections.abc import AsyncIterator
from threading import BoundedSemaphore
from typing import IO, Any

import anyio
import nibabel
import numpy as np
import numpy.typing as npt
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from rescueseg.annotation.formats.nifti import image_class, nifti_image, parse
from rescueseg.annotation.formats.space import UM_PER_MM, affine_mm
from rescueseg.annotation.packing import DAMAGE_ERRORS, brief, labels_of, unpack
from rescueseg.errors import LabelError, RescuesegError
from rescueseg.geometry import Box, Spacing
from rescueseg.image_files.placement import nifti_placement
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import TicketRecord

BYTES_PER_VOXEL = 9
"""Float64 labels with an ignore mask beside them: the most that labels can need."""
SLACK_BYTES = 2**20
IDLE_SECONDS = 30.0
"""Timeout of an upload that sends nothing."""
AT_ONCE = BoundedSemaphore(4)
"""Limits the uploads that are unpacked and checked at once: each takes several times its patch in memory."""

_SPOOL_BYTES = 2**20
_EXTENSION_BYTES = 2**16


class RefusedError(Exception):
    """An error with an HTTP status other than its usual one."""

    def __init__(self, status: int, error: RescuesegError) -> None:
        super().__init__(str(error))
        self.status, self.error = status, error


def upload_limit(voxels: int) -> int:
    """Return the largest size in bytes of labels of a patch.

    Examples
    --------
    >>> upload_limit(32**3) - SLACK_BYTES
    294912
    """
    return voxels * BYTES_PER_VOXEL + SLACK_BYTES


def too_large(limit: int, todo: str = "Hand in the labels of this patch alone") -> RefusedError:
    """Return the error for an upload that is larger than allowed."""
    return RefusedError(413, LabelError(f"the upload is larger than the {limit:,} bytes allowed here", todo=todo))


async def receive(request: Request, limit: int) -> AsyncIterator[dict[str, IO[bytes]]]:
    """Yield the files of a request, by field name, or its raw body as `labels`; they are deleted afterwards.

    Raises
    ------
    RefusedError
        If it is larger than `limit`, stops coming, or is malformed.
    """
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as body:
        await _spool(request, body, limit)
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            yield {"labels": body}
            return

        async def chunks() -> Any:
            while chunk := body.read(2**16):
                yield chunk

        try:
            form = await MultiPartParser(request.headers, chunks(), max_files=2, max_fields=8).parse()
        except (MultiPartException, KeyError, ValueError) as error:
            todo = "Send one file in the field 'labels'"
            raise RefusedError(422, LabelError(f"the form cannot be read: {brief(error)}", todo=todo)) from error
        try:
            yield {name: part.file for name, part in form.multi_items() if isinstance(part, UploadFile)}
        finally:
            await form.close()


async def _spool(request: Request, body: Any, limit: int) -> None:
    total = 0
    chunks = request.stream()
    while True:
        try:
            with anyio.fail_after(IDLE_SECONDS):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise RefusedError(408, LabelError("the upload stopped", todo="Send it again")) from error
        if chunk is None:
            break
        total += len(chunk)
        if total > limit:
            raise too_large(limit)
        body.write(chunk)
    body.seek(0)


def read_upload(files: dict[str, IO[bytes]], ticket: TicketRecord, spacing_um_zyx: Spacing, kind: str) -> PatchLabels:
    """Return the labels in an upload.

    Parameters
    ----------
    files : dict of binary file
        `labels`: NIfTI (gzipped or not) or npz; with NIfTI object numbers optionally `ignore`, a mask of its own.
    ticket : TicketRecord
        The ticket whose patch they must cover.
    spacing_um_zyx : tuple of float
        Of the volume, in micrometre.
    kind : {"semantic", "instance"}
        What the campaign annotates.

    Raises
    ------
    LabelError
        If they cannot be read or belong elsewhere. Their values are not checked here.
    """
    if not set(files) <= {"labels", "ignore"} or "labels" not in files:
        raise LabelError("there is no file named 'labels'", todo="Send one file in the field 'labels'")
    if files["labels"].read(4) == b"PK\x03\x04":
        if len(files) > 1:
            raise LabelError("an npz carries its ignore mask inside", todo="Send the npz alone")
        files["labels"].seek(0)
        return labels_of(unpack(files["labels"], ticket.box.size * BYTES_PER_VOXEL)[0], kind)
    arrays = {}
    for name, file in files.items():
        file.seek(0)
        arrays[name] = read_nifti(file, ticket.box, spacing_um_zyx)
    return labels_of(arrays, kind)


def read_nifti(file: IO[bytes], box: Box, spacing_um_zyx: Spacing) -> npt.NDArray[Any]:
    """Read a NIfTI file of a patch, version 1 or 2, in whatever axis-aligned orientation and unit of length it is.

    Parameters
    ----------
    file : binary file
        Gzipped or not; no more of it is inflated than the patch takes.
    box : Box
        The patch.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray, zyx
        In the shape of the patch.

    Raises
    ------
    LabelError
        If it is damaged, no NIfTI, or of another patch.
    """
    nib: Any = nibabel  # its type annotations are partial
    damage = (
        *DAMAGE_ERRORS, nib.spatialimages.HeaderDataError, nib.filebasedimages.ImageFileError,
        nib.orientations.OrientationError,
    )  # fmt: skip
    try:
        data = _inflate(file, upload_limit(box.size))
        _check_head(data, box)
        nifti = parse(data)
        if nifti_placement(nifti) is not None:
            nifti = nib.as_closest_canonical(nifti)
            _check_place(nifti, box, spacing_um_zyx)
        voxels: npt.NDArray[Any] = np.asarray(nifti.dataobj)
    except damage as error:
        raise LabelError(
            f"the labels cannot be read: {brief(error)}", todo="Save them again, as NIfTI or npz"
        ) from error
    array: npt.NDArray[Any] = voxels.reshape(voxels.shape[:3]).T
    if array.shape != box.shape_zyx:
        raise _other_shape(array.shape, box)
    return array


def _inflate(file: IO[bytes], limit: int) -> bytes:
    """Return a file's content, gunzipped if it is gzipped; no more than `limit` bytes are ever inflated."""
    head = file.read(2)
    file.seek(0)
    if head != b"\x1f\x8b":
        return file.read()
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as inside:
            data = inside.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError("the gzip is damaged or cut short") from error
    if len(data) > limit:
        raise ValueError("they inflate to more than their patch allows")
    return data


def _check_head(data: bytes, box: Box) -> None:
    """Refuse another image before its voxels are read."""
    kind = image_class(data).header_class
    length = kind.template_dtype.itemsize
    if len(data) < length:
        raise ValueError("it is no NIfTI file")
    header = kind(data[:length], check=False)
    if bytes(header["magic"])[:3] != kind.single_magic:
        raise ValueError("it is no NIfTI file")
    dims = [int(n) for n in header["dim"]]
    if not 3 <= dims[0] <= 7 or any(n != 1 for n in dims[4 : dims[0] + 1]):
        raise ValueError("it is no 3D image")
    shape = tuple(reversed(dims[1:4]))
    if sorted(shape) != sorted(box.shape_zyx):
        raise _other_shape(shape, box)
    dtype = header.get_data_dtype()
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ValueError(f"voxels of type {dtype} are no labels")
    offset, first = float(header["vox_offset"]), kind.single_vox_offset
    if not first <= offset <= first + _EXTENSION_BYTES or math.prod(shape) * dtype.itemsize + offset > len(data):
        raise ValueError("it is shorter than its header says")


def _other_shape(shape: tuple[int, ...], box: Box) -> LabelError:
    return LabelError(
        f"the mask has shape {shape}, its patch {box.shape_zyx} (z, y, x)",
        todo="Hand in the mask of this patch, unresampled and uncropped",
    )


def _check_place(nifti: Any, box: Box, spacing_um_zyx: Spacing) -> None:
    """Refuse labels that lie elsewhere: their corners must be those of the patch, to a tenth of a voxel."""
    expected = affine_mm(spacing_um_zyx, box.offset_zyx)
    last = np.array(box.shape_zyx[::-1]) - 1.0
    corners = np.array([[0.0, 0.0, 0.0], [*last], [last[0], 0.0, 0.0], [0.0, last[1], 0.0]])
    placement = nifti_placement(nifti)
    assert placement is not None, "only labels with a place are checked"
    position_mm = placement.affine.copy()
    position_mm[:3] *= (placement.um_per_unit or UM_PER_MM) / UM_PER_MM
    there = np.c_[corners, np.ones(4)] @ np.linalg.solve(expected, position_mm).T
    off = float(np.abs(there[:, :3] - corners).max())
    if off > 0.1:
        raise LabelError(
            f"the mask lies up to {off:.3g} voxels away from its patch",
            todo="Hand in the mask of this patch, with the spacing and origin of its image",
        )


def nifti_bytes(voxels: npt.NDArray[Any], spacing_um_zyx: Spacing, offset_zyx: tuple[int, int, int]) -> bytes:
    """Return a zyx or czyx array as gzipped NIfTI in its place in the volume; channels become the fourth axis."""
    array = voxels[0] if voxels.ndim == 4 and voxels.shape[0] == 1 else voxels
    nifti = nifti_image(array, affine_mm(spacing_um_zyx, offset_zyx))
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(nifti.to_bytes())
    return buffer.getvalue()
