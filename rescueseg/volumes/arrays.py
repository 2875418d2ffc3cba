"""HDF5, Zarr and OME-Zarr (0.4 and 0.5)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Spacing
from rescueseg.volumes import hints
from rescueseg.volumes.source import ArraySource, to_um
from rescueseg.volumes.zarr_url import zarr_store

_HDF5 = re.compile(r"^(?P<file>.+?\.(?:h5|hdf5|hdf|ilp|ims))(?::(?P<dataset>.+))?$", re.IGNORECASE)
_ZARR = re.compile(r"^(?P<store>.+?\.(?:zarr|n5z|zr3|zr2))(?:[/:](?P<inner>.+?))?/?$", re.IGNORECASE)
_MOST_CHANNELS = 8


def is_hdf5(path: str) -> bool:
    """Tell an HDF5 file by its name."""
    return _HDF5.match(path) is not None


def open_hdf5(path: str) -> ArraySource:
    """Open ``file.h5:dataset``; the dataset may be left out where there is only one that could be meant."""
    match = _HDF5.match(path)
    if match is None:
        raise UnreadableVolumeError("not an HDF5 path", where=path, todo="Write file.h5:dataset")
    file = h5py.File(match["file"], "r")
    try:
        dataset = _dataset(file, match["dataset"], path)
        axes = _hdf5_axes(dataset) or _guess_axes(dataset.shape)
        spacing, note = _hdf5_spacing(dataset)
        file_hints = hints.of_pairs({**file.attrs, **dataset.attrs})
        return ArraySource(dataset, axes, spacing, path, spacing_note=note, hints=file_hints, on_close=(file.close,))
    except BaseException:
        file.close()
        raise


def _dataset(file: Any, name: str | None, path: str) -> Any:
    datasets: list[str] = []
    file.visititems(
        lambda key, item: datasets.append(key) if isinstance(item, h5py.Dataset) and item.ndim >= 3 else None
    )
    if name is not None:
        item = file.get(name.strip("/"))
        if isinstance(item, h5py.Dataset):
            return item
        raise UnreadableVolumeError(
            f"there is no dataset '{name}'", where=path, todo=f"Datasets: {', '.join(datasets) or 'none with 3 axes'}"
        )
    if len(datasets) != 1:
        raise UnreadableVolumeError(
            "the dataset is not named",
            where=path,
            todo=f"Write file.h5:dataset; it holds {', '.join(datasets) or 'none'}",
        )
    return file[datasets[0]]


def _hdf5_axes(dataset: Any) -> str:
    """Return the axes that vigra (ilastik) or dimension scales name."""
    tags = dataset.attrs.get("axistags")
    if tags is not None:
        text = tags.decode() if isinstance(tags, bytes) else str(tags)
        return "".join(str(axis["key"]) for axis in json.loads(text)["axes"])
    labels = "".join(str(dimension.label) for dimension in dataset.dims)
    return labels.lower() if len(labels) == dataset.ndim else ""


def _hdf5_spacing(dataset: Any) -> tuple[Spacing | None, str]:
    """Return the voxel size: ``element_size_um`` (Fiji's HDF5 plugin, PlantSeg), always z y x."""
    size = dataset.attrs.get("element_size_um")
    if size is not None and np.size(size) == 3:
        z, y, x = (float(v) for v in np.ravel(size))
        return (z, y, x), ""
    for key in ("voxel_size", "resolution", "spacing"):
        if key in dataset.attrs:
            return None, f"the attribute '{key}' says {np.ravel(dataset.attrs[key]).tolist()} without a unit"
    return None, ""


def _guess_axes(shape: tuple[int, ...]) -> str:
    """Name the axes of an array that does not: three are zyx, four czyx or zyxc by where the short one is."""
    if len(shape) == 3:
        return "zyx"
    if len(shape) == 4 and shape[0] <= _MOST_CHANNELS:
        return "czyx"
    if len(shape) == 4 and shape[-1] <= _MOST_CHANNELS:
        return "zyxc"
    if len(shape) == 5 and shape[0] == 1:
        return "t" + _guess_axes(shape[1:])
    return {0: "", 1: "x", 2: "yx"}.get(len(shape), "?" * len(shape))


def is_zarr(path: str) -> bool:
    """Tell a Zarr by its name or by the metadata file inside it."""
    folder = Path(path)
    return _ZARR.match(path) is not None or any((folder / n).exists() for n in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: str) -> ArraySource:
    """Open a Zarr array, or the full resolution of an OME-Zarr image (0.4 or 0.5)."""
    match = _ZARR.match(path)
    store, inner = (match["store"], match["inner"] or "") if match else (path, "")
    if "://" not in store and not Path(store).exists():
        raise UnreadableVolumeError("there is no such folder", where=path, todo="Check the path")
    node = zarr.open(zarr_store(store), path=inner, mode="r")
    if isinstance(node, zarr.Array):
        names = getattr(node.metadata, "dimension_names", None) or ()
        axes = "".join(str(n) for n in names if n)
        axes = axes.lower() if len(axes) == node.ndim else _guess_axes(node.shape)
        return ArraySource(node, axes, None, path, hints=hints.of_pairs(node.attrs.asdict()))
    attributes: Any = node.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        arrays = ", ".join(sorted(name for name, _ in node.arrays())) or "none"
        raise InvalidVolumeError("the Zarr group is no OME-Zarr image", where=path, todo=f"Name an array: {arrays}")
    return _open_multiscale(node, multiscales[0], path)


def _open_multiscale(group: zarr.Group, multiscale: Any, path: str) -> ArraySource:
    dataset = multiscale["datasets"][0]
    array = group[str(dataset["path"])]
    if not isinstance(array, zarr.Array):
        raise InvalidVolumeError("level 0 is no array", where=path, todo="Check the OME-Zarr metadata")
    axis_entries = multiscale.get("axes") or [{"name": a} for a in "tczyx"[-array.ndim :]]
    axes = [a if isinstance(a, dict) else {"name": a} for a in axis_entries]
    names = [str(axis["name"]).lower() for axis in axes]
    if any(len(name) != 1 for name in names):
        raise InvalidVolumeError(f"axes {names} are not known", where=path, todo="Name them t, c, z, y, x")
    scale = np.ones(array.ndim)
    for transforms in (dataset.get("coordinateTransformations", []), multiscale.get("coordinateTransformations", [])):
        for transform in transforms:
            if transform.get("type") == "scale":
                scale = scale * np.asarray(transform["scale"], float)
    size = {
        name: to_um(value, axis.get("unit"))
        for name, axis, value in zip(names, axes, scale.tolist(), strict=True)
        if name in "zyx"
    }
    image_hints = hints.of_pairs(group.attrs.asdict())
    z, y, x = (size.get(a) for a in "zyx")
    if z is None or y is None or x is None:
        scale_text = " × ".join(f"{v:.6g}" for v in scale.tolist()[-3:])
        note = f"the scale is {scale_text} without a unit"
        return ArraySource(array, "".join(names), None, path, spacing_note=note, hints=image_hints)
    return ArraySource(array, "".join(names), (z, y, x), path, hints=image_hints)
