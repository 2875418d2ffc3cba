"""The coarser levels of delivered labels: every level holds the same ids.

A level takes every second voxel of the finer one along the axes that are halved, as all label images here do. An id that
would vanish gets the coarse voxel in which its first voxel lies (first in z, y, x order at full resolution), or the
nearest one that is free: background, or of an id that has others left. Where that cannot be done for all ids, the pyramid
ends with the level before, and those of the image and of the other labels too: all are to have as many levels. Nothing of
it depends on blocks or workers: ids are placed in the order of fixed tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.label_colours import class_colours, object_colour
from rescueseg.delivery.label_counts import Integers, count_labels
from rescueseg.delivery.label_placing import every_nth, place_ids
from rescueseg.delivery.step import Step
from rescueseg.errors import storage_errors
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.storage import Storage, digest_json
from rescueseg.volumes.image_layout import choose_chunks
from rescueseg.volumes.ome_zarr import (
    create_level,
    describe_labels,
    level_factors,
    level_paths,
    list_levels,
    open_level,
)

MOST_COLOURS = 10_000
"""Objects that get a colour in the metadata; viewers colour the others themselves."""
_ONE: ZYX = (1, 1, 1)


@dataclass(frozen=True)
class LabelPyramid:
    """What a label image holds.

    Parameters
    ----------
    levels : int
        How many, the full resolution included.
    ids : ndarray of int64
        All but the background, ascending; the same at every level.
    """

    levels: int
    ids: Integers


@dataclass(frozen=True)
class _Level:
    number: int
    shape_zyx: ZYX
    factors: ZYX
    """Against the level before."""
    total: ZYX
    """Against the full resolution."""


def add_label_pyramid(
    url: str, name: str, step: Step, spacing_um_zyx: Spacing, classes: Sequence[str] | None = None
) -> LabelPyramid:
    """Write the coarser levels of a label image, and its colours.

    Parameters
    ----------
    url : str
        The image that it lies below.
    name : str
        The label image, level 0 written.
    step : Step
        Of these passes; its digest is to change when level 0 does.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    classes : sequence of str, optional
        Names of classes 1…K, which get a colour and a property ``class`` each. Without them the labels are objects, of
        which the first 10,000 get a colour.

    Returns
    -------
    LabelPyramid
        What it holds.

    Raises
    ------
    StorageError
        If the disk is full.
    """
    label_url = f"{url}/labels/{name}"
    first = open_level(label_url)
    levels = _plan(zyx(first.shape), spacing_um_zyx)[: _levels_of_image(url)]
    counting = step.block_pass(f"{name}_ids", levels[0].shape_zyx, zyx(first.shards or first.chunks))
    step.run(counting, _count_block, _Counting(label_url, levels[1].factors if len(levels) > 1 else _ONE))
    ids, sizes, firsts = _join(counting)
    at = np.stack(np.unravel_index(firsts, levels[0].shape_zyx), axis=1)
    written = [_ONE]
    for level in levels[1:]:
        factors = levels[level.number + 1].factors if level.number + 1 < len(levels) else _ONE
        places = at // np.asarray(level.total)
        changes = _changes(label_url, name, step, level, sizes=sizes, ids=ids, places=places, spacing=spacing_um_zyx)
        if changes is None:
            break
        writing = _write_level(label_url, name, step, level, _Writing(label_url, level, factors, step.url, changes))
        written.append(level.total)
        sizes = _aligned(ids, writing)
    with storage_errors(label_url):
        group = zarr.open_group(zarr_store(label_url), mode="r+")
        for level in levels[len(written) :]:
            Storage(label_url).remove(str(level.number))
        list_levels(group, written, labels=True)
        describe_labels(url, name, _description(ids, classes))
        _shorten_others(url, name, len(written))
    return LabelPyramid(len(written), ids)


def _levels_of_image(url: str) -> int | None:
    """Return how many levels the image has that labels lie below, None where there is none."""
    attributes = zarr.open_group(zarr_store(url), mode="r", zarr_format=3).attrs.asdict()
    return len(level_paths(attributes)) if "ome" in attributes else None


def _shorten_others(url: str, name: str, count: int) -> None:
    """Let neither the image nor another of its labels name more levels than a label image has."""
    if _levels_of_image(url) is None:
        return
    _shorten(url, count)
    for other in zarr.open_group(zarr_store(f"{url}/labels"), mode="r", zarr_format=3).group_keys():
        if other != name:
            _shorten(f"{url}/labels/{other}", count)


def _shorten(url: str, count: int) -> None:
    group = zarr.open_group(zarr_store(url), mode="r+", zarr_format=3)
    ome: Any = group.attrs.asdict()["ome"]
    multiscale = ome["multiscales"][0]
    if len(multiscale["datasets"]) > count:
        group.attrs["ome"] = ome | {"multiscales": [multiscale | {"datasets": multiscale["datasets"][:count]}]}


def _plan(shape_zyx: ZYX, spacing_um_zyx: Spacing) -> list[_Level]:
    levels = [_Level(0, shape_zyx, _ONE, _ONE)]
    while True:
        last = levels[-1]
        factors = level_factors(last.shape_zyx, [s * t for s, t in zip(spacing_um_zyx, last.total, strict=True)])
        if factors is None or factors == _ONE:
            return levels
        shape = zyx(math.ceil(n / f) for n, f in zip(last.shape_zyx, factors, strict=True))
        total = zyx(t * f for t, f in zip(last.total, factors, strict=True))
        levels.append(_Level(len(levels), shape, factors, total))


def _changes(
    label_url: str,
    name: str,
    step: Step,
    level: _Level,
    *,
    sizes: Integers,
    ids: Integers,
    places: Integers,
    spacing: Spacing,
) -> str | None:
    """Return the name of the file with the ids that are put into a level, None where it cannot hold them all."""
    file = f"{name}_{level.number}_{digest_json([step.digest, spacing])[:16]}.npz"
    if not step.storage.exists(file):
        z, y, x = (s * t for s, t in zip(spacing, level.total, strict=True))
        fine = open_level(label_url, level.number - 1)
        changes = place_ids(fine, level.factors, level.shape_zyx, sizes, ids, places, um=(z, y, x))
        if changes is None:
            return None
        step.storage.write_array(file, changes)
    return file


def _write_level(label_url: str, name: str, step: Step, level: _Level, job: _Writing) -> BlockPass:
    """Write one level."""
    dtype = open_level(label_url).dtype
    with storage_errors(label_url):
        group = zarr.open_group(zarr_store(label_url), mode="r+")
        present = group.get(str(level.number))
        if not isinstance(present, zarr.Array) or (present.shape, present.dtype) != (level.shape_zyx, dtype):
            create_level(group, str(level.number), level.shape_zyx, dtype)
    shards = choose_chunks(level.shape_zyx)[1]
    return step.run(step.block_pass(f"{name}_{level.number}", level.shape_zyx, shards), _write_block, job)


def _aligned(ids: Integers, block_pass: BlockPass) -> Integers:
    """Return the voxels of each id at the next level, summed over the blocks of a pass."""
    sizes = np.zeros(ids.size, np.int64)
    for result in block_pass.results():
        np.add.at(sizes, np.searchsorted(ids, result["next_ids"]), result["next_sizes"])
    return sizes


def _join(block_pass: BlockPass) -> tuple[Integers, Integers, Integers]:
    """Return the ids of level 0, their voxels at level 1, and their first voxels at level 0."""
    results = [(r["ids"], r["firsts"]) for r in block_pass.results()]
    all_ids = np.concatenate([ids for ids, _ in results])
    ids, place = np.unique(all_ids, return_inverse=True)
    firsts = np.full(ids.size, np.iinfo(np.int64).max)
    np.minimum.at(firsts, place, np.concatenate([firsts for _, firsts in results]))
    return ids, _aligned(ids, block_pass), firsts


def _description(ids: Integers, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return colours, and for classes their names; NGFF asks for the same labels in both."""
    if classes is None:
        colours = [(int(n), object_colour(int(n))) for n in ids[:MOST_COLOURS]]
        return {"colors": [_colour(n, rgb) for n, rgb in colours]}
    named = list(enumerate(zip(classes, class_colours(len(classes)), strict=True), start=1))
    return {
        "colors": [_colour(n, rgb) for n, (_, rgb) in named],
        "properties": [{"label-value": n, "class": class_name} for n, (class_name, _) in named],
    }


def _colour(number: int, rgb: tuple[int, int, int]) -> dict[str, Any]:
    return {"label-value": number, "rgba": [*rgb, 255]}


# blocks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counting:
    label_url: str
    following: ZYX


def _count_block(job: _Counting, box: Box) -> Arrays:
    """Return the ids of a block of level 0 with their first voxels, and how many voxels they have at the next level."""
    array = open_level(job.label_url)
    voxels = np.asarray(array[box.slices])
    counts = count_labels(voxels, box, zyx(array.shape))
    return {"ids": counts.ids, "firsts": counts.firsts, **_next_counts(voxels, box, job.following)}


def _next_counts(voxels: npt.NDArray[Any], box: Box, factors: ZYX) -> dict[str, npt.NDArray[Any]]:
    """Count the ids among those voxels of a block that the next level takes."""
    starts = [-o % f for o, f in zip(box.offset_zyx, factors, strict=True)]
    taken = voxels[tuple(slice(a, None, f) for a, f in zip(starts, factors, strict=True))]
    if not taken.size:
        return {"next_ids": np.zeros(0, np.int64), "next_sizes": np.zeros(0, np.int64)}
    counts = count_labels(taken, Box((0, 0, 0), zyx(taken.shape)), zyx(taken.shape))
    return {"next_ids": counts.ids, "next_sizes": counts.sizes}


@dataclass(frozen=True)
class _Writing:
    label_url: str
    level: _Level
    following: ZYX
    step_url: str
    changes: str


def _write_block(job: _Writing, box: Box) -> Arrays:
    voxels = every_nth(open_level(job.label_url, job.level.number - 1), box, job.level.factors)
    with storage_errors(job.label_url):
        group = zarr.open_group(zarr_store(job.label_url), mode="r+")
        level: Any = group[str(job.level.number)]
        changes = Storage(job.step_url).read_array(job.changes)
        where = np.stack(np.unravel_index(changes[:, 0], level.shape), axis=1) - np.asarray(box.offset_zyx)
        inside = np.all((where >= 0) & (where < box.shape_zyx), axis=1)
        voxels[tuple(where[inside].T)] = changes[inside, 1]
        level[box.slices] = voxels
    return _next_counts(voxels, box, job.following)
