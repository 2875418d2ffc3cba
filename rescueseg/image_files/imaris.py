"""Imaris 5.5 files: HDF5 with one dataset per channel, padded to whole chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import InvalidVolumeError
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.image_files.axes import only_image
from rescueseg.image_files.source import ArraySource, Statement
from rescueseg.image_files.units import to_um

_FULL = "DataSet/ResolutionLevel 0"


def is_imaris(file: Any) -> bool:
    """Tell an Imaris file by its groups."""
    return _FULL in file and "DataSetInfo/Image" in file


def open_imaris(file: Any, path: str, said: Statement) -> ArraySource:
    """Open the full resolution, cut to the size that the file states.

    Raises
    ------
    InvalidVolumeError
        If it holds several time points.
    """
    only_image(said, path)
    times = _counted(file[_FULL], "TimePoint")
    if len(times) != 1:
        raise InvalidVolumeError(
            f"it holds {len(times)} time points", where=path, todo="Save one time point per file, or export it"
        )
    point = file[f"{_FULL}/{times[0]}"]
    channels = _counted(point, "Channel")
    image = file["DataSetInfo/Image"]
    shape = zyx(_number(point[channels[0]].attrs.get(f"ImageSize{a}", image.attrs.get(a))) for a in "ZYX")
    datasets = tuple(point[name]["Data"] for name in channels)
    if any(n > m for d in datasets for n, m in zip(shape, d.shape, strict=True)):
        raise InvalidVolumeError(
            f"it says {shape} voxels (z y x) and holds {datasets[0].shape}", where=path, todo="Export the file anew"
        )
    spacing, note = _spacing(image.attrs, shape)
    names = [
        _text(file[f"DataSetInfo/{name}"].attrs.get("Name", "")) for name in channels if f"DataSetInfo/{name}" in file
    ]
    hints = {"description": f"channels {', '.join(names)}"} if any(names) else {}
    return ArraySource(
        _Channels(datasets, shape), said.axes or "czyx", spacing, path, spacing_note=note, hints=hints, said=said, on_close=(file.close,)
    )  # fmt: skip


@dataclass(frozen=True)
class _Channels:
    """The datasets of the channels as one array c, z, y, x, without the padding behind its size."""

    datasets: tuple[Any, ...]
    size_zyx: ZYX

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.datasets), *self.size_zyx)

    @property
    def dtype(self) -> np.dtype[Any]:
        kind: np.dtype[Any] = np.dtype(self.datasets[0].dtype)
        return kind

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        channel, *box = key
        inside = tuple(slice(*s.indices(n)) for s, n in zip(box, self.size_zyx, strict=True))
        return np.stack([d[inside] for d in self.datasets[channel]])


def _counted(group: Any, word: str) -> list[str]:
    names = [name for name in group if re.fullmatch(rf"{word} \d+", name)]
    return sorted(names, key=lambda name: int(name.split()[-1]))


def _text(value: Any) -> str:
    """Return an attribute, which Imaris writes as an array of single characters."""
    parts = np.ravel(value).tolist()
    return "".join(p.decode(errors="replace") if isinstance(p, bytes) else str(p) for p in parts).strip("\0 ")


def _number(value: Any) -> int:
    return int(float(_text(value)))


def _spacing(attributes: Any, shape: ZYX) -> tuple[Spacing | None, str]:
    """Return the extent divided by the number of voxels; Imaris' own unit is micrometre."""
    if any(f"Ext{end}{i}" not in attributes for end in ("Min", "Max") for i in range(3)):
        return None, ""
    low, high = ([float(_text(attributes[f"Ext{end}{i}"])) for i in (2, 1, 0)] for end in ("Min", "Max"))
    numbers = [(b - a) / n for a, b, n in zip(low, high, shape, strict=True)]
    unit = _text(attributes.get("Unit", "um"))
    z, y, x = (to_um(v, unit) for v in numbers)
    if z is None or y is None or x is None:
        return None, f"the Imaris file says {' × '.join(f'{v:.6g}' for v in numbers)} '{unit}' (z y x)"
    return (z, y, x), ""
