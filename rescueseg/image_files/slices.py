"""A volume whose planes are files of their own: a folder, a pattern in quotes, or a list of files.

Planes are TIFF, PNG, JPEG or BMP. Everything else beside them is passed over and named in a remark. Their order is that
of the numbers in their names; names that leave a number out are refused, for a lost plane moves all that follow.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.image_files.axes import only_image
from rescueseg.image_files.source import ArraySource, Statement, unreadable
from rescueseg.image_files.tiff import require_upright

_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
_PLANES = (*_TIFF, ".png", *_JPEG, ".bmp")
_STORES = (".zarray", ".zgroup", "zarr.json", "attributes.json")
_NAMED = 5
"""Files or numbers that a message names before it only counts."""


def join_planes(files: Sequence[str]) -> str:
    """Return a list of files as the one path that stands for their volume."""
    return "\n".join(files)


def is_planes(path: str) -> bool:
    """Tell a list of planes, a pattern, or a folder that is no Zarr."""
    if "\n" in path:
        return True
    folder = Path(path)
    if folder.is_dir():
        named = re.search(r"\.(zarr|n5)(/|$)", path, re.IGNORECASE) is not None
        return not any((folder / name).exists() for name in _STORES) and not (named and not _plane_files(folder))
    return "://" not in path and any(c in path for c in "*?[") and not folder.exists()


def shown(path: str) -> str:
    """Return a path as a person reads it: of a list, its first and last file.

    Examples
    --------
    >>> shown(join_planes(["p/1.tif", "p/2.tif", "p/3.tif"]))
    'p/1.tif … 3.tif (3 planes)'
    """
    files = path.split("\n")
    return path if len(files) == 1 else f"{files[0]} … {Path(files[-1]).name} ({len(files)} planes)"


def planes_name(path: str) -> str:
    """Return the path of the folder that the planes lie in.

    Examples
    --------
    >>> planes_name("liver/planes/*.tif")
    'liver/planes'
    """
    folder = Path(path.split("\n")[0])
    if folder.is_dir():
        return str(folder.resolve())
    while any(c in str(folder) for c in "*?[") or folder == Path(path.split("\n")[0]):
        folder = folder.parent
    return str(folder) if folder.name else str(folder.resolve())


def open_planes(path: str, said: Statement) -> ArraySource:
    """Open the planes of one volume, to be read plane by plane.

    Raises
    ------
    InvalidVolumeError
        If the planes differ in shape or type, a number is left out or comes twice, or they count in two places.
    UnreadableVolumeError
        If there are no planes, or a file is damaged.
    """
    where = shown(path)
    only_image(said, where)
    files, others = _find(path)
    if len(files) < 2:
        raise UnreadableVolumeError(
            "there are no planes" if not files else f"there is a single plane, {files[0].name}",
            where=where,
            todo="Give a folder or a pattern of TIFF, PNG, JPEG or BMP files, at least two, or the file of a 3D image",
        )
    files, order = _in_order(files, where)
    planes = _Planes(tuple(files), *_common(files, where))
    remarks = [f"{len(files)} planes in the order of {order}: {files[0].name}, {files[1].name}, … {files[-1].name}"]
    if others:
        remarks.append(f"passed over, no planes: {_some(others)}")
    if files[0].suffix.lower() in _JPEG:
        remarks.append("the planes are JPEG, whose compression loses detail and leaves blocks")
    colours = planes.shape[3] if len(planes.shape) == 4 else 1
    if colours > 1:
        samples = [planes.plane(i) for i in (0, len(files) // 2, len(files) - 1)]
        equal = all((s[..., :1] == s[..., : min(colours, 3)]).all() for s in samples)
        remarks.append(
            f"colour planes: {colours} channels"
            + (", all equal in the first, middle and last plane: save them grey" if equal else "")
        )
    axes = said.axes or "zyxc"[: len(planes.shape)]
    note = "single planes do not say how far apart they are"
    return ArraySource(planes, axes, None, where, spacing_note=note, remarks=tuple(remarks), said=said)


@dataclass(frozen=True)
class _Planes:
    """Plane files as an array z, y, x or z, y, x, colour; only the planes of a selection are read."""

    files: tuple[Path, ...]
    plane_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.plane_shape)

    def plane(self, index: int) -> npt.NDArray[Any]:
        """Read one plane."""
        file = self.files[index]
        with unreadable(str(file)):
            voxels = _read(file)
        if voxels.shape != self.plane_shape or voxels.dtype != self.dtype:
            raise InvalidVolumeError(
                f"the plane is {_size(voxels.shape)} of {voxels.dtype}, the first {_size(self.plane_shape)} of {self.dtype}",
                where=str(file),
                todo="Save all planes with one shape and type",
            )
        return voxels

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        z, *rest = key
        return np.stack([self.plane(i)[tuple(rest)] for i in range(*z.indices(len(self.files)))])


def _plane_files(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if _is_plane(f)]


def _is_plane(file: Path) -> bool:
    return file.suffix.lower() in _PLANES and not file.name.startswith(".") and file.is_file()


def _find(path: str) -> tuple[list[Path], list[str]]:
    """Return the planes, and the names of what lies beside them."""
    if "\n" in path:
        files = [Path(name) for name in path.split("\n")]
        wrong = [str(f) for f in files if not _is_plane(f)]
        if wrong:
            raise UnreadableVolumeError(
                "it is no plane, or not there", where=wrong[0], todo="List TIFF, PNG, JPEG or BMP files with --slices"
            )
        return files, []
    folder = Path(path)
    files = list(folder.iterdir()) if folder.is_dir() else [Path(name) for name in glob.glob(path)]  # noqa: PTH207
    planes = [f for f in files if _is_plane(f)]
    return planes, sorted(f.name for f in files if f not in set(planes))


def _parts(file: Path) -> tuple[str, tuple[int, ...]]:
    """Return a name with its numbers blanked, and the numbers."""
    return re.sub(r"\d+", "#", file.name), tuple(int(n) for n in re.findall(r"\d+", file.name))


def _in_order(files: list[Path], where: str) -> tuple[list[Path], str]:
    """Return the planes in the order of the one number that counts them, and what orders them."""
    shapes = Counter(_parts(f)[0] for f in files)
    if len(shapes) > 1 and any("#" in shape for shape in shapes):
        odd = sorted(f.name for f in files if _parts(f)[0] != shapes.most_common(1)[0][0])
        raise InvalidVolumeError(
            f"the planes are not named alike: {_some(odd)} beside {shapes.most_common(1)[0][0]}",
            where=where,
            todo="Give the planes of one image alone, for instance by a pattern in quotes",
        )
    if len(shapes) > 1:
        return sorted(files), "their names, which hold no numbers"
    numbers = [_parts(f)[1] for f in files]
    counts = list(zip(*numbers, strict=True))
    varying = [i for i, column in enumerate(counts) if len(set(column)) > 1]
    unique = [i for i in varying if len(set(counts[i])) == len(files)]
    if not unique:
        two = len(varying) > 1
        raise InvalidVolumeError(
            "the names count in several places, such as planes and channels" if two else "a number comes twice",
            where=where,
            todo="Give the planes of one image alone, for instance by a pattern in quotes",
        )
    best = min(unique, key=lambda i: len(_missing(counts[i])))
    if missing := _missing(counts[best]):
        raise InvalidVolumeError(
            f"planes are missing: the numbers leave out {_some([str(n) for n in missing])}",
            where=where,
            todo="Add them; if there never were any, give the files numbers without gaps",
        )
    order = sorted(range(len(files)), key=lambda i: counts[best][i])
    return [files[i] for i in order], "their numbers"


def _missing(numbers: Sequence[int]) -> range | list[int]:
    """Return the numbers left out of a sequence that runs in its most frequent step."""
    ordered = sorted(numbers)
    step = Counter(np.diff(ordered).tolist()).most_common(1)[0][0]
    if ordered[-1] - ordered[0] == step * (len(ordered) - 1):
        return []
    if ordered[-1] - ordered[0] > 1000 * step * len(ordered):
        return range(ordered[0], ordered[-1], step)
    return sorted(set(range(ordered[0], ordered[-1], step)) - set(ordered)) or [ordered[0]]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _common(files: list[Path], where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the planes, after a look at every header."""
    headers = []
    for file in files:
        with unreadable(str(file)):
            headers.append(_header(file))
    usual = Counter(headers).most_common(1)[0][0]
    odd = [i for i, header in enumerate(headers) if header != usual]
    if odd:
        raise InvalidVolumeError(
            f"the planes differ: {files[odd[0]].name} is {headers[odd[0]]}, {len(files) - len(odd)} others are {usual}",
            where=where,
            todo="Save all planes with one shape and type",
        )
    with unreadable(str(files[0])):
        first = _read(files[0])
    return first.shape, first.dtype


def _read(file: Path) -> npt.NDArray[Any]:
    """Read a plane as y, x or y, x, colour."""
    suffix = file.suffix.lower()
    if suffix in _TIFF:
        with tifffile.TiffFile(file) as tif:
            series = tif.series[0]
            voxels = series.asarray()
            order = [series.axes.index(a) for a in "YXSC" if a in series.axes]
            order += [i for i in range(voxels.ndim) if i not in order]
            voxels = voxels.transpose(order)
            voxels = voxels.reshape(voxels.shape[:3] if voxels.ndim > 2 and voxels.shape[2] > 1 else voxels.shape[:2])
            return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    decode = {".png": imagecodecs.png_decode, ".bmp": imagecodecs.bmp_decode}.get(suffix, imagecodecs.jpeg_decode)
    return np.asarray(decode(file.read_bytes()))


def _header(file: Path) -> str:
    """Return shape and type of a plane in words, from the head of its file."""
    suffix = file.suffix.lower()
    if suffix in _TIFF:
        return _tiff_header(file)
    with file.open("rb") as stream:
        head = stream.read(32)
        if suffix == ".png" and head[12:16] == b"IHDR":
            width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
            kind = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}.get(colour, f"type {colour}")
            return f"{height}×{width}, {bits} bit {kind}"
        if suffix == ".bmp" and head[:2] == b"BM":
            width, height, _, bits = struct.unpack("<iiHH", head[18:30])
            return f"{abs(height)}×{width}, {bits} bit"
        if suffix in _JPEG and head[:2] == b"\xff\xd8":
            return _jpeg_header(stream)
    raise UnreadableVolumeError(f"it is no {suffix[1:].upper()} file", where=str(file), todo="Save it anew")


def _tiff_header(file: Path) -> str:
    with tifffile.TiffFile(file) as tif:
        series = tif.series[0]
        extent = dict(zip(series.axes, series.shape, strict=True))
        depth = {a: n for a, n in extent.items() if a not in "YXSC" and n > 1}
        if depth or len(tif.series) > 1 or "Y" not in extent or "X" not in extent:
            raise InvalidVolumeError(
                f"it holds more than a plane: {_size(series.shape)} ({series.axes.lower()})",
                where=str(file),
                todo="A file that is a volume is given by itself, not as a plane of one",
            )
        colours = extent.get("S", 1) * extent.get("C", 1)
        require_upright(series.keyframe)
        shade = getattr(series.keyframe.photometric, "name", "unknown shade").lower()
        return f"{extent['Y']}×{extent['X']}{f'×{colours}' if colours > 1 else ''} of {series.dtype.name} ({shade})"


def _jpeg_header(stream: Any) -> str:
    """Return the frame header of a JPEG, which stands behind its other segments."""
    stream.seek(2)
    while len(marker := stream.read(4)) == 4 and marker[0] == 0xFF:
        code, length = marker[1], int.from_bytes(marker[2:], "big")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            bits, height, width, samples = struct.unpack(">BHHB", stream.read(6))
            return f"{height}×{width}, {bits} bit, {samples} samples"
        stream.seek(length - 2, os.SEEK_CUR)
    raise ValueError("the JPEG has no frame header")
