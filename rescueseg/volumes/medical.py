"""NIfTI and NRRD. Both store x first; units are never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np

from rescueseg.geometry import Spacing
from rescueseg.volumes import hints
from rescueseg.volumes.source import ArraySource, to_um

_RAW = ("raw",)


def is_nifti(path: str) -> bool:
    """Tell a NIfTI by its name."""
    return path.lower().endswith((".nii", ".nii.gz"))


def open_nifti(path: str) -> ArraySource:
    """Open a NIfTI; the orientation in its affine is left aside, array order counts."""
    image: Any = nibabel.load(path, keep_file_open=True)
    header = image.header
    unit = str(header.get_xyzt_units()[0])
    zooms = [float(v) for v in header.get_zooms()[:3]]
    axes = "xyztc"[: image.ndim] if image.ndim <= 5 else "?" * image.ndim
    spacing, note = _spacing(zooms, unit, "NIfTI header")
    compressed = path.lower().endswith(".gz")
    file_hints = hints.of_pairs({"descrip": bytes(header["descrip"]).rstrip(b"\0")} if "descrip" in header else {})
    return ArraySource(image.dataobj, axes, spacing, path, chunked=not compressed, spacing_note=note, hints=file_hints)


def is_nrrd(path: str) -> bool:
    """Tell an NRRD by its name."""
    return path.lower().endswith((".nrrd", ".nhdr"))


def open_nrrd(path: str) -> ArraySource:
    """Open an NRRD; one with raw encoding is mapped, others have to be unpacked at once."""
    with Path(path).open("rb") as file:
        header: dict[str, Any] = dict(nrrd.read_header(file))
        offset = file.tell()
        detached = "data file" in header or "datafile" in header
        if header.get("encoding") in _RAW and not detached and not header.get("byte skip"):
            shape = tuple(int(n) for n in header["sizes"])
            array: Any = np.memmap(file, dtype=nrrd_dtype(header), mode="r", offset=offset, shape=shape, order="F")
            chunked = True
        else:
            array, chunked = nrrd.read(path, index_order="F")[0], False
    axes, numbers, unit = _nrrd_axes(header)
    spacing, note = _spacing(numbers, unit, "NRRD header") if numbers else (None, "")
    file_hints = hints.of_pairs(header)
    return ArraySource(array, axes, spacing, path, chunked=chunked, spacing_note=note, hints=file_hints)


def nrrd_dtype(header: dict[str, Any]) -> np.dtype[Any]:
    """Return the voxel type that an NRRD header states."""
    order = "<" if header.get("endian", "little") == "little" else ">"
    return np.dtype(order + str(nrrd.reader._TYPEMAP_NRRD2NUMPY[header["type"]]))


def _nrrd_axes(header: dict[str, Any]) -> tuple[str, list[float], str]:
    """Return the axis letters in file order, the voxel size x y z (empty when unknown) and its unit."""
    kinds = list(header.get("kinds", []))
    ndim = int(header["dimension"])
    space_axes = [i for i in range(ndim) if i >= len(kinds) or kinds[i] in ("domain", "space", "???", "none")]
    if ndim == 4 and len(space_axes) == 4:
        space_axes = [1, 2, 3]
    letters = ["c"] * ndim
    for letter, axis in zip("xyz", space_axes, strict=False):
        letters[axis] = letter
    directions = header.get("space directions")
    if directions is not None:
        rows = [np.asarray(directions[a], float) for a in space_axes if directions[a] is not None]
        numbers = [float(np.linalg.norm(row)) for row in rows]
        units = list(header.get("space units", []))
    else:
        spacings = header.get("spacings", [])
        numbers = [float(spacings[a]) for a in space_axes if a < len(spacings)]
        units = [u for u in header.get("units", []) if u]
    unit = str(units[-1]).strip('"') if units else ""
    return "".join(letters), numbers if len(numbers) == 3 else [], unit


def _spacing(xyz: list[float], unit: str, what: str) -> tuple[Spacing | None, str]:
    sizes = [to_um(v, unit) for v in xyz]
    if len(sizes) != 3 or any(s is None for s in sizes):
        sizes_text = " × ".join(f"{v:.6g}" for v in reversed(xyz))
        return None, f"the {what} says {sizes_text} (z y x) without a unit of length"
    x, y, z = (float(s) for s in sizes if s is not None)
    return (z, y, x), ""
