"""NRRD and NHDR; x is stored first, units are never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files import hints
from rescueseg.image_files.nifti import spacing_of
from rescueseg.image_files.placement import Placement, nrrd_to_ras
from rescueseg.image_files.source import ArraySource, Statement
from rescueseg.image_files.units import to_um

_SPACE_KINDS = ("domain", "space", "???", "none", "")
_DETACHED = ("data file", "datafile")
_SKIPPED = ("byte skip", "byteskip", "line skip", "lineskip")


def is_nrrd(path: str) -> bool:
    """Tell an NRRD by its name."""
    return path.lower().endswith((".nrrd", ".nhdr"))


def open_nrrd(path: str, said: Statement) -> ArraySource:
    """Open an NRRD; one with raw encoding is mapped, others have to be unpacked at once."""
    with Path(path).open("rb") as file:
        if not file.read(4).startswith(b"NRRD"):
            raise UnreadableVolumeError("it has no NRRD header", where=path, todo="Check that the file is complete")
        file.seek(0)
        header: dict[str, Any] = dict(nrrd.read_header(file))
        offset = file.tell()
        apart = any(header.get(key) not in (None, 0) for key in (*_DETACHED, *_SKIPPED))
        if str(header["type"]) == "block":
            raise InvalidVolumeError("it holds blocks of bytes", where=path, todo="Save it as numbers")
        if header.get("encoding") == "raw" and not apart:
            shape = tuple(int(n) for n in header["sizes"])
            array: Any = np.memmap(file, dtype=nrrd_dtype(header), mode="r", offset=offset, shape=shape, order="F")
            chunked = True
        else:
            array, chunked = nrrd.read(path, index_order="F")[0], False
    axes = said.axes or nrrd_axes(header, path)
    spacing, note = _spacing(header, [axes.index(a) for a in "xyz"] if set("xyz") <= set(axes) else [])
    return ArraySource(
        array, axes, spacing, path, chunked=chunked, spacing_note=note, hints=hints.of_pairs(header),
        placement=nrrd_placement(header) if not said.axes else None, said=said,
    )  # fmt: skip


def nrrd_dtype(header: dict[str, Any]) -> np.dtype[Any]:
    """Return the voxel type that an NRRD header states."""
    order = "<" if header.get("endian", "little") == "little" else ">"
    return np.dtype(order + str(nrrd.reader._TYPEMAP_NRRD2NUMPY[header["type"]]))


def space_axes(header: dict[str, Any]) -> list[int]:
    """Return the axes of an NRRD that lie in space: those with a direction, else those whose kind says so."""
    ndim = int(header["dimension"])
    directions = header.get("space directions")
    if directions is not None:
        return [
            a for a in range(ndim) if directions[a] is not None and np.isfinite(np.asarray(directions[a], float)).all()
        ]
    kinds = [str(k).lower() for k in header.get("kinds", [])]
    return [a for a in range(ndim) if a >= len(kinds) or kinds[a] in _SPACE_KINDS]


def nrrd_axes(header: dict[str, Any], where: str) -> str:
    """Return the axis letters of an NRRD in file order.

    Raises
    ------
    InvalidVolumeError
        If the header leaves open which axes lie in space.
    """
    ndim, kinds = int(header["dimension"]), [str(k).lower() for k in header.get("kinds", [])]
    in_space = space_axes(header)
    if len(in_space) > 3:
        raise InvalidVolumeError(
            f"it has {ndim} axes, and the header does not say what they are",
            where=where,
            todo=f"Say so in the file's order with --axes, such as {'cxyz' if ndim == 4 else 'xyz'} or {'xyzc' if ndim == 4 else 'xyz'}",
        )
    letters = ["c"] * ndim
    for axis in range(ndim):
        if axis not in in_space and axis < len(kinds) and kinds[axis] == "time":
            letters[axis] = "t"
    for letter, axis in zip("xyz", in_space, strict=False):
        letters[axis] = letter
    return "".join(letters)


def _spacing(header: dict[str, Any], axes: list[int]) -> tuple[Spacing | None, str]:
    """Return the voxel size of the axes x, y, z, and what the header says where that is not enough."""
    directions = header.get("space directions")
    if directions is not None:
        rows = [directions[a] for a in axes]
        if len(rows) != 3 or any(r is None or not np.isfinite(np.asarray(r, float)).all() for r in rows):
            return None, ""
        numbers = [float(np.linalg.norm(np.asarray(r, float))) for r in rows]
        placement = nrrd_placement(header)
        if placement is not None and not placement.is_rectangular:
            sizes = " × ".join(f"{v:.6g}" for v in reversed(numbers))
            return None, f"the axes in the NRRD header are not at right angles, {sizes} (z y x) along them"
        units = _space_units(header)
        steps = np.asarray(list(rows), float)
        if len(set(units)) > 1 and units:  # one unit for each axis of the space, not of the file
            factors = np.array([to_um(1.0, u) or np.nan for u in units])
            lengths = np.linalg.norm(steps * factors, axis=1)
            return spacing_of([float(v) for v in lengths], "um", "NRRD header")
        return spacing_of(numbers, units[0] if units else "", "NRRD header")
    spacings = header.get("spacings", [])
    numbers = [float(spacings[a]) for a in axes if a < len(spacings)]
    if len(numbers) != 3:
        return None, ""
    names = [str(u).strip('"') for u in header.get("units", [])]
    return spacing_of(numbers, [names[a] if a < len(names) else "" for a in axes], "NRRD header")


def _space_units(header: dict[str, Any]) -> list[str]:
    return [str(u).strip('"') for u in header.get("space units", [])]


def nrrd_placement(header: dict[str, Any]) -> Placement | None:
    """Return where the grid of an NRRD lies, None where its header gives no directions."""
    directions, axes = header.get("space directions"), space_axes(header)
    if directions is None or len(axes) != 3:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.asarray([directions[a] for a in axes], float).T
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), float)
    factors = [to_um(1.0, u) for u in _space_units(header)]
    if len(factors) == 3 and len(set(factors)) > 1 and None not in factors:
        affine[:3] *= np.asarray(factors, float)[:, None]
        factors = [1.0]
    turn = nrrd_to_ras(str(header.get("space", "")))
    return Placement(turn @ affine, factors[0] if factors else None)
