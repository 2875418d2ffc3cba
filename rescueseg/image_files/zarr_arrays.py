"""Zarr arrays, and OME-Zarr images 0.1 to 0.5."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.image_files import hints, holes, ome_axes
from rescueseg.image_files.axes import axes_of_names, only_image, unnamed_axes
from rescueseg.image_files.conventions import calibrated, fill_remarks, named_axes, spacing_of_attributes
from rescueseg.image_files.source import ArraySource, Statement
from rescueseg.image_files.zarr_url import zarr_store

_ZARR = re.compile(r"^(?P<store>.+?\.(?:zarr|zr3|zr2))(?:[/:](?P<inner>.+?))?/?$", re.IGNORECASE)
_N5 = re.compile(r"\.n5(z|[/:]|$)", re.IGNORECASE)
_NAMED = 12
"""Images or arrays that a message names."""
_DEPTH = 3
"""Groups within groups that are searched for arrays to name."""


def is_zarr(path: str) -> bool:
    """Tell a Zarr, or its relative N5, by its name or by the metadata file inside it."""
    folder = Path(path)
    if folder.is_file():
        return False
    inside = ("zarr.json", ".zarray", ".zgroup", "attributes.json")
    return bool(_ZARR.match(path) or _N5.search(path)) or any((folder / n).exists() for n in inside)


def open_zarr(path: str, said: Statement) -> ArraySource:
    """Open a Zarr array, or the full resolution of an OME-Zarr image.

    Raises
    ------
    UnreadableVolumeError
        If there is none, or it is N5.
    InvalidVolumeError
        If it holds several images, no image, or axes that nobody names.
    """
    match = _ZARR.match(path)
    store, inner = (match["store"], match["inner"] or "") if match else (path, "")
    if _N5.search(path) or ((Path(store) / inner / "attributes.json").exists() and not _has_metadata(store, inner)):
        raise UnreadableVolumeError("it is N5, which is not read", where=path, todo="Save it as OME-Zarr or HDF5")
    if "://" not in store and not Path(store).exists():
        raise UnreadableVolumeError("there is no such folder", where=path, todo="Check the path")
    node = _node(store, inner, path)
    if isinstance(node, zarr.Array):
        only_image(said, path)
        return _open_array(node, store, inner, path, said)
    attributes: Any = node.attrs.asdict()
    metadata = attributes.get("ome", attributes)
    if multiscales := metadata.get("multiscales"):
        return _open_multiscale(node, multiscales, store, path, said)
    images, what = _images(node, metadata)
    if said.series is not None and "bioformats2raw.layout" in metadata and said.series < len(images):
        image = node[images[said.series]]
        multiscales = image.attrs.asdict().get("ome", image.attrs.asdict()).get("multiscales")
        if isinstance(image, zarr.Group) and multiscales:
            return _open_multiscale(
                image, multiscales, store, path, Statement(said.axes, None, said.position, said.accept_holes)
            )
    listed = ", ".join(f"{path.rstrip('/')}/{name}" for name in images[:2])
    names = ", ".join(images[:_NAMED]) + (f" and {len(images) - _NAMED} more" if len(images) > _NAMED else "")
    raise InvalidVolumeError(
        f"the Zarr group is no single image but {what}", where=path,
        todo=f"Name {'an array' if what == 'a group' else 'one'}: {names} (as {listed})" if images else "It holds no array with 3 axes",
    )  # fmt: skip


def _has_metadata(store: str, inner: str) -> bool:
    return any((Path(store) / inner / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _node(store: str, inner: str, path: str) -> Any:
    """Return the group or array, with the names of what there is where it is not there."""
    target = zarr_store(store)
    try:
        return zarr.open(target, path=inner, mode="r")
    except FileNotFoundError:
        try:
            root = zarr.open_group(target, mode="r") if inner else None
        except FileNotFoundError:
            root = None
        if root is None:
            raise UnreadableVolumeError(
                "the folder holds no Zarr metadata",
                where=path,
                todo="Check that it was copied whole, and that its name is right",
            ) from None
        images, _ = _images(root, root.attrs.asdict())
        raise UnreadableVolumeError(
            f"there is no '{inner}' in it",
            where=path,
            todo=f"It holds {', '.join(images[:_NAMED]) or 'no arrays with 3 axes'}",
        ) from None


def _images(group: zarr.Group, metadata: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the names of the images that a group holds, and what kind of group it is."""
    if plate := metadata.get("plate"):
        wells = [str(well["path"]) for well in plate.get("wells", [])]
        return [f"{well}/{field}" for well in wells[:_NAMED] for field in _fields(group, well)], "a plate"
    if well := metadata.get("well"):
        return [str(image["path"]) for image in well.get("images", [])], "a well with several fields"
    if labels := metadata.get("labels"):
        return [str(label) for label in labels], "a group of label images"
    if "bioformats2raw.layout" in metadata:
        series = group["OME"].attrs.asdict() if "OME" in group else {}
        listed: Any = series.get("ome", series)
        found = listed.get("series") or sorted((n for n, _ in group.groups() if n.isdigit()), key=int)
        return [str(name) for name in found], "a collection of images (bioformats2raw)"
    arrays = [name for name, item in group.members(max_depth=_DEPTH) if isinstance(item, zarr.Array) and item.ndim >= 3]
    return sorted(arrays), "a group"


def _fields(plate: zarr.Group, well: str) -> list[str]:
    attributes: Any = plate[well].attrs.asdict() if well in plate else {}
    images = attributes.get("ome", attributes).get("well", {}).get("images", [])
    return [str(image["path"]) for image in images] or ["0"]


def _open_array(array: zarr.Array[Any], store: str, inner: str, path: str, said: Statement) -> ArraySource:
    """Open an array by itself; where it is a level of an OME-Zarr image, that image says what its axes are."""
    parent, _, name = inner.rpartition("/")
    above = _node_or_none(store, parent) if inner else None
    attributes: Any = above.attrs.asdict() if isinstance(above, zarr.Group) else {}
    for multiscale in attributes.get("ome", attributes).get("multiscales", []):
        paths = [str(dataset["path"]) for dataset in multiscale["datasets"]]
        if name in paths and isinstance(above, zarr.Group):
            return _open_level(above, multiscale, paths.index(name), store, path, said)
    own: Any = array.attrs.asdict()
    names = [str(n or "") for n in getattr(array.metadata, "dimension_names", None) or ()]
    axes = said.axes or (axes_of_names(names) if len(names) == array.ndim else "") or named_axes(own, array.ndim)
    remarks: list[str] = []
    if not axes:
        axes, remark = unnamed_axes(array.shape, path)
        remarks = [remark] if remark else []
    spacing, note = spacing_of_attributes(own, axes)
    if "_ARRAY_DIMENSIONS" in own and array.fill_value:  # where xarray keeps it in version 2
        own = {"_FillValue": array.fill_value, **own}
    remarks += fill_remarks(array, own)
    source = ArraySource(
        calibrated(holes.NamedChunks(array, axes), own), axes, spacing, path, spacing_note=note, said=said, hints=hints.of_pairs(own)
    )  # fmt: skip
    source.remarks = (*remarks, *holes.of_zarr(array, axes, (), store, path, said))
    return source


def _node_or_none(store: str, inner: str) -> Any:
    try:
        return zarr.open(zarr_store(store), path=inner, mode="r")
    except FileNotFoundError:
        return None


def _open_multiscale(
    group: zarr.Group, multiscales: Sequence[Any], store: str, path: str, said: Statement
) -> ArraySource:
    asked = said.series
    if (len(multiscales) > 1 and asked is None) or (asked is not None and not 0 <= asked < len(multiscales)):
        names = [str(m.get("name", i)) for i, m in enumerate(multiscales)]
        raise InvalidVolumeError(
            f"it holds {len(multiscales)} image{'s' if len(multiscales) > 1 else ''} ({', '.join(names)})", where=path,
            todo=f"Say which with --series, 0 to {len(multiscales) - 1}" if len(names) > 1 else "Leave --series out",
        )  # fmt: skip
    multiscale = multiscales[asked or 0]
    return _open_level(group, multiscale, _finest(group, multiscale), store, path, said)


def _finest(group: zarr.Group, multiscale: Any) -> int:
    """Return the level with most voxels: the first one, by the rules, but not in every file."""
    sizes = [
        math.prod(level.shape) if isinstance(level := group.get(str(dataset["path"])), zarr.Array) else 0
        for dataset in multiscale["datasets"]
    ]
    return sizes.index(max(sizes)) if sizes[0] else 0


def _open_level(group: zarr.Group, multiscale: Any, level: int, store: str, path: str, said: Statement) -> ArraySource:
    paths = [str(dataset["path"]) for dataset in multiscale["datasets"]]
    arrays = [group[name] for name in paths if name in group]
    if paths[level] not in group:
        raise UnreadableVolumeError(
            f"level {level} of the pyramid, '{paths[level]}', is not there",
            where=path,
            todo="Check that it was copied whole",
        )
    array = group[paths[level]]
    if not isinstance(array, zarr.Array):
        raise InvalidVolumeError(f"level {level} is no array", where=path, todo="Check the OME-Zarr metadata")
    axes = said.axes or ome_axes.letters(multiscale, array.ndim, path)
    spacing, note = ome_axes.spacing(multiscale, level, axes, group)
    own: Any = array.attrs.asdict()
    source = ArraySource(
        calibrated(holes.NamedChunks(array, axes), own), axes, spacing, path, spacing_note=note, said=said,
        hints=hints.of_pairs(group.attrs.asdict()),
        placement=None if said.axes else ome_axes.placement(multiscale, level, axes, group),
    )  # fmt: skip
    coarser = [a for a in arrays if isinstance(a, zarr.Array) and a.path != array.path and a.ndim == array.ndim]
    largest = max((math.prod(a.shape) for a in coarser), default=0)
    if level:
        is_full = math.prod(array.shape) >= largest
        remarks = [
            f"level {level} of the pyramid, {'the finest, though not the first' if is_full else 'not the full resolution'}"
        ]
    else:
        remarks = []
    source.remarks = (*remarks, *fill_remarks(array, own), *holes.of_zarr(array, axes, coarser, store, path, said))
    return source
