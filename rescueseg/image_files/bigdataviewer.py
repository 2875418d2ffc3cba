"""BigDataViewer's HDF5: ``t00000/s00/0/cells``, the voxel size in the XML beside it, uint16 stored as int16."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.geometry import Spacing
from rescueseg.image_files.source import ArraySource, Statement
from rescueseg.image_files.units import to_um

_CELLS = re.compile(r"^t\d{5,}/s(\d{2,})/(\d+)/cells$")


def is_bigdataviewer(file: Any, name: str) -> bool:
    """Tell whether a file, or the dataset of it that is named, is BigDataViewer's."""
    if name:
        return _CELLS.match(name) is not None and name in file
    return bool(_matching(file, r"t\d{5,}")) and bool(_matching(file, r"s\d{2,}"))


def open_bigdataviewer(file: Any, name: str, path: str, said: Statement) -> ArraySource:
    """Open one setup at full resolution.

    Raises
    ------
    InvalidVolumeError
        If there are several setups or time points and nobody says which.
    """
    name = name or _only_cells(file, path, said)
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise UnreadableVolumeError(
            f"there is no dataset '{name}'", where=path, todo="Look for files beside it that it refers to"
        )
    match = _CELLS.match(name)
    setup, level = (int(match[1]), int(match[2])) if match else (0, 0)
    remarks = [f"level {level} of the pyramid, not the full resolution"] if level else []
    unsigned: Any = dataset
    if dataset.dtype == np.int16:
        unsigned, remarks = _Unsigned(dataset), [*remarks, "BigDataViewer's int16 was read as the uint16 it stands for"]
    spacing, note = _spacing(Path(file.filename).with_suffix(".xml"), setup)
    if level:
        spacing, note = None, f"the level is {level} of the pyramid"
    return ArraySource(
        unsigned, said.axes or "zyx", spacing, path, spacing_note=note, remarks=tuple(remarks), said=said, on_close=(file.close,)
    )  # fmt: skip


@dataclass(frozen=True)
class _Unsigned:
    """An int16 array whose bits are uint16."""

    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16)

    def __getitem__(self, key: Any) -> npt.NDArray[np.uint16]:
        return np.ascontiguousarray(self.stored[key]).astype(np.int16, copy=False).view(np.uint16)


def _matching(file: Any, pattern: str) -> list[str]:
    return sorted(key for key in file if re.fullmatch(pattern, key))


def _only_cells(file: Any, path: str, said: Statement) -> str:
    times, setups = _matching(file, r"t\d{5,}"), _matching(file, r"s\d{2,}")
    asked = said.series
    if (asked is None and len(setups) > 1) or (asked is not None and f"s{asked:02}" not in setups):
        raise InvalidVolumeError(
            f"it holds the setups {', '.join(setups)}", where=path, todo="Say which with --series, counted from 0"
        )
    setup = setups[0] if asked is None else f"s{asked:02}"
    if len(times) > 1:
        raise InvalidVolumeError(
            f"it holds {len(times)} time points",
            where=path,
            todo=f"Name one: {times[0]}/{setup}/0/cells to {times[-1]}/{setup}/0/cells",
        )
    return f"{times[0]}/{setup}/0/cells"


def _spacing(file: Path, setup: int) -> tuple[Spacing | None, str]:
    if not file.is_file():
        return None, f"BigDataViewer keeps it in {file.name}, which is not beside the file"
    for entry in xml.etree.ElementTree.parse(file).getroot().iter("ViewSetup"):
        size = entry.find("voxelSize")
        if int(entry.findtext("id", "-1")) != setup or size is None:
            continue
        unit, numbers = size.findtext("unit", ""), [float(v) for v in size.findtext("size", "").split()]
        sizes = [to_um(v, unit) for v in numbers]
        if len(sizes) == 3 and None not in sizes:
            x, y, z = (float(v) for v in sizes if v is not None)
            return (z, y, x), ""
        return None, f"{file.name} says {' × '.join(f'{v:g}' for v in reversed(numbers))} '{unit}' (z y x)"
    return None, f"{file.name} says nothing of setup {setup}"
