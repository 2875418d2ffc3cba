"""NIfTI (.nii, .nii.gz, .hdr with .img) and ANALYZE; x is stored first, units are never guessed."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from rescueseg.errors import InvalidVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files import hints
from rescueseg.image_files.placement import nifti_placement
from rescueseg.image_files.source import ArraySource, Statement, scaled
from rescueseg.image_files.units import to_um

_NAMES = (".nii", ".nii.gz", ".nii.bz2", ".hdr", ".img", ".img.gz", ".hdr.gz")
_SAME = 1e-3
_GZIP = zlib.MAX_WBITS | 16
_CHUNK = 1 << 16


def is_nifti(path: str) -> bool:
    """Tell a NIfTI by its name."""
    return path.lower().endswith(_NAMES)


def open_nifti(path: str, said: Statement) -> ArraySource:
    """Open a NIfTI: array order counts, scaled values are what the header's slope and intercept make of them."""
    nib: Any = nibabel
    image: Any = nib.load(path, keep_file_open=True)
    if not isinstance(image, nib.spatialimages.SpatialImage) or not hasattr(image, "dataobj"):
        raise InvalidVolumeError(
            f"it is a {type(image).__name__}, not a 3D image", where=path, todo="Export it as a NIfTI volume"
        )
    header = image.header
    _require_whole_stream(path)
    if image.ndim > 5 and not said.axes:
        raise InvalidVolumeError(f"it has {image.ndim} axes", where=path, todo="Save one 3D image per file")
    axes = said.axes or "xyztc"[: image.ndim]
    spacing, note = _spacing(image, axes)
    compressed = path.lower().endswith((".gz", ".bz2"))
    file_hints = hints.of_pairs({"descrip": bytes(header["descrip"]).rstrip(b"\0")} if "descrip" in header else {})
    return ArraySource(
        _values(image), axes, spacing, path, chunked=not compressed, spacing_note=note, hints=file_hints,
        placement=None if said.axes else nifti_placement(image), said=said,
    )  # fmt: skip


class _Unscaled:
    """The stored voxels of a nibabel array, without its slope and intercept."""

    def __init__(self, proxy: Any) -> None:
        self._proxy, self.shape, self.dtype = proxy, tuple(proxy.shape), np.dtype(proxy.dtype)

    def __getitem__(self, key: Any) -> Any:
        return self._proxy._get_unscaled(slicer=key)


def _values(image: Any) -> Any:
    """Return the voxels as their header means them; a slope of 0 or NaN means none."""
    proxy: Any = image.dataobj
    if not hasattr(proxy, "slope"):
        return proxy
    return scaled(_Unscaled(proxy), float(proxy.slope), float(proxy.inter))


def _require_whole_stream(path: str) -> None:
    """Refuse a gzipped file that is damaged: nibabel stops before the checksum at its end."""
    if not path.lower().endswith(".gz"):
        return
    with Path(path).open("rb") as file:
        inflate = zlib.decompressobj(_GZIP)
        while chunk := file.read(_CHUNK):
            inflate.decompress(chunk)
            if inflate.eof:
                return
    raise EOFError("the gzipped file ends too early")


def _stated_sizes(image: Any) -> list[float]:
    """Return the sizes of all axes as the file holds them: nibabel replaces a size of 0 by 1."""
    entry = image.file_map.get("header") or image.file_map["image"]
    holder = entry if entry.filename else image.file_map["image"]
    with nibabel.openers.ImageOpener(holder.filename) as file:
        raw = type(image.header).from_fileobj(file, check=False)
    return [abs(float(v)) for v in raw["pixdim"][1 : 1 + image.ndim]]


def _spacing(image: Any, axes: str) -> tuple[Spacing | None, str]:
    """Return the voxel size of the header's affine and of its list of sizes; where they disagree, neither."""
    header = image.header
    sizes = _stated_sizes(image)
    if not set("xyz") <= set(axes) or len(axes) != len(sizes):
        return None, ""
    zooms = [sizes[axes.index(a)] for a in "xyz"]
    if not min(zooms) > 0:
        return None, f"the NIfTI header says {_text(zooms)} (z y x)"
    unit = str(header.get_xyzt_units()[0]) if hasattr(header, "get_xyzt_units") else ""
    placement = nifti_placement(image) if axes[:3] == "xyz" else None
    if placement is not None and not placement.is_rectangular:
        return (
            None,
            f"the axes in the NIfTI header are not at right angles, {_text(placement.steps[::-1])} (z y x) along them",
        )
    if placement is not None and not np.allclose(placement.steps[::-1], zooms, rtol=_SAME, atol=0):
        return None, (
            f"the affine of the NIfTI header says {_text(placement.steps[::-1])}, its pixdim {_text(zooms)} (z y x)"
        )
    return spacing_of(zooms, unit, "NIfTI header")


def spacing_of(xyz: list[float], unit: str | list[str], what: str) -> tuple[Spacing | None, str]:
    """Return the voxel size z, y, x in micrometre from one along x, y, z, and what the file says where that fails."""
    units = [unit] * 3 if isinstance(unit, str) else unit
    sizes = [to_um(v, u) for v, u in zip(xyz, units, strict=False)]
    if len(sizes) != 3 or any(s is None for s in sizes):
        return None, f"the {what} says {_text(xyz)} (z y x) without a unit of length"
    x, y, z = (float(s) for s in sizes if s is not None)
    return (z, y, x), ""


def _text(xyz: Any) -> str:
    return " × ".join(f"{float(v):.6g}" for v in reversed(list(xyz)))
