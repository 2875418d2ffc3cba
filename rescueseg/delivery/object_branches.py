"""Branches of tubes and networks: how many, and how long in all.

They are counted in objects that are far from round: a sphericity below 0.5, and at least 16 voxels long. For the others
the table says nothing. An object whose bounding box holds more than 64 million voxels is taken coarser, until it does not.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skan import Skeleton

from rescueseg.delivery.block_pass import Arrays
from rescueseg.delivery.object_numbers import Int64, ObjectNumbers
from rescueseg.delivery.step import Step
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.storage import Storage
from rescueseg.voxels.skeleton import skeleton_of

_ROUND = 0.5
_SHORTEST = 16
_MOST_VOXELS = 64_000_000


@dataclass(frozen=True)
class _Job:
    numbers: ObjectNumbers
    spacing_um_zyx: Spacing
    step_url: str
    file: str


def count_branches(
    numbers: ObjectNumbers,
    step: Step,
    ids: Int64,
    low: Int64,
    high: Int64,
    sphericity: npt.NDArray[np.float64],
    um: Spacing,
) -> tuple[Int64, npt.NDArray[np.float64]]:
    """Count the branches of objects that are far from round.

    Parameters
    ----------
    numbers : ObjectNumbers
        Reads the objects.
    step : Step
        Of the pass.
    ids, low, high : ndarray of int64, (n,), (n, 3), (n, 3)
        All objects, and their bounding boxes.
    sphericity : ndarray of float64, (n,)
        Of each.
    um : tuple of float
        Voxel size, zyx, in micrometre.

    Returns
    -------
    branches : ndarray of int64, (n,)
        -1 where they were not counted.
    length : ndarray of float64, (n,)
        All of them together, in micrometre, along the skeleton; NaN where they were not counted.
    """
    chosen = np.flatnonzero((sphericity < _ROUND) & ((high - low).max(axis=1, initial=0) >= _SHORTEST))
    branches, length = np.full(ids.size, -1, np.int64), np.full(ids.size, np.nan)
    if chosen.size:
        file = f"tubes_{step.digest[:16]}.npz"
        step.storage.write_array(file, np.column_stack([ids, low, high])[chosen])
        counting = step.block_pass("branches", numbers.shape_zyx, numbers.block_zyx)
        for result in step.run(counting, _branches_of_block, _Job(numbers, um, step.url, file)).results():
            rows = np.searchsorted(ids, result["ids"])
            branches[rows], length[rows] = result["branches"], result["length"]
    return branches, length


def _branches_of_block(job: _Job, box: Box) -> Arrays:
    """Count the branches of the objects whose bounding boxes begin in a block."""
    table = Storage(job.step_url).read_array(job.file)
    begins = np.all((table[:, 1:4] >= box.offset_zyx) & (table[:, 1:4] < box.stop_zyx), axis=1)
    keep = functools.lru_cache(maxsize=2)(job.numbers.of_block)
    branches, length = [], []
    for row in table[begins]:
        bounds = Box.from_bounds(zyx(row[1:4]), zyx(row[4:7]))
        factors = coarser(bounds.shape_zyx, job.spacing_um_zyx)
        mask = job.numbers.mask_of(int(row[0]), bounds, factors, keep)
        z, y, x = (s * f for s, f in zip(job.spacing_um_zyx, factors, strict=True))
        count, together = branches_of(mask, (z, y, x))
        branches.append(count)
        length.append(together)
    return {
        "ids": table[begins, 0],
        "branches": np.array(branches, np.int64),
        "length": np.array(length, np.float64),
    }


def coarser(shape_zyx: ZYX, spacing_um_zyx: Spacing, most: int = _MOST_VOXELS) -> ZYX:
    """Return by how much an object is taken coarser along each axis: the finest ones first, each time by two.

    Examples
    --------
    >>> coarser((1000, 1000, 1000), (0.3, 0.1, 0.1))
    (1, 4, 4)
    """
    factors = [1, 1, 1]
    while math.prod(math.ceil(n / f) for n, f in zip(shape_zyx, factors, strict=True)) > most:
        fineness = [s * f if n > f else math.inf for n, s, f in zip(shape_zyx, spacing_um_zyx, factors, strict=True)]
        factors[fineness.index(min(fineness))] *= 2
    return zyx(factors)


def branches_of(mask: npt.NDArray[np.bool_], spacing_um_zyx: Spacing) -> tuple[int, float]:
    """Return how many branches the skeleton of an object has, and how long they are in all, in micrometre.

    A branch runs from an end or a junction to the next one. The skeleton ends before the object does.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        One object.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    References
    ----------
    Lee, Kashyap & Chu 1994, https://doi.org/10.1006/cgip.1994.1042; Nunez-Iglesias et al. 2018,
    https://doi.org/10.7717/peerj.4312.

    Examples
    --------
    >>> rod = np.zeros((5, 5, 21), bool)
    >>> rod[2, 2, 3:18] = True
    >>> branches_of(rod, (0.3, 0.1, 0.1))[0], round(branches_of(rod, (0.3, 0.1, 0.1))[1], 6)
    (1, 1.4)
    """
    skeleton = skeleton_of(mask)
    if np.count_nonzero(skeleton) < 2:
        return 0, 0.0
    graph = Skeleton(skeleton, spacing=list(spacing_um_zyx))
    return int(graph.n_paths), float(np.sum(graph.path_lengths()))
