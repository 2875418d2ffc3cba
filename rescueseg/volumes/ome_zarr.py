"""OME-Zarr 0.5 (Zarr v3): creating, pyramids, labels, checking.

Images are ``czyx`` or ``zyx``, label images ``zyx``; the physical unit is always the micrometre. Chunks are what a
viewer fetches, shards what a worker writes: one file each.

References
----------
NGFF 0.5, https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from ome_zarr_models.common.omero import Channel, Omero
from ome_zarr_models.v05 import Image, ImageLabel, Labels
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.labels import LabelsAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale
from pydantic import BaseModel
from zarr.codecs import ZstdCodec

from rescueseg.errors import InvalidVolumeError, storage_errors
from rescueseg.geometry import ZYX, Box, partition, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.volumes.image_layout import ImageLayout, choose_chunks
from rescueseg.volumes.shards import WrittenFiles

_SMALLEST_LEVEL = 128
_SMALLEST_AXIS = 8
_COMPRESSOR = ZstdCodec(level=3, checksum=True)


def level_factors(shape_zyx: Sequence[int], spacing_um_zyx: Sequence[float]) -> ZYX | None:
    """Return how much the next pyramid level is coarser along each axis, None when no level is needed.

    The axes that are finest in micrometre are halved; z joins in once the in-plane spacing has caught up with it.

    Parameters
    ----------
    shape_zyx : sequence of int
        Shape of the present level.
    spacing_um_zyx : sequence of float
        Its voxel size in micrometre.

    Returns
    -------
    tuple of int or None
        1 or 2 for each axis.

    Examples
    --------
    >>> level_factors((64, 512, 512), (0.3, 0.1, 0.1))
    (1, 2, 2)
    """
    if max(shape_zyx) <= _SMALLEST_LEVEL:
        return None
    able = [n >= 2 * _SMALLEST_AXIS for n in shape_zyx]
    finest = min(s for s, a in zip(spacing_um_zyx, able, strict=True) if a)
    return zyx(2 if a and s < finest * math.sqrt(2) else 1 for s, a in zip(spacing_um_zyx, able, strict=True))


def create_image(url: str, layout: ImageLayout, written: WrittenFiles | None = None) -> zarr.Array[Any]:
    """Create an OME-Zarr 0.5 image with one level and return that level, ready to be written.

    Parameters
    ----------
    url : str
        Folder or fsspec URL of the image; what is there is replaced.
    layout : ImageLayout
        What it is to be.
    written : WrittenFiles, optional
        Where its shards are noted.

    Returns
    -------
    zarr.Array
        Level ``0``.

    Raises
    ------
    StorageError
        If the disk is full or not writable.
    """
    axes = _axes(len(layout.shape))
    chunk, shard = layout.chunks_and_shards()
    lead = (1,) * (len(layout.shape) - 3)
    dataset = _dataset("0", len(axes), (1, 1, 1), layout.spacing_um_zyx, origin=layout.origin_um_zyx)
    ome = ImageAttrs(version="0.5", multiscales=[Multiscale(name=layout.name, axes=axes, datasets=(dataset,))])
    with storage_errors(url):
        group = zarr.create_group(
            _store(url, written), overwrite=True, zarr_format=3, attributes={**layout.attributes, "ome": _json(ome)}
        )
        return group.create_array(
            "0",
            shape=tuple(int(n) for n in layout.shape),
            dtype=np.dtype(layout.dtype),
            chunks=lead + chunk,
            shards=lead + shard,
            compressors=ZstdCodec(level=layout.zstd_level, checksum=True),
            fill_value=layout.fill_value,
            dimension_names=[str(axis.name) for axis in axes],
        )


def create_labels(
    url: str,
    name: str,
    shape_zyx: Sequence[int],
    dtype: npt.DTypeLike,
    spacing_um_zyx: Sequence[float],
    origin_um_zyx: Sequence[float] | None = None,
    written: WrittenFiles | None = None,
) -> zarr.Array[Any]:
    """Create a label image below an image's ``labels`` group and return its level 0.

    Parameters
    ----------
    url : str
        The image.
    name : str
        Name of the label image, such as ``truth``.
    shape_zyx : sequence of int
        Shape of the image without channels.
    dtype : dtype
        An integer type.
    spacing_um_zyx : sequence of float
        Voxel size in micrometre.
    origin_um_zyx : sequence of float, optional
        Where the first voxel lies in micrometre.
    written : WrittenFiles, optional
        Where its shards are noted.

    Returns
    -------
    zarr.Array
        Level ``0``, ``zyx``.
    """
    layout = ImageLayout(shape_zyx, dtype, spacing_um_zyx, name=name, origin_um_zyx=origin_um_zyx)
    return create_label_image(url, layout, written)


def create_label_image(url: str, layout: ImageLayout, written: WrittenFiles | None = None) -> zarr.Array[Any]:
    """Create a label image named ``layout.name`` as `create_labels` does, also below a group that is no image."""
    name = layout.name
    with storage_errors(url):
        image = zarr.open_group(zarr_store(url), mode="r+")
        group = image.require_group("labels")
        names = _ome(group).get("labels", [])
        group.attrs["ome"] = _json(LabelsAttrs(version="0.5", labels=sorted({*names, name})))
        level = create_image(f"{url}/labels/{name}", layout, written)
        describe_labels(url, name, {"source": {"image": "../../"}} if "multiscales" in _ome(image) else {})
    return level


def describe_labels(url: str, name: str, fields: Mapping[str, Any]) -> None:
    """Set fields of a label image's ``image-label`` metadata, such as its colours; others stay."""
    with storage_errors(url):
        label = zarr.open_group(zarr_store(f"{url}/labels/{name}"), mode="r+")
        ome = _ome(label)
        label.attrs["ome"] = {**ome, "image-label": {**ome.get("image-label", {}), **fields}}


def add_pyramid(url: str, *, labels: bool = False, written: WrittenFiles | None = None) -> int:
    """Write the coarser levels of an image, shard by shard, and list them in its metadata.

    Parameters
    ----------
    url : str
        An image made by `create_image`, level 0 written.
    labels : bool
        Take every second voxel, so that no label is invented; images take the mean.
    written : WrittenFiles, optional
        Where their shards are noted.

    Returns
    -------
    int
        Number of levels, the full resolution included.
    """
    with storage_errors(url):
        group = zarr.open_group(_store(url, written), mode="r+")
        spacing = _spacing(_ome(group)["multiscales"][0])
        level, totals = _array(group, "0"), [(1, 1, 1)]
        while True:
            factors = level_factors(level.shape[-3:], [s * f for s, f in zip(spacing, totals[-1], strict=True)])
            if factors is None or factors == (1, 1, 1):
                break
            level = _write_level(group, str(len(totals)), level, factors, labels)
            totals.append(zyx(t * f for t, f in zip(totals[-1], factors, strict=True)))
        list_levels(group, totals, labels=labels)
    return len(totals)


def list_levels(group: zarr.Group, totals: Sequence[ZYX], *, labels: bool) -> None:
    """Name the levels of an image in its metadata.

    Parameters
    ----------
    group : zarr.Group
        An image made by `create_image`, writable.
    totals : sequence of tuple of int
        How much coarser than the first each level is along z, y, x; (1, 1, 1) for the first.
    labels : bool
        Whether a voxel of a coarser level is the first one of those that it stands for, not their mean.
    """
    ome = _ome(group)
    multiscale = ome["multiscales"][0]
    spacing, ndim = _spacing(multiscale), _array(group, "0").ndim
    datasets = [multiscale["datasets"][0]]
    for number, total in enumerate(totals[1:], start=1):
        datasets.append(_json(_dataset(str(number), ndim, total, spacing, centred=not labels)))
    multiscale |= {"datasets": datasets, "type": "nearest" if labels else "mean"}
    group.attrs["ome"] = ome | {"multiscales": [_json(Multiscale.model_validate(multiscale))]}


def _write_level(group: zarr.Group, path: str, fine: zarr.Array[Any], factors: ZYX, labels: bool) -> zarr.Array[Any]:
    shape = zyx(math.ceil(n / f) for n, f in zip(fine.shape[-3:], factors, strict=True))
    lead = fine.shape[:-3]
    coarse = create_level(group, path, (*lead, *shape), fine.dtype)
    _, shards = choose_chunks(shape)
    for channel in np.ndindex(*lead):
        for box in partition(shape, shards):
            start = [o * f for o, f in zip(box.offset_zyx, factors, strict=True)]
            stop = [o * f for o, f in zip(box.stop_zyx, factors, strict=True)]
            source = Box.from_bounds(start, stop).clip(fine.shape[-3:])
            voxels = np.asarray(fine[(*channel, *source.slices)])
            coarse[(*channel, *box.slices)] = downsample(voxels, factors, labels=labels)
    return coarse


def create_level(group: zarr.Group, path: str, shape: Sequence[int], dtype: npt.DTypeLike) -> zarr.Array[Any]:
    """Create an empty level of an image, ``czyx`` or ``zyx``, with the shards of `choose_chunks`; an old one is replaced."""
    chunks, shards = choose_chunks(shape[-3:])
    ones = (1,) * (len(shape) - 3)
    return group.create_array(
        path,
        shape=tuple(shape),
        dtype=np.dtype(dtype),
        chunks=ones + chunks,
        shards=ones + shards,
        compressors=_COMPRESSOR,
        fill_value=0,
        dimension_names=[str(axis.name) for axis in _axes(len(shape))],
        overwrite=True,
    )


def downsample(voxels: npt.NDArray[Any], factors: ZYX, *, labels: bool = False) -> npt.NDArray[Any]:
    """Return a ``zyx`` array coarser by `factors`; an odd last plane is repeated.

    Parameters
    ----------
    voxels : ndarray
        ``zyx``.
    factors : tuple of int
        Step along each axis.
    labels : bool
        Take every `factors`-th voxel instead of the mean.

    Returns
    -------
    ndarray
        Of the same dtype; integer means are rounded.
    """
    if labels:
        return voxels[:: factors[0], :: factors[1], :: factors[2]]
    pad = [(0, -n % f) for n, f in zip(voxels.shape, factors, strict=True)]
    if any(p for _, p in pad):
        voxels = np.pad(voxels, pad, mode="edge")
    z, y, x = (n // f for n, f in zip(voxels.shape, factors, strict=True))
    mean = voxels.reshape(z, factors[0], y, factors[1], x, factors[2]).mean(axis=(1, 3, 5), dtype=np.float64)
    if np.issubdtype(voxels.dtype, np.integer):
        mean = np.rint(mean)
    coarse: npt.NDArray[Any] = mean.astype(voxels.dtype)
    return coarse


def describe_channels(url: str, names: Sequence[str], windows: Sequence[tuple[float, float]]) -> None:
    """Name an image's channels and say which intensities a viewer should show.

    Parameters
    ----------
    url : str
        An image made by `create_image`.
    names : sequence of str
        One per channel.
    windows : sequence of (float, float)
        Darkest and brightest intensity to show, one per channel.
    """
    colours = ("FFFFFF",) if len(names) == 1 else ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")
    channels = [
        Channel.model_validate(
            {
                "label": name,
                "color": colours[i % len(colours)],
                "active": True,
                "window": {"min": low, "max": high, "start": low, "end": high},
            }
        )
        for i, (name, (low, high)) in enumerate(zip(names, windows, strict=True))
    ]
    with storage_errors(url):
        group = zarr.open_group(zarr_store(url), mode="r+")
        group.attrs["ome"] = {**_ome(group), "omero": _json(Omero(channels=channels))}


def open_level(url: str, level: int = 0) -> zarr.Array[Any]:
    """Open one resolution level of an image or label image, read-only."""
    return _array(zarr.open_group(zarr_store(url), mode="r", zarr_format=3), str(level))


def levels(url: str) -> list[str]:
    """Return the paths of an image's resolution levels, finest first."""
    return level_paths(zarr.open_group(zarr_store(url), mode="r", zarr_format=3).attrs.asdict())


def level_paths(attributes: dict[str, Any]) -> list[str]:
    """Return the paths of the resolution levels that an image's attributes name, finest first."""
    return [str(dataset["path"]) for dataset in attributes["ome"]["multiscales"][0]["datasets"]]


def validate(url: str) -> None:
    """Check an image, its labels if it has any, or a group of labels without image, against NGFF 0.5.

    Raises
    ------
    InvalidVolumeError
        If `ome_zarr_models` refuses it.
    """
    group = zarr.open_group(zarr_store(url), mode="r")
    try:
        if "multiscales" in _ome(group) or "labels" not in group:
            Image.from_zarr(group)
        if "labels" in group:
            labels = Labels.from_zarr(zarr.open_group(zarr_store(url), path="labels", mode="r"))
            for name in labels.attributes.ome.labels:
                ImageLabel.from_zarr(zarr.open_group(zarr_store(url), path=f"labels/{name}", mode="r"))
    except (ValueError, RuntimeError, KeyError) as error:
        raise InvalidVolumeError(
            f"not a valid OME-Zarr 0.5 image: {error}", where=url, todo="Import the volume again"
        ) from error


def _store(url: str, written: WrittenFiles | None) -> Any:
    return zarr_store(url) if written is None else written.store(url)


def _axes(ndim: int) -> list[Axis]:
    space = [Axis(name=axis, type="space", unit="micrometer") for axis in "zyx"]
    return ([Axis(name="c", type="channel")] if ndim == 4 else []) + space


def _dataset(
    path: str,
    ndim: int,
    factors: Sequence[int],
    spacing: Sequence[float],
    *,
    centred: bool = True,
    origin: Sequence[float] | None = None,
) -> Dataset:
    lead = ndim - 3
    scale = [1.0] * lead + [float(s * f) for s, f in zip(spacing, factors, strict=True)]
    shift = origin
    if origin is None and centred and max(factors) > 1:
        shift = [s * (f - 1) / 2 for s, f in zip(spacing, factors, strict=True)]
    translation = None if shift is None else [0.0] * lead + [float(s) for s in shift]
    return Dataset.build(path=path, scale=scale, translation=translation)


def _json(metadata: BaseModel) -> dict[str, Any]:
    """Return metadata as it stands in a file; what is not given is left out."""
    return metadata.model_dump(mode="json", exclude_none=True)


def _ome(group: zarr.Group) -> dict[str, Any]:
    ome: Any = group.attrs.asdict().get("ome", {})
    return dict(ome)


def _spacing(multiscale: dict[str, Any]) -> list[float]:
    scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    return [float(s) for s in scale[-3:]]


def _array(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = group[path]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{path} is a group, not an array")
    return array
