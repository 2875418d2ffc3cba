"""Where blocks of a volume meet: which ones follow each other, and which voxels of their faces are neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.voxels.components import Connectivity

_STEPS: dict[Connectivity, int] = {6: 1, 18: 2, 26: 3}
"""Along how many axes neighbours may differ."""


def block_grid(shape_zyx: ZYX, block_zyx: ZYX) -> ZYX:
    """Return how many blocks a volume has along each axis."""
    return zyx(-(-n // b) for n, b in zip(shape_zyx, block_zyx, strict=True))


def block_index(box: Box, shape_zyx: ZYX, block_zyx: ZYX) -> int:
    """Return which block of a volume a box is, counted in z, y, x order.

    Examples
    --------
    >>> block_index(Box((0, 16, 0), (8, 4, 16)), shape_zyx=(8, 20, 16), block_zyx=(8, 16, 16))
    1
    """
    place = zyx(o // b for o, b in zip(box.offset_zyx, block_zyx, strict=True))
    return int(np.ravel_multi_index(place, block_grid(shape_zyx, block_zyx)))


def following(box: Box, shape_zyx: ZYX, block_zyx: ZYX, connectivity: Connectivity) -> Iterator[tuple[int, ZYX]]:
    """Yield the neighbours of a block that follow it in z, y, x order: which block, and in which direction it lies."""
    grid = block_grid(shape_zyx, block_zyx)
    here = zyx(o // b for o, b in zip(box.offset_zyx, block_zyx, strict=True))
    for step in itertools.product((-1, 0, 1), repeat=3):
        there = zyx(a + d for a, d in zip(here, step, strict=True))
        inside = all(0 <= t < n for t, n in zip(there, grid, strict=True))
        if step > (0, 0, 0) and sum(map(abs, step)) <= _STEPS[connectivity] and inside:
            yield int(np.ravel_multi_index(there, grid)), zyx(step)


def face(name: str, axis: int, side: int) -> str:
    """Return what a face of a block is called among its arrays: side 0 comes first along the axis, 1 last."""
    return f"{name}_{'zyx'[axis]}{side}"


def faces(name: str, voxels: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the six faces of a block by what they are called."""
    return {face(name, axis, side): voxels.take(-side, axis) for axis in range(3) for side in (0, 1)}


def neighbours_across(
    ours: Mapping[str, npt.NDArray[Any]],
    theirs: Mapping[str, npt.NDArray[Any]],
    name: str,
    direction: ZYX,
    connectivity: Connectivity,
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield the voxels at the seam of two blocks: flat ones of ours, and for each its neighbour among theirs.

    Parameters
    ----------
    ours, theirs : mapping
        Arrays of a block and of the one that lies in the direction, with the six `faces` of each.
    name : str
        Of the faces.
    direction : tuple of int
        From ours to theirs, as `following` gives it.
    connectivity : {6, 18, 26}
        Which voxels are neighbours; they come in groups, one for each way in which neighbours lie to each other.
    """
    across = next(axis for axis in range(3) if direction[axis])
    rest = [axis for axis in range(3) if axis != across]
    face_a, face_b = ours[face(name, across, 1)], theirs[face(name, across, 0)]
    for shift in itertools.product(*([0] if direction[axis] else [-1, 0, 1] for axis in rest)):
        if sum(map(abs, direction)) + sum(map(abs, shift)) <= _STEPS[connectivity]:
            cuts = [_cut(direction[axis], move) for axis, move in zip(rest, shift, strict=True)]
            yield face_a[tuple(c[0] for c in cuts)].reshape(-1), face_b[tuple(c[1] for c in cuts)].reshape(-1)


def _cut(direction: int, move: int) -> tuple[slice, slice]:
    """Return the parts of our and of their face, along one axis, that lie at each other when theirs is moved."""
    if direction:
        return (slice(-1, None), slice(0, 1)) if direction > 0 else (slice(0, 1), slice(-1, None))
    return slice(max(0, -move), -move if move > 0 else None), slice(max(0, move), move if move < 0 else None)
