"""Attributes that arrays in HDF5 and Zarr carry by custom: axis names, voxel size, calibration, fill value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rescueseg.geometry import Spacing
from rescueseg.image_files.axes import axes_of_names
from rescueseg.image_files.source import scaled
from rescueseg.image_files.units import to_um

_NAMES = ("_ARRAY_DIMENSIONS", "axis_names", "dimension_names", "axes", "axis_order", "dim_order")
_SIZES = ("resolution", "voxel_size", "spacing", "pixel_size")
_UNITS = ("units", "unit")
_LOOKED_AT = 32 * 2**20
"""Voxels read at most in the search for a fill value."""


def named_axes(attributes: Mapping[str, Any], ndim: int) -> str:
    """Return the axes that attributes name (xarray, funlib, Nexus), nothing where none does.

    Examples
    --------
    >>> named_axes({"_ARRAY_DIMENSIONS": ["time", "z", "y", "x"]}, 4), named_axes({"axis_names": ["c^", "z", "y", "x"]}, 4)
    ('tzyx', 'czyx')
    """
    for key in _NAMES:
        names = _texts(attributes.get(key))
        if len(names) == 1:  # written as one word or with separators
            names = list(names[0]) if len(names[0]) == ndim else names[0].replace(":", ",").split(",")
        if len(names) == ndim and (letters := axes_of_names(names)):
            return letters
    return ""


def spacing_of_attributes(attributes: Mapping[str, Any], axes: str) -> tuple[Spacing | None, str]:
    """Return the voxel size z, y, x in micrometre that attributes state with a unit, and what they say otherwise.

    ``element_size_um`` (Fiji, PlantSeg) is always z, y, x; ``resolution`` and ``voxel_size`` with ``units`` (funlib)
    follow the axes of the array.

    Parameters
    ----------
    attributes : mapping
        Of the array.
    axes : str
        One letter per axis of the array.

    Examples
    --------
    >>> spacing_of_attributes({"resolution": [10, 20, 40], "units": ["nm"] * 3}, "xyz")
    ((0.04, 0.02, 0.01), '')
    >>> spacing_of_attributes({"resolution": [40, 4, 4]}, "zyx")
    (None, 'the attributes say resolution [40, 4, 4] without a unit of length')
    """
    size = attributes.get("element_size_um")
    if size is not None and np.size(size) == 3:
        z, y, x = (float(v) for v in np.ravel(size))
        return (z, y, x), ""
    key = next((k for k in _SIZES if np.size(attributes.get(k, ())) >= 3 and _are_numbers(attributes[k])), None)
    if key is None:
        return None, ""
    numbers = _per_axis(np.ravel(attributes[key]).astype(float).tolist(), axes)
    units = next((_texts(attributes[k]) for k in _UNITS if k in attributes), [])
    words = _per_axis(units * 3 if len(units) == 1 else units, axes)
    sizes = [to_um(numbers[a], words.get(a)) for a in "zyx"] if set("zyx") <= set(numbers) else [None]
    z_um, y_um, x_um = sizes if len(sizes) == 3 else (None, None, None)
    if z_um is not None and y_um is not None and x_um is not None:
        return (z_um, y_um, x_um), ""
    told = [f"{k} {_plain(attributes[k])}" for k in (key, "offset", *_UNITS) if k in attributes]
    return None, f"the attributes say {', '.join(told)}{'' if units else ' without a unit of length'}"


def calibrated(array: Any, attributes: Mapping[str, Any]) -> Any:
    """Return an array with the calibration of its attributes ``scale_factor`` and ``add_offset`` (CF convention)."""
    slope, intercept = (
        float(np.ravel(attributes.get(key, default))[0]) for key, default in (("scale_factor", 1), ("add_offset", 0))
    )
    return scaled(array, slope, intercept)


def fill_remarks(array: Any, attributes: Mapping[str, Any]) -> list[str]:
    """Return a remark where voxels of an array hold the fill value that its attributes name."""
    value = attributes.get("_FillValue")
    if value is None or not _are_numbers(value):
        return []
    fill = float(np.ravel(value)[0])
    found = np.concatenate([np.asarray(array[box]).ravel() for box in _samples(tuple(array.shape))])
    share = float(np.mean(np.isnan(found) if np.isnan(fill) and found.dtype.kind == "f" else found == fill))
    return [f"{share:.2g} of the voxels hold {fill:g}, which the file calls 'no data'"] if share else []


def _samples(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Return the whole array; of a large one, boxes at its first corner, in the middle and at its last corner."""
    total = math.prod(shape)
    if total <= _LOOKED_AT:
        return [tuple(slice(0, n) for n in shape)]
    factor = (_LOOKED_AT / 3 / total) ** (1 / len(shape))
    size = [max(1, int(n * factor)) for n in shape]
    starts = (
        [0] * len(shape),
        [(n - s) // 2 for n, s in zip(shape, size, strict=True)],
        [n - s for n, s in zip(shape, size, strict=True)],
    )
    return [tuple(slice(a, a + s) for a, s in zip(start, size, strict=True)) for start in starts]


def _per_axis(values: list[Any], axes: str) -> dict[str, Any]:
    """Return one value for each axis in space: the list has one for each of those, or for each axis."""
    in_space = [a for a in axes if a in "zyx"]
    return dict(zip(axes if len(values) == len(axes) else in_space, values, strict=False))


def _texts(value: Any) -> list[str]:
    """Return the words of an attribute, as any of the libraries hands it over."""
    values = [value] if isinstance(value, str | bytes) else [] if value is None else list(np.ravel(value))
    if any(not isinstance(v, str | bytes) for v in values):
        return []
    return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]


def _are_numbers(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "iuf"


def _plain(value: Any) -> Any:
    values = np.ravel(value).tolist()
    return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values] if np.ndim(value) else value
