"""HDF5: plain datasets, ilastik, xarray, BigDataViewer and Imaris."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files import bigdataviewer, hints, holes, imaris
from rescueseg.image_files.axes import axes_of_names, only_image, unnamed_axes
from rescueseg.image_files.conventions import calibrated, fill_remarks, named_axes, spacing_of_attributes
from rescueseg.image_files.source import ArraySource, Statement
from rescueseg.image_files.units import to_um

_HDF5 = re.compile(r"^(?P<file>.+?\.(?:h5|hdf5|hdf|he5|ilp|ims|nc))(?:[:/](?P<dataset>.+))?$", re.IGNORECASE)
_NAMED = 12
"""Datasets that a message names."""


def is_hdf5(path: str) -> bool:
    """Tell an HDF5 file by its name."""
    match = _HDF5.match(path)
    return match is not None and not Path(match["file"]).is_dir()


def open_hdf5(path: str, said: Statement) -> ArraySource:
    """Open ``file.h5:dataset``; the dataset may be left out where there is only one that could be meant."""
    match = _HDF5.match(path)
    if match is None:
        raise UnreadableVolumeError("not an HDF5 path", where=path, todo="Write file.h5:dataset")
    name = (match["dataset"] or "").strip("/")
    file = h5py.File(match["file"], "r")
    try:
        if imaris.is_imaris(file) and not name:
            return imaris.open_imaris(file, path, said)
        if bigdataviewer.is_bigdataviewer(file, name):
            return bigdataviewer.open_bigdataviewer(file, name, path, said)
        only_image(said, path)
        return _open_dataset(file, _dataset(file, name, path), path, said)
    except BaseException:
        file.close()
        raise


def _open_dataset(file: Any, dataset: Any, path: str, said: Statement) -> ArraySource:
    if dataset.shape is None:
        raise InvalidVolumeError("the dataset is empty", where=path, todo="Name another: file.h5:dataset")
    attributes = dict(dataset.attrs)
    axes, remarks = said.axes or _named_axes(dataset, attributes), []
    if not axes:
        axes, remark = unnamed_axes(dataset.shape, path)
        remarks = [remark] if remark else []
    spacing, note = _tagged_spacing(attributes)
    if spacing is None and not note:
        spacing, note = spacing_of_attributes(attributes, axes)
    remarks += fill_remarks(dataset, attributes)
    held = holes.NamedChunks(dataset, axes) if dataset.chunks else dataset
    source = ArraySource(
        calibrated(held, attributes), axes, spacing, path, spacing_note=note, said=said,
        hints=hints.of_pairs({**file.attrs, **attributes}), on_close=(file.close,),
    )  # fmt: skip
    source.remarks = (*remarks, *holes.of_hdf5(dataset, source.axes, path, said))
    return source


def _dataset(file: Any, name: str, path: str) -> Any:
    if name:
        item = file.get(name)
        if isinstance(item, h5py.Dataset):
            return item
    below = item if name and isinstance(item, h5py.Group) else file
    datasets: list[str] = []
    below.visititems(
        lambda _, item: (
            datasets.append(item.name.strip("/")) if isinstance(item, h5py.Dataset) and item.ndim >= 3 else None
        )
    )
    listed = ", ".join(datasets[:_NAMED]) + (f" and {len(datasets) - _NAMED} more" if len(datasets) > _NAMED else "")
    if name and not isinstance(item, h5py.Group):
        raise UnreadableVolumeError(
            f"there is no dataset '{name}'", where=path, todo=f"Datasets: {listed or 'none with 3 axes'}"
        )
    if len(datasets) != 1:
        raise UnreadableVolumeError(
            "the dataset is not named",
            where=path,
            todo=f"Write file.h5:dataset; with 3 axes or more it holds {listed or 'none'}",
        )
    return file[datasets[0]]


def _tags(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the axes that vigra, and so ilastik, writes."""
    tags = attributes.get("axistags")
    if tags is None:
        return []
    return list(json.loads(tags.decode() if isinstance(tags, bytes) else str(tags))["axes"])


def _named_axes(dataset: Any, attributes: Mapping[str, Any]) -> str:
    """Return the axes that tags, dimension labels, attached scales or attributes name."""
    tagged = axes_of_names([str(tag["key"]) for tag in _tags(attributes)])
    if len(tagged) == dataset.ndim:
        return tagged
    labels = [str(dimension.label) or _scale_name(dimension) for dimension in dataset.dims]
    return axes_of_names(labels) or named_axes(attributes, dataset.ndim)


def _scale_name(dimension: Any) -> str:
    return str(dimension[0].name).rsplit("/", 1)[-1] if len(dimension) else ""


def _tagged_spacing(attributes: Mapping[str, Any]) -> tuple[Spacing | None, str]:
    """Return the voxel size of axis tags, whose units ilastik 1.4.2 and later write in ``axis_units``."""
    sizes = {str(tag["key"]): float(tag.get("resolution", 0)) for tag in _tags(attributes)}
    if not all(sizes.get(a, 0) > 0 for a in "zyx"):
        return None, ""
    text = attributes.get("axis_units", "{}")
    units = json.loads(text.decode() if isinstance(text, bytes) else str(text))
    z, y, x = (to_um(sizes[a], units.get(a)) for a in "zyx")
    if z is None or y is None or x is None:
        told = " × ".join(f"{sizes[a]:.6g} {units.get(a, '')}".strip() for a in "zyx")
        return None, f"the axis tags say {told} (z y x) without a unit of length"
    return (z, y, x), ""
