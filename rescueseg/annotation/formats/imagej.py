"""Calibrated ImageJ TIFF hyperstacks: Fiji, Labkit, MorphoLibJ.

ImageJ knows 8 and 16-bit integers and 32-bit floats. Labels are written with 8 bits (classes) or 16 (objects); floats
are read where they hold whole numbers, as MorphoLibJ saves them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from rescueseg.annotation.client import PatchView
from rescueseg.annotation.formats.base import (
    Frame,
    Kind,
    LabelFile,
    PatchFiles,
    PatchMetadata,
    marked_ticket,
    number_array,
    ticket_mark,
    write_file,
    write_labels_and_ignore,
)
from rescueseg.annotation.formats.bounded import most_bytes, too_large
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.image_files.tiff import calibrated, complaints, require_upright
from rescueseg.image_files.tiff_spacing import imagej_spacing
from rescueseg.labels import PatchLabels

_COMPRESSIONS = (1, 5, 8, 32773, 32946, 50000)
"""None, LZW, both kinds of deflate, PackBits, Zstandard: nothing lossy, nothing exotic."""
_ORIGINS = ("zorigin", "yorigin", "xorigin")


class ImageJ:
    """TIFF as ImageJ writes it: ZYX or ZCYX, with spacing, unit, and the patch's place as origin."""

    name = "imagej"
    extensions: tuple[str, ...] = (".tif", ".tiff", ".btf")
    carries: tuple[Kind, ...] = ("semantic", "instance")
    largest = 2**16 - 1
    ignore_apart = True

    def write(self, folder: Path, view: PatchView, frame: Frame) -> PatchFiles:
        """Write image, mask and uncertainty."""
        ticket, inside = frame.ticket_id, view.inside.slices
        image, labels = folder / f"{ticket}_image.tif", folder / f"{ticket}_labels.tif"
        is_resumed, others = labels.exists(), []
        write_imagej(image, view.image[(slice(None), *inside)], frame.box, frame)
        if view.uncertainty is not None:
            others.append(folder / f"{ticket}_uncertainty.tif")
            write_imagej(others[-1], view.uncertainty[inside], frame.box, frame)
        ignore = write_labels_and_ignore(self, labels, view.start, frame, keep=is_resumed)
        return PatchFiles(image, labels, folder / f"{ticket}.json", is_resumed, ignore, tuple(others))

    def write_labels(self, path: Path, labels: PatchLabels, frame: Frame) -> None:
        """Write classes or object numbers."""
        write_imagej(path, number_array(labels, self.largest, "an ImageJ TIFF"), frame.box, frame)

    def load(self, path: Path, frame: Frame) -> LabelFile:
        """Read a label file; planes may be named z, c or t."""
        with complaints() as messages, tifffile.TiffFile(path) as tif:
            metadata, series = _metadata(tif), tif.series[0] if tif.series else None
            if series is None:
                raise ValueError("it holds no image")
            if len(tif.series) > 1:
                raise LabelError(f"it holds {len(tif.series)} images", todo="Save the mask alone, as one stack")
            if math.prod(series.shape) != frame.box.size:
                return LabelFile(np.broadcast_to(np.uint8(0), series.shape), metadata)
            page: Any = series.keyframe
            if int(page.compression) not in _COMPRESSIONS:
                raise LabelError(
                    "its compression is lossy or not read", todo="Save the mask uncompressed, or as LZW or ZIP"
                )
            if math.prod(page.chunks) * page.dtype.itemsize > most_bytes(frame.box.size):
                raise too_large()
            require_upright(page)
            array = np.asarray(calibrated(tif, series.asarray())[0][...])
            if "Y" in series.axes and "X" in series.axes:
                last = [series.axes.index("Y"), series.axes.index("X")]
                array = array.transpose([*(i for i in range(array.ndim) if i not in last), *last])
        if messages:
            raise ValueError(messages[0])
        return LabelFile(array, metadata)

    def metadata(self, path: Path) -> PatchMetadata:
        """Return ticket, position and spacing from the ImageJ metadata."""
        with complaints(), tifffile.TiffFile(path) as tif:
            return _metadata(tif)


def write_imagej(path: Path, voxels: npt.NDArray[Any], box: Box, frame: Frame) -> None:
    """Write a zyx or czyx array as an ImageJ hyperstack, atomically.

    Parameters
    ----------
    path : Path
        Ending in ``.tif``.
    voxels : ndarray
        uint8, uint16 and float32 stay as they are, bool becomes uint8, all else float32.
    box : Box
        The part of the volume it covers: ImageJ's coordinates are those of the volume.
    frame : Frame
        Spacing and ticket.
    """
    if voxels.dtype == np.bool_:
        voxels = voxels.astype(np.uint8)
    elif voxels.dtype not in (np.uint8, np.uint16, np.float32):
        voxels = voxels.astype(np.float32)
    z, y, x = frame.spacing_um_zyx
    meta: dict[str, Any] = {"axes": "TZCYXS", "spacing": z, "unit": "um", "Info": ticket_mark(frame.ticket_id)}
    meta |= {name: float(-first) for name, first in zip(_ORIGINS, box.offset_zyx, strict=True)}
    meta |= {"min": float(voxels.min()), "max": max(float(voxels.max()), float(voxels.min()) + 1)}
    planes = voxels.swapaxes(0, 1) if voxels.ndim == 4 else voxels[:, np.newaxis]
    stack = planes[np.newaxis, ..., np.newaxis]  # written out in full, or a last axis of length one gets lost
    write_file(path, lambda part: tifffile.imwrite(part, stack, imagej=True, resolution=(1 / x, 1 / y), metadata=meta))


def _metadata(tif: Any) -> PatchMetadata:
    meta: dict[str, Any] = tif.imagej_metadata or {}
    if not tif.is_imagej:
        return PatchMetadata()
    ticket = marked_ticket(meta.get("Info"))
    spacing, _ = imagej_spacing(tif, meta)
    if not all(name in meta for name in _ORIGINS):
        return PatchMetadata(ticket, None, spacing)
    z, y, x = (-float(meta[name]) for name in _ORIGINS)
    return PatchMetadata(ticket, (z, y, x), spacing)
