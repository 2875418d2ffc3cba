"""Files of microscope makers, read by packages of the extra ``formats``: CZI, LIF, ND2 and MRC.

Each package is asked plane by plane, so that a box of a large file costs no more than its planes. All axes that the
file has are passed on: one that has no place in a volume is refused by `ArraySource`, never left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files.axes import only_image
from rescueseg.image_files.source import ArraySource, Statement
from rescueseg.image_files.units import to_um

_MRC = (".mrc", ".rec", ".map", ".st", ".ali")
_COMPRESSED = (".gz", ".bz2")
_NAMED = 12
"""Images that a message names."""
_IMOD = 1146047817
"""IMOD's stamp, whose flags say whether bytes are signed."""
_CZI_TYPES = {"Gray8": "u1", "Gray16": "u2", "Gray32Float": "f4", "Bgr24": "u1", "Bgr48": "u2"}
_LIF_AXES = {"1": "x", "2": "y", "3": "z"}


def is_microscope_file(path: str) -> bool:
    """Tell a file of the extra by its name."""
    return _kind(path) != ""


def open_microscope_file(path: str, said: Statement) -> ArraySource:
    """Open one image of a CZI, LIF, ND2 or MRC file.

    Raises
    ------
    UnreadableVolumeError
        If the extra is not installed.
    InvalidVolumeError
        If it holds several images and nobody says which, or axes that have no place in a volume.
    """
    kind = _kind(path)
    with ExitStack() as stack:
        try:
            source = _OPENERS[kind](path, said, stack)
        except ImportError as error:
            raise UnreadableVolumeError(
                f"{kind} is read by the extra 'formats', which is not installed",
                where=path,
                todo="pip install 'rescueseg[formats]'",
            ) from error
        source.on_close = (stack.pop_all().close,)
        return source


def _kind(path: str) -> str:
    name = path.lower()
    for ending in _COMPRESSED:
        if name.endswith(ending) and name.removesuffix(ending).endswith(_MRC):
            return "MRC"
    endings = {"CZI": (".czi",), "LIF": (".lif",), "ND2": (".nd2",), "MRC": _MRC}
    return next((kind for kind, ends in endings.items() if name.endswith(ends)), "")


@dataclass(frozen=True)
class _Frames:
    """Planes that are read one by one, as an array.

    Parameters
    ----------
    axes : str
        One letter per axis, those that lie within a plane last.
    shape : tuple of int
        Extent along each axis.
    dtype : numpy.dtype
        Of the voxels.
    read : callable
        Returns the part of a plane: positions along the axes before it, and slices within it.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Mapping[str, int], tuple[slice, ...]], npt.NDArray[Any]]
    inner: int = 2

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        outer = len(self.shape) - self.inner
        selections = [slice(*s.indices(n)) for s, n in zip(key, self.shape, strict=True)]
        ranges = [range(s.start, s.stop, s.step) for s in selections]
        voxels = np.empty([len(r) for r in ranges], self.dtype)
        for at in itertools.product(*(range(len(r)) for r in ranges[:outer])):
            position = {a: r[i] for a, r, i in zip(self.axes, ranges, at, strict=False)}
            voxels[at] = self.read(position, tuple(selections[outer:]))
        return voxels


def _chosen(names: Sequence[str], said: Statement, path: str) -> tuple[int, list[str]]:
    """Return the image that was asked for, and the remark that it is one of several."""
    series = said.series or 0
    if (said.series is None and len(names) > 1) or series not in range(len(names)):
        listed = "; ".join(f"{i} {name}" for i, name in enumerate(names[:_NAMED]))
        raise InvalidVolumeError(
            f"it holds {len(names)} image{'s' if len(names) != 1 else ''}: {listed}{'; …' if len(names) > _NAMED else ''}",
            where=path,
            todo=f"Say which with --series, 0 to {len(names) - 1}" if len(names) > 1 else "Leave --series out",
        )
    return series, [f"image {series} of {len(names)}: {names[series]}"] if len(names) > 1 else []


def _channels(names: Sequence[str]) -> dict[str, str]:
    return {"description": f"channels {', '.join(names)}"} if any(names) else {}


def _size(lengths: Mapping[str, float | None]) -> tuple[Spacing | None, str]:
    """Return the voxel size from lengths in micrometre, and what there is where one lacks."""
    z, y, x = (lengths.get(a) for a in "zyx")
    if z and y and x:
        return (abs(z), abs(y), abs(x)), ""
    told = " × ".join(f"{v:.6g}" if v else "?" for v in (z, y, x))
    return None, f"the file says {told} µm (z y x)"


def _open_czi(path: str, said: Statement, stack: ExitStack) -> ArraySource:
    from pylibCZIrw.czi import open_czi

    file: Any = stack.enter_context(open_czi(path))
    scenes = sorted(file.scenes_bounding_rectangle_no_pyramid)
    chosen, remarks = _chosen([f"scene {s}" for s in scenes] or ["the image"], said, path)
    scene = scenes[chosen] if scenes else None
    rectangle = (
        file.total_bounding_rectangle_no_pyramid if scene is None else file.scenes_bounding_rectangle_no_pyramid[scene]
    )
    box = {
        a: (int(start), int(end)) for a, (start, end) in file.total_bounding_box_no_pyramid.items() if a not in "XYSM"
    }
    types = set(file.pixel_types.values())
    if len(types) != 1 or not types <= set(_CZI_TYPES):
        raise InvalidVolumeError(
            f"its pixels are of type {', '.join(sorted(map(str, types)))}",
            where=path,
            todo="Save it with one type, 8 or 16 bit",
        )
    pixel = types.pop()
    colours = (3,) if pixel.startswith("Bgr") else ()
    metadata = file.metadata["ImageDocument"]["Metadata"]
    if int(_inside(metadata, "Information", "Image").get("SizeM", 1)) > 1:
        remarks.append("mosaic tiles were laid side by side where the stage was; they are not blended")

    def read(position: Mapping[str, int], inside: tuple[slice, ...]) -> npt.NDArray[Any]:
        y, x = inside[:2]
        roi = (rectangle.x + x.start, rectangle.y + y.start, x.stop - x.start, y.stop - y.start)
        plane = {a: start + position.get(a.lower(), 0) for a, (start, _) in box.items()}
        voxels = np.asarray(file.read(roi=roi, plane=plane, scene=scene))
        return voxels[..., ::-1] if colours else voxels[..., 0]

    outer = [a for a, (start, end) in box.items() if not colours or a != "C" or end - start > 1]
    axes = "".join(outer).lower() + "yx" + ("s" if colours else "")
    shape = (*(box[a][1] - box[a][0] for a in outer), rectangle.h, rectangle.w, *colours)
    frames = _Frames(axes, shape, np.dtype(_CZI_TYPES[pixel]), read, 2 + len(colours))
    distances = _listed(_inside(metadata, "Scaling", "Items").get("Distance"))
    metres = {str(d.get("@Id", "")).lower(): d.get("Value") for d in distances}
    spacing, note = _size({a: float(v) * 1e6 for a, v in metres.items() if v})
    entries = _listed(_inside(metadata, "Information", "Image", "Dimensions", "Channels").get("Channel"))
    return ArraySource(
        frames, said.axes or axes, spacing, path, spacing_note=note, remarks=tuple(remarks), said=said,
        hints=_channels([str(entry.get("@Name", "")) for entry in entries]),
    )  # fmt: skip


def _inside(metadata: Any, *names: str) -> dict[str, Any]:
    for name in names:
        metadata = (metadata or {}).get(name)
    return metadata if isinstance(metadata, dict) else {}


def _listed(value: Any) -> list[dict[str, Any]]:
    """Return the elements of XML turned into dictionaries, which are no list where there is one."""
    return value if isinstance(value, list) else [value] if value else []


def _open_lif(path: str, said: Statement, stack: ExitStack) -> ArraySource:
    from liffile import LifFile

    file = stack.enter_context(LifFile(path))
    chosen, remarks = _chosen([str(image.path) for image in file.images], said, path)
    image: Any = file.images[chosen]
    outer = tuple(name for name in image.dims if name not in image.frames.frame_dims)
    names = (*outer, *image.frames.frame_dims)

    def read(position: Mapping[str, int], inside: tuple[slice, ...]) -> npt.NDArray[Any]:
        return np.asarray(image.frame(**{name: position[name.lower()] for name in outer})[inside])

    axes = "".join(names).lower()
    frames = _Frames(axes, tuple(image.sizes[n] for n in names), np.dtype(image.dtype), read, len(names) - len(outer))
    lengths: dict[str, float | None] = {}
    for element in image.xml_element.findall("./Data/Image/ImageDescription/Dimensions/DimensionDescription"):
        count, axis = int(element.get("NumberOfElements", 1)), _LIF_AXES.get(element.get("DimID", ""))
        if axis is not None and count > 1:
            lengths[axis] = to_um(float(element.get("Length", 0)) / (count - 1), element.get("Unit"))
    if (lengths.get("z") or 0) < 0:
        remarks.append("the file counts z downwards; its planes keep their order")
    spacing, note = _size(lengths)
    channels = image.xml_element.findall("./Data/Image/ImageDescription/Channels/ChannelDescription")
    return ArraySource(
        frames, said.axes or axes, spacing, path, spacing_note=note, remarks=tuple(remarks), said=said,
        hints=_channels([element.get("LUTName", "") for element in channels]),
    )  # fmt: skip


def _open_nd2(path: str, said: Statement, stack: ExitStack) -> ArraySource:
    from nd2 import ND2File

    only_image(said, path)
    file = stack.enter_context(ND2File(path))
    volume = file.metadata.channels[0].volume if file.metadata and file.metadata.channels else None
    calibrated = volume.axesCalibrated if volume is not None else (False, False, False)
    size = file.voxel_size()
    lengths = {a: v for a, v, known in zip("xyz", (size.x, size.y, size.z), calibrated, strict=True) if known}
    spacing, note = _size(lengths)
    channels = [str(channel.channel.name) for channel in (file.metadata.channels or [])] if file.metadata else []
    return ArraySource(
        file.to_dask(), said.axes or "".join(file.sizes).lower(), spacing, path, spacing_note=note, said=said,
        hints=_channels(channels),
    )  # fmt: skip


def _open_mrc(path: str, said: Statement, stack: ExitStack) -> ArraySource:
    import mrcfile

    only_image(said, path)
    compressed = path.lower().endswith(_COMPRESSED)
    file: Any = stack.enter_context(mrcfile.open(path, "r") if compressed else mrcfile.mmap(path, "r"))
    header, array, remarks = file.header, file.data, []
    stamp, flags = np.frombuffer(header.extra2.tobytes(), header.mapc.dtype)[10:12].tolist()
    if array.dtype == np.int8 and stamp == _IMOD and not flags & 1:
        array, remarks = array.view(np.uint8), ["IMOD's bytes are unsigned, as its flags say"]
    order = [int(v) for v in (header.maps, header.mapr, header.mapc)]
    axes = "".join("xyz"[v - 1] for v in order) if sorted(order) == [1, 2, 3] else "zyx"
    axes = axes[-array.ndim :] if array.ndim <= 3 else "p" + axes
    if array.ndim == 3 and file.is_image_stack():
        remarks.append("the header calls it a stack of images, not a volume")
    lengths = {a: float(file.voxel_size[a]) for a in "zyx"}  # in Ångström
    spacing, note = _size({a: v * 1e-4 if math.isfinite(v) else None for a, v in lengths.items()})
    if set(lengths.values()) == {1.0}:
        remarks.append("the voxel size is 1 Å, which programs write when they do not know it")
    return ArraySource(
        array, said.axes or axes, spacing, path, spacing_note=note, remarks=tuple(remarks), said=said, chunked=not compressed
    )  # fmt: skip


_OPENERS: dict[str, Callable[[str, Statement, ExitStack], ArraySource]] = {
    "CZI": _open_czi, "LIF": _open_lif, "ND2": _open_nd2, "MRC": _open_mrc,
}  # fmt: skip
