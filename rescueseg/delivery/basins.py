"""The basins of a whole volume, in bounded memory: those that the volume has in one piece, whatever its blocks.

A first pass finds the basins of every block alone: each voxel leads to a summit in the block or to a voxel just beyond it.
From there the next block knows the way, so that a few passes over small tables lead all to their summits; each halves what
is left of the longest way. A last one compares the faces of neighbours.

::

    climb/000012.npz        basins of a block alone, where they lead, where they touch, and the faces of the block
    follow_0/000012.npz …   where they lead one block further, two, four …
    touch/000012.npz        sizes and saddles of the volume's basins, as far as the block sees them
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.delivery.block_faces import block_grid, block_index, face, faces, following, neighbours_across
from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.step import Step
from rescueseg.errors import storage_errors
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.storage import digest_json
from rescueseg.voxels.basin_objects import Basins
from rescueseg.voxels.basins import Heights, Int64, climb, find_saddles, highest_saddles, saddle

_IDENTITY = "rescueseg"
_FAR = np.iinfo(np.int64).max


class HeightReader(Protocol):
    """Reads any box of a volume as heights: 0 is outside. It can be pickled."""

    def read(self, box: Box) -> Heights:
        """Return the heights in a box of the volume, uint16 zyx."""
        ...


@dataclass(frozen=True)
class BasinBlocks:
    """The basins of the blocks of a volume; it can be pickled, so blocks get it.

    Parameters
    ----------
    scratch_url : str
        Array of the basins of every block alone, uint32.
    climb_pass, lead_pass : BlockPass
        The first pass, and the last one that says where they lead.
    """

    scratch_url: str
    climb_pass: BlockPass
    lead_pass: BlockPass

    def summits(self, index: int) -> Int64:
        """Return the place of the summit of each basin 1…m of a block."""
        ends: Int64 = self.lead_pass.finished(index)["ends"]
        return ends

    def labels(self, box: Box) -> npt.NDArray[np.uint32]:
        """Return the basins of a block's voxels, 1…m, zyx; 0 outside."""
        array = _open_scratch(self.scratch_url)
        with storage_errors(self.scratch_url):
            return np.asarray(array[box.slices], np.uint32)


@dataclass(frozen=True)
class _Climb:
    reader: HeightReader
    scratch_url: str
    shape_zyx: ZYX


def find_basins(
    reader: HeightReader, step: Step, scratch_url: str, shape_zyx: ZYX, block_zyx: ZYX
) -> tuple[Basins, BasinBlocks]:
    """Find the basins of a volume.

    Parameters
    ----------
    reader : HeightReader
        The heights.
    step : Step
        Of what the reader reads; a rerun goes on where it was killed.
    scratch_url : str
        Where the basins of the blocks may lie in the meantime, uint32.
    shape_zyx, block_zyx : tuple of int
        Of the volume, and of a block.

    Returns
    -------
    Basins
        Those of the whole volume, as `rescueseg.voxels.basins` finds them. Memory grows with their number, not with the voxels.
    BasinBlocks
        Those of each block.
    """
    identity = _scratch(scratch_url, shape_zyx, block_zyx)
    within = Step(step.url, digest_json([step.digest, identity]), step.client, step.progress)
    climb_pass = within.block_pass("climb", shape_zyx, block_zyx)
    within.run(climb_pass, _climb_block, _Climb(reader, scratch_url, shape_zyx))
    blocks = BasinBlocks(scratch_url, climb_pass, climb_pass)
    for number in itertools.count():
        if not any(arrays["open"].any() for arrays in blocks.lead_pass.results()):
            break
        further = within.block_pass(f"follow_{number}", shape_zyx, block_zyx)
        within.run(further, _follow_block, blocks)
        blocks = BasinBlocks(scratch_url, climb_pass, further)
    touch = within.block_pass("touch", shape_zyx, block_zyx)
    within.run(touch, _touch_block, blocks)
    return _gather(touch), blocks


def _scratch(url: str, shape_zyx: ZYX, block_zyx: ZYX) -> str:
    """Return the identity of the array of the blocks' basins; it is made where there is none of this kind, with a new one."""
    try:
        array = _open_scratch(url)
        if (array.shape, array.chunks) == (shape_zyx, block_zyx):
            return str(array.attrs[_IDENTITY])
    except (FileNotFoundError, ValueError, KeyError):
        pass
    identity = uuid.uuid4().hex
    with storage_errors(url):
        zarr.create_array(
            zarr_store(url),
            shape=shape_zyx,
            dtype=np.uint32,
            chunks=block_zyx,
            fill_value=0,
            overwrite=True,
            attributes={_IDENTITY: identity},
        )
    return identity


def _open_scratch(url: str, mode: str = "r") -> zarr.Array[Any]:
    return zarr.open_array(store=zarr_store(url), mode=mode, zarr_format=3)


# passes ---------------------------------------------------------------------------------------------------------------


def _climb_block(job: _Climb, box: Box) -> Arrays:
    """Find the basins of a block alone, where they touch, and where they lead."""
    outer = box.expand((1, 1, 1)).clip(job.shape_zyx)
    around = job.reader.read(outer)
    inner = Box(zyx(a - b for a, b in zip(box.offset_zyx, outer.offset_zyx, strict=True)), box.shape_zyx)
    labels, ends = climb(around, inner.slices)
    heights = np.ascontiguousarray(around[inner.slices])
    count, at = len(ends), np.flatnonzero(labels)
    numbers = labels.reshape(-1)[at] - 1
    first = np.full(count, _FAR)
    np.minimum.at(first, numbers, at)
    if count:
        array = _open_scratch(job.scratch_url, "r+")
        with storage_errors(job.scratch_url):
            array[box.slices] = labels.view(np.uint32)
    end_zyx = _places(ends, outer)
    beyond = np.zeros(count, np.bool_)
    for places, start, stop in zip(end_zyx, box.offset_zyx, box.stop_zyx, strict=True):
        beyond |= (places < start) | (places >= stop)
    return {
        "ends": _flat(end_zyx, job.shape_zyx),
        "open": beyond,
        "heights": around.reshape(-1)[ends],
        "sizes": np.bincount(numbers, minlength=count).astype(np.int64),
        "first": _flat(_places(first, box), job.shape_zyx),
        "rows": find_saddles(labels, heights),
        **faces("label", labels.astype(np.min_scalar_type(count))),
        **faces("height", heights),
    }


def _places(flat: Int64, box: Box) -> Int64:
    """Return the coordinates in the volume, (3, n), of places in a flattened box."""
    offset = np.asarray(box.offset_zyx)[:, np.newaxis]
    return np.asarray(np.stack(np.unravel_index(flat, box.shape_zyx)) + offset, np.int64)


def _flat(places: Int64, shape_zyx: ZYX) -> Int64:
    flat: Int64 = np.ravel_multi_index((places[0], places[1], places[2]), shape_zyx).astype(np.int64)
    return flat


def _follow_block(blocks: BasinBlocks, box: Box) -> Arrays:
    """Lead the basins of a block that end beyond it to where the block there leads."""
    shape, size = blocks.climb_pass.shape_zyx, blocks.climb_pass.block_zyx
    now = blocks.lead_pass.finished(block_index(box, shape, size))
    ends, beyond = now["ends"].copy(), now["open"].copy()
    todo = np.flatnonzero(beyond)
    places = np.stack(np.unravel_index(ends[todo], shape))
    grid = block_grid(shape, size)
    blocks_of = np.ravel_multi_index(tuple(p // b for p, b in zip(places, size, strict=True)), grid)
    for index in np.unique(blocks_of).tolist():
        leads_there = blocks_of == index
        there = blocks.climb_pass.blocks[index]
        local = places[:, leads_there] - np.asarray(there.offset_zyx)[:, np.newaxis]
        numbers = _on_faces(blocks.climb_pass.finished(index), local, there.shape_zyx) - 1
        following_ends = blocks.lead_pass.finished(index)
        ends[todo[leads_there]], beyond[todo[leads_there]] = (
            following_ends["ends"][numbers],
            following_ends["open"][numbers],
        )
    return {"ends": ends, "open": beyond}


def _on_faces(arrays: Arrays, places: Int64, shape_zyx: ZYX) -> Int64:
    """Return the labels of voxels of a block that lie on its faces; places (3, n) from its first voxel."""
    labels = np.zeros(places.shape[1], np.int64)
    for axis, side in itertools.product(range(3), (0, 1)):
        at = np.flatnonzero(places[axis] == (shape_zyx[axis] - 1) * side)
        first, second = (places[a, at] for a in range(3) if a != axis)
        labels[at] = arrays[face("label", axis, side)][first, second]
    return labels


def _touch_block(blocks: BasinBlocks, box: Box) -> Arrays:
    """Say what a block knows of the volume's basins: sizes, first voxels, summits, and where they touch."""
    shape, size = blocks.climb_pass.shape_zyx, blocks.climb_pass.block_zyx
    index = block_index(box, shape, size)
    ours, summits = blocks.climb_pass.finished(index), blocks.summits(index)
    a, b, height = ours["rows"].T
    rows = [_rows(summits[a - 1], summits[b - 1], height)]
    for neighbour, direction in following(box, shape, size, 26) if len(summits) else ():
        theirs, their_summits = blocks.climb_pass.finished(neighbour), blocks.summits(neighbour)
        labels = neighbours_across(ours, theirs, "label", direction, 26)
        heights = neighbours_across(ours, theirs, "height", direction, 26)
        for (here, there), (height_here, height_there) in zip(labels, heights, strict=True):
            both = np.flatnonzero((here > 0) & (there > 0))
            saddles = saddle(height_here[both], height_there[both])
            from_here, from_there = here[both].astype(np.int64), there[both].astype(np.int64)
            rows.append(_rows(summits[from_here - 1], their_summits[from_there - 1], saddles))
    basins, number = np.unique(summits, return_inverse=True)
    sizes, first = np.zeros(len(basins), np.int64), np.full(len(basins), _FAR)
    np.add.at(sizes, number, ours["sizes"])
    np.minimum.at(first, number, ours["first"])
    own = ~ours["open"]
    return {
        "rows": highest_saddles(np.concatenate(rows)),
        "basins": basins,
        "sizes": sizes,
        "first": first,
        "summits": ours["ends"][own],
        "heights": ours["heights"][own],
    }


def _rows(a: Int64, b: Int64, saddles: Int64) -> Int64:
    """Return rows (a, b, saddle) of the pairs that differ, the lower first."""
    differ = a != b
    a, b = a[differ], b[differ]
    return highest_saddles(np.column_stack([np.minimum(a, b), np.maximum(a, b), saddles[differ]]))


def _gather(touch: BlockPass) -> Basins:
    """Put together what the blocks know of the volume's basins."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for arrays in touch.results():
        for name, of_block in arrays.items():
            parts.setdefault(name, []).append(of_block)
    summits = np.concatenate(parts["summits"])
    order = np.argsort(summits)
    summits = summits[order]
    number = np.searchsorted(summits, np.concatenate(parts["basins"]))
    sizes, first = np.zeros(len(summits), np.int64), np.full(len(summits), _FAR)
    np.add.at(sizes, number, np.concatenate(parts["sizes"]))
    np.minimum.at(first, number, np.concatenate(parts["first"]))
    rows = np.concatenate(parts.pop("rows"))
    rows[:, :2] = np.searchsorted(summits, rows[:, :2])
    heights = np.concatenate(parts["heights"])[order].astype(np.int64)
    return Basins(summits, heights, sizes, first, highest_saddles(rows))
