"""TIFF, NIfTI and NRRD of labels, written plane by plane."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from rescueseg.delivery.label_colours import class_colours, object_colour
from rescueseg.geometry import ZYX, Spacing, zyx

MOST_IMAGEJ_BYTES = 2**32 - 2**25
"""Larger files are BigTIFF, which ImageJ itself does not know."""
_LARGEST_UINT16 = 2**16 - 1
_LARGEST_FLOAT32 = 2**24
"""Up to here float32 holds every integer."""
_LARGEST_SIDE = 2**15 - 1
"""Of NIfTI-1."""
_SLAB_BYTES = 1 << 26
_TIFF_BYTES = 1 << 24
"""What tifffile compresses at once."""
_FASTEST = 1
"""Level of gzip: labels become small at any."""


@dataclass(frozen=True)
class LabelFile:
    """What is written into a file.

    Parameters
    ----------
    array : zarr.Array
        Labels at full resolution, zyx.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    affine_um : ndarray of float64, 4×4
        Voxel indices x, y, z to right, anterior, superior in micrometre.
    highest : int
        The largest label that occurs.
    classes : int or None
        K where the labels are classes, None where they are objects.
    in_mm : bool
        Whether the image came with places in millimetre, so that NRRD should too.
    """

    array: zarr.Array[Any]
    spacing_um_zyx: Spacing
    affine_um: npt.NDArray[np.float64]
    highest: int
    classes: int | None
    in_mm: bool

    @property
    def shape_zyx(self) -> ZYX:
        """In voxels."""
        return zyx(self.array.shape)

    def slabs(self) -> Iterator[npt.NDArray[Any]]:
        """Yield some planes at a time, in z order; at most 64 MiB, or one plane.

        Each is gone before the next is read, unless who asks for them keeps it.
        """
        plane_bytes = self.shape_zyx[1] * self.shape_zyx[2] * self.array.dtype.itemsize
        depth = _depth(max(1, _SLAB_BYTES // plane_bytes), zyx(self.array.chunks)[0])
        for start in range(0, self.shape_zyx[0], depth):
            yield np.asarray(self.array[start : start + depth])

    def planes(self) -> Iterator[npt.NDArray[Any]]:
        """Yield each plane, in z order."""
        for slab in self.slabs():
            yield from slab


def _depth(most: int, chunk: int) -> int:
    """Return a number of planes that cuts few chunks: some chunks, or the largest part of one that divides it.

    Examples
    --------
    >>> _depth(80, 32), _depth(31, 32), _depth(9, 32), _depth(1, 32)
    (64, 16, 8, 1)
    """
    if most >= chunk:
        return most // chunk * chunk
    return next(n for n in range(most, 0, -1) if chunk % n == 0)


# TIFF -----------------------------------------------------------------------------------------------------------------


def tiff_dtype(shape_zyx: ZYX, highest: int) -> np.dtype[Any]:
    """Return the voxel type of a TIFF; ImageJ knows 8 and 16 bits and float32.

    Examples
    --------
    >>> [str(tiff_dtype((9, 99, 99), n)) for n in (2, 300, 70_000, 20_000_000)]
    ['uint8', 'uint16', 'float32', 'uint32']
    >>> str(tiff_dtype((3000, 3000, 3000), 70_000))
    'uint32'
    """
    if highest <= _LARGEST_UINT16:
        return np.dtype(np.uint8 if highest < 256 else np.uint16)
    fits = highest <= _LARGEST_FLOAT32 and 4 * math.prod(shape_zyx) < MOST_IMAGEJ_BYTES
    return np.dtype(np.float32 if fits else np.uint32)


def write_tiff(path: Path, labels: LabelFile) -> None:
    """Write a TIFF: an ImageJ stack where ImageJ can open it, else a compressed BigTIFF with OME-XML.

    ImageJ's needs less than 4 GiB and knows no 32-bit integers: labels above 65535 are float32, exact up to 2²⁴. Voxel
    sizes are in micrometre. Labels up to 255 have a colour table, for classes that of the OME-Zarr; ImageJ shows others as
    shades of grey.
    """
    dtype = tiff_dtype(labels.shape_zyx, labels.highest)
    planes = (plane.astype(dtype) for plane in labels.planes())
    fits = dtype != np.uint32 and dtype.itemsize * math.prod(labels.shape_zyx) < MOST_IMAGEJ_BYTES
    options = _imagej_options(labels, dtype) if fits else _ome_options(labels.spacing_um_zyx)
    tifffile.imwrite(path, planes, shape=labels.shape_zyx, dtype=dtype, **options)


def _imagej_options(labels: LabelFile, dtype: np.dtype[Any]) -> dict[str, Any]:
    z, y, x = labels.spacing_um_zyx
    metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
    options = {"imagej": True, "resolution": (1 / x, 1 / y)}
    if dtype == np.uint8:
        return options | {"metadata": metadata, "photometric": "palette", "colormap": _colour_map(labels.classes)}
    return options | {"metadata": metadata | {"min": 0.0, "max": float(labels.highest)}, "photometric": "minisblack"}


def _ome_options(spacing_um_zyx: Spacing) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "ZYX"}
    for axis, size in zip("ZYX", spacing_um_zyx, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    return {
        "ome": True, "bigtiff": True, "metadata": metadata, "photometric": "minisblack", "compression": "zlib",
        "buffersize": _TIFF_BYTES,
    }  # fmt: skip


def _colour_map(classes: int | None) -> npt.NDArray[np.uint16]:
    """Return colours for 256 values as a TIFF has them, (3, 256), black first."""
    colours = [object_colour(n) for n in range(1, 256)] if classes is None else class_colours(classes)
    table = np.zeros((3, 256), np.uint16)
    table[:, 1 : 1 + len(colours)] = np.array(colours[:255], np.uint16).T * 257
    return table


# NIfTI and NRRD -------------------------------------------------------------------------------------------------------


def write_nifti(path: Path, labels: LabelFile) -> None:
    """Write a gzipped NIfTI in millimetre: version 1, or 2 where a side has more than 32767 voxels."""
    nib: Any = nibabel  # its type annotations are partial
    header = (nib.Nifti1Header if max(labels.shape_zyx) <= _LARGEST_SIDE else nib.Nifti2Header)(endianness="<")
    affine = labels.affine_um.copy()
    affine[:3] /= 1000
    header.set_data_dtype(labels.array.dtype)
    header.set_data_shape(labels.shape_zyx[::-1])
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="aligned")
    header.set_qform(affine, code="aligned")
    start = (int(header.sizeof_hdr) + 4 + 15) // 16 * 16
    header["vox_offset"] = start
    with path.open("wb") as file, _gzip(file) as stream:
        header.write_to(stream)
        stream.write(bytes(start - stream.tell()))
        _write_slabs(stream, labels)


def write_nrrd(path: Path, labels: LabelFile) -> None:
    """Write a gzipped NRRD, its directions in micrometre; in millimetre where the image came with a place in that unit."""
    affine = labels.affine_um.copy()
    unit = "mm" if labels.in_mm else "um"
    affine[:3] /= 1000 if labels.in_mm else 1
    lines = (
        "NRRD0005",
        f"type: {labels.array.dtype.name}",
        "dimension: 3",
        "space: right-anterior-superior",
        f"sizes: {' '.join(str(n) for n in labels.shape_zyx[::-1])}",
        f"space directions: {' '.join(_vector(affine[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
        f'space units: "{unit}" "{unit}" "{unit}"',
    )
    with path.open("wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        with _gzip(file) as stream:
            _write_slabs(stream, labels)


def _vector(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def _gzip(file: IO[bytes]) -> gzip.GzipFile:
    """Return a stream whose bytes depend on what is written alone: no name, no time."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=_FASTEST, fileobj=file, mtime=0)


def _write_slabs(stream: gzip.GzipFile, labels: LabelFile) -> None:
    dtype = labels.array.dtype.newbyteorder("<")
    for slab in labels.slabs():
        stream.write(np.ascontiguousarray(slab, dtype).data)
