"""Axes and voxel size in the metadata of OME-Zarr 0.1 to 0.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.errors import InvalidVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files.axes import axes_of_names
from rescueseg.image_files.placement import Placement
from rescueseg.image_files.units import to_um

_BEFORE_AXES = "tczyx"
"""The axes of every image before version 0.3, which does not name them."""
_PLAIN = ("scale", "translation", "identity")


def letters(multiscale: Any, ndim: int, where: str) -> str:
    """Return one letter per axis.

    Raises
    ------
    InvalidVolumeError
        If an axis is not known.

    Examples
    --------
    >>> letters({"axes": [{"name": "c", "type": "time"}, {"name": "z"}, {"name": "y"}, {"name": "x"}]}, 4, "a.zarr")
    'tzyx'
    """
    entries = _entries(multiscale, ndim)
    names = [str(entry.get("name", "")) for entry in entries]
    found = axes_of_names(names, [str(entry.get("type", "")) for entry in entries])
    if len(found) != ndim:
        raise InvalidVolumeError(
            f"axes {names} of an array with {ndim} axes are not known",
            where=where,
            todo="Say what they are with --axes, such as " + _BEFORE_AXES[-ndim:],
        )
    return found


def _entries(multiscale: Any, ndim: int) -> list[dict[str, Any]]:
    axes = multiscale.get("axes") or list(_BEFORE_AXES[-ndim:])
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]


def spacing(multiscale: Any, level: int, axes: str, group: zarr.Group) -> tuple[Spacing | None, str]:
    """Return the voxel size z, y, x in micrometre, and what the metadata say where that is not enough.

    Parameters
    ----------
    multiscale : dict
        One entry of ``multiscales``.
    level : int
        Which of its datasets.
    axes : str
        One letter per axis.
    group : zarr.Group
        Where transformations kept as arrays lie.
    """
    scale = np.ones(len(axes))
    scaled = False
    for transformation in _transformations(multiscale, level):
        kind = transformation.get("type")
        if kind not in _PLAIN:
            return None, f"the transformation '{kind}' is not understood"
        if kind == "scale":
            scale, scaled = scale * _numbers(transformation, group), True
    units = [entry.get("unit") for entry in _entries(multiscale, len(axes))]
    sizes = {a: to_um(float(v), u) for a, v, u in zip(axes, scale, units, strict=True)}
    z, y, x = (sizes.get(a) for a in "zyx")
    if not scaled:
        return None, "the OME-Zarr metadata give no scale"
    if z is None or y is None or x is None:
        told = " × ".join(f"{v:.6g}" for a, v in zip(axes, scale.tolist(), strict=True) if a in "zyx")
        order = ", ".join(a for a in axes if a in "zyx")
        named = sorted({str(u) for u in units if u and str(u).strip() and to_um(1, str(u)) is None})
        unit = f"in {', '.join(named)}, no unit of length" if named else "without a unit"
        return None, f"the scale is {told} ({order}) {unit}"
    return (z, y, x), ""


def placement(multiscale: Any, level: int, axes: str, group: zarr.Group) -> Placement | None:
    """Return where the grid lies in the space of its image, None where the metadata give no translation.

    Nobody can tell a translation of 0 that was left out from one that nobody thought of.
    """
    offset, step = np.zeros(len(axes)), np.ones(len(axes))
    entries = [t for t in _transformations(multiscale, level) if t.get("type") != "identity"]
    kinds = [t.get("type") for t in entries]
    if "translation" not in kinds or set(kinds) - {"scale", "translation"} or not set("zyx") <= set(axes):
        return None
    for transformation in entries:
        numbers = _numbers(transformation, group)
        if transformation["type"] == "scale":
            offset, step = offset * numbers, step * numbers
        else:
            offset = offset + numbers
    if not np.isfinite(step).all() or not step.all():
        return None
    units = [to_um(1.0, entry.get("unit")) for entry in _entries(multiscale, len(axes))]
    place = [axes.index(a) for a in "xyz"]
    um = [units[i] for i in place]
    factors = np.array([1.0 if u is None else u for u in um])
    affine = np.eye(4)
    affine[:3, :3] = np.diag(step[place] * factors)
    affine[:3, 3] = offset[place] * factors
    return Placement(affine, None if None in um else 1.0, "OME-Zarr")


def _transformations(multiscale: Any, level: int) -> list[Any]:
    """Return the transformations of a data set in the order in which they apply."""
    return [
        *(multiscale["datasets"][level].get("coordinateTransformations") or []),
        *(multiscale.get("coordinateTransformations") or []),
    ]


def _numbers(transformation: Any, group: zarr.Group) -> npt.NDArray[np.float64]:
    """Return the numbers of a scale or translation, which stand in the metadata or in an array that those name."""
    if transformation["type"] in transformation:
        return np.asarray(transformation[transformation["type"]], float)
    stored: Any = group[str(transformation["path"])]
    return np.asarray(stored[...], float)
