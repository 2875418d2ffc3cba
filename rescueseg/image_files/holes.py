"""Chunks that are not there: counted, told, and refused where they look lost.

A chunk that was never written reads as the fill value, and so does one that a copy lost. Sparse images are written
without their empty chunks, so absence alone proves nothing. It does where another level of the pyramid has image at the
place, or where every neighbour reaches the hole in full intensity: an image that ends fades into the fill value first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.errors import InvalidVolumeError, UnreadableVolumeError
from rescueseg.image_files.source import Statement
from rescueseg.image_files.zarr_chunks import absent_chunks

_Index = tuple[int, ...]
_TOLD = 3
"""Chunks whose boxes a message names."""
_MOST = 2**20
"""Chunks of an array beyond which nobody looks for absent ones."""
_JUDGED = 256
"""Absent chunks that are compared with their surroundings, those with the most neighbours first."""
_DENSE = 0.99
"""Share of the voxels of a touching face that differ from the fill value where the image does not end."""


@dataclass(frozen=True)
class NamedChunks:
    """A chunked array that names the chunk, and its box, that it cannot read.

    Parameters
    ----------
    array : zarr.Array or h5py.Dataset
        With `chunks`.
    axes : str
        One letter per axis.
    """

    array: Any
    axes: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array."""
        kind: np.dtype[Any] = np.dtype(self.array.dtype)
        return kind

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Return voxels."""
        try:
            return np.asarray(self.array[key])
        except Exception as error:
            grid = Grid(self.array, self.axes, tuple(self.array.chunks), (), 0)
            ranges = [slice(*s.indices(n)) for s, n in zip(key, self.shape, strict=True)]
            touched = [range(r.start // c, -(-r.stop // c)) for r, c in zip(ranges, grid.chunks, strict=True)]
            for index in itertools.islice(itertools.product(*touched), _MOST):
                if reason := self._failure(grid.box(index)):
                    raise UnreadableVolumeError(
                        f"chunk {'.'.join(map(str, index))} cannot be read ({reason}): {grid.told(index)}",
                        todo="Copy the file anew from its source",
                    ) from error
            raise

    def _failure(self, box: tuple[slice, ...]) -> str:
        try:
            self.array[box]
        except Exception as error:
            return " ".join(str(error).split())[:120] or type(error).__name__
        return ""


@dataclass(frozen=True)
class Grid:
    """The chunks of an array, and which of them are absent.

    Parameters
    ----------
    array : array-like
        Reads the fill value where a chunk is absent.
    axes : str
        One letter per axis.
    chunks : tuple of int
        Extent of a chunk along each axis.
    absent : sequence of tuple of int
        Position of each absent chunk in the grid.
    fill : float
        What an absent chunk reads as.
    """

    array: Any
    axes: str
    chunks: tuple[int, ...]
    absent: Sequence[_Index]
    fill: float

    @property
    def size(self) -> _Index:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.array.shape, self.chunks, strict=True))

    def box(self, index: _Index) -> tuple[slice, ...]:
        """Return the voxels of a chunk."""
        return tuple(
            slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, self.chunks, self.array.shape, strict=True)
        )

    def told(self, index: _Index) -> str:
        """Return the box of a chunk in words."""
        return " ".join(f"{a} {s.start}:{s.stop}" for a, s in zip(self.axes, self.box(index), strict=True))

    def __str__(self) -> str:
        count, total = len(self.absent), math.prod(self.size)
        boxes = "; ".join(self.told(i) for i in self.absent[:_TOLD]) + ("; …" if count > _TOLD else "")
        verb = "is not there and reads" if count == 1 else "are not there and read"
        return f"{count} of {total} chunks {verb} as {self.fill:g}: {boxes}"

    def faces(self, index: _Index, absent: set[_Index]) -> Iterator[tuple[slice, ...]]:
        """Yield the planes of voxels of present neighbours that touch a chunk."""
        box = self.box(index)
        for axis in (i for i, a in enumerate(self.axes) if a in "zyx"):
            for step in (-1, 1):
                other = (*index[:axis], index[axis] + step, *index[axis + 1 :])
                if 0 <= other[axis] < self.size[axis] and other not in absent:
                    at = box[axis].start - 1 if step < 0 else box[axis].stop
                    yield (*box[:axis], slice(at, at + 1), *box[axis + 1 :])


def of_hdf5(dataset: Any, axes: str, where: str, said: Statement) -> tuple[str, ...]:
    """Return the remarks on the absent chunks of an HDF5 dataset; as `judge`."""
    if dataset.is_virtual:
        _require_sources(dataset)
    if dataset.chunks is None:
        unwritten = dataset.id.get_storage_size() == 0 and not dataset.external
        return (
            ("no voxel was ever written: all read as the fill value",) if unwritten and not dataset.is_virtual else ()
        )
    grid = Grid(dataset, axes, tuple(dataset.chunks), (), float(np.ravel(dataset.fillvalue)[0]))
    total = math.prod(grid.size)
    if dataset.id.get_num_chunks() == total:
        return ()
    if total > _MOST:
        return (_uncounted(total),)
    present: set[_Index] = set()
    dataset.id.chunk_iter(
        lambda chunk: present.add(tuple(o // c for o, c in zip(chunk.chunk_offset, grid.chunks, strict=True)))
    )
    absent = [i for i in itertools.product(*map(range, grid.size)) if i not in present]
    return judge(Grid(dataset, axes, grid.chunks, absent, grid.fill), (), where, said)


def _require_sources(dataset: Any) -> None:
    """Refuse a virtual dataset of which a source is not there: it reads as the fill value."""
    folder = Path(dataset.file.filename).parent
    for source in dataset.virtual_sources():
        if "%" in source.file_name:  # a pattern that the library numbers
            continue
        name = dataset.file.filename if source.file_name == "." else str(folder / source.file_name)
        if not Path(name).exists():
            raise UnreadableVolumeError(
                f"a part of it lies in {source.file_name}, which is not there",
                todo="Give all files together, or save the dataset as one",
            )
        with h5py.File(name, "r") as file:
            if source.dset_name.strip("/") not in file:
                raise UnreadableVolumeError(
                    f"a part of it is {source.dset_name} in {source.file_name}, which is not there",
                    todo="Give all files together, or save the dataset as one",
                )


def of_zarr(
    array: zarr.Array[Any], axes: str, levels: Sequence[zarr.Array[Any]], url: str, where: str, said: Statement
) -> tuple[str, ...]:
    """Return the remarks on the absent chunks of a Zarr array; as `judge`.

    Parameters
    ----------
    array : zarr.Array
        The full resolution.
    axes : str
        One letter per axis.
    levels : sequence of zarr.Array
        The coarser levels of its pyramid.
    url : str
        Folder or URL of the store.
    where : str
        For messages.
    said : Statement
        Whether holes are accepted.
    """
    total = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    if total > _MOST:
        return (_uncounted(total),)
    fill = 0.0 if array.fill_value is None else float(array.fill_value)
    absent = absent_chunks(array, url, lambda index, shape: Grid(array, axes, shape, (), fill).told(index))
    return judge(Grid(array, axes, tuple(array.chunks), absent, fill), levels, where, said)


def judge(grid: Grid, levels: Sequence[Any], where: str, said: Statement) -> tuple[str, ...]:
    """Return a remark that names the absent chunks.

    Raises
    ------
    InvalidVolumeError
        If one looks lost, and nobody accepts holes.
    """
    if not grid.absent:
        return ()
    absent = set(grid.absent)
    if not said.accept_holes:
        by_neighbours = sorted(grid.absent, key=lambda index: -sum(1 for _ in grid.faces(index, absent)))
        for index in by_neighbours[:_JUDGED]:
            if reason := _lost(grid, index, absent, levels):
                raise InvalidVolumeError(
                    f"{grid}. {'It looks' if len(absent) == 1 else 'They look'} lost: {reason} ({grid.told(index)})",
                    where=where,
                    todo="Copy the file anew from its source, or take the holes as they read with --accept-holes",
                )
    return (str(grid),)


def _lost(grid: Grid, index: _Index, absent: set[_Index], levels: Sequence[Any]) -> str:
    """Return what says that a chunk existed, nothing where nothing does."""
    for number, level in enumerate(levels, 1):
        if _shows(grid, index, level):
            return f"level {number} of the pyramid has image there"
    faces = 0
    for face in grid.faces(index, absent):
        if np.mean(_differs(np.asarray(grid.array[face]), grid.fill)) < _DENSE:
            return ""
        faces += 1
    return "the image does not fade out towards it" if faces else ""


def _shows(grid: Grid, index: _Index, level: Any) -> bool:
    """Tell whether a coarser level has voxels other than the fill value inside the box of a chunk."""
    region = []
    for box, fine, coarse in zip(grid.box(index), grid.array.shape, level.shape, strict=True):
        factor = fine / coarse
        if factor > 1 and box.stop - box.start < 2 * factor:
            return False  # a coarse voxel there holds the neighbours too
        start = math.ceil(box.start / factor) + (factor > 1 and box.start > 0)
        stop = math.floor(box.stop / factor) - (factor > 1 and box.stop < fine)
        middle = min(int((box.start + box.stop) / 2 / factor), coarse - 1)
        region.append(slice(start, stop) if start < stop else slice(middle, middle + 1))
    return bool(_differs(np.asarray(level[tuple(region)]), grid.fill).any())


def _differs(voxels: npt.NDArray[Any], fill: float) -> npt.NDArray[np.bool_]:
    return ~np.isnan(voxels) if np.isnan(fill) else np.asarray(voxels != fill)


def _uncounted(total: int) -> str:
    return f"{total} chunks: too many to look for absent ones"
