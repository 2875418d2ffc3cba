"""A rough mask from ground truth: a few seeded patches, as small as an annotator would choose them.

For campaigns whose volumes came with truth: benchmarks, demos, tests. Each patch is grown around one seeded object until
it holds that object whole, until five whole objects are together; a network is never whole: its one patch stops growing
at 3 % of the volume, or at 4 million voxels. Which patches were read is written down: they count as annotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import ZYX, Box, Spacing, isotropic_shape, zyx
from rescueseg.triage.objects import SMALLEST, Numbers
from rescueseg.voxels.components import label_components

Reader = Callable[[Box], npt.NDArray[Any]]

WHOLE_OBJECTS = 5
NETWORK_SHARE = 0.03
"""Share of the volume at which a patch stops growing around an object that is still cut."""
LEAST_LIMIT = 48**3
"""Voxels that a patch may take in any case: on small volumes 3 % would not hold one object."""
MOST_LIMIT = 4_000_000
"""Voxels that a patch may take at most: on huge volumes 3 % would not fit into memory."""
_LOOK = (64, 256, 256)
"""Largest field in which an object to grow a patch around is chosen."""
_MAIN_SHARE = 0.9
_GROWTH = 1.2
_MARGIN = 1.15
_TRIES = 30
_CUT_OBJECTS = 5
"""Objects still cut at the limit after which the structure is taken for a network."""


def rough_boxes(read: Reader, shape_zyx: ZYX, spacing_um_zyx: Spacing, rng: np.random.Generator) -> list[Box]:
    """Choose the patches of a rough mask in a volume with truth.

    Parameters
    ----------
    read : callable
        Returns the truth of a box, zyx: numbered objects or classes, 0 elsewhere.
    shape_zyx : tuple of int
        Shape of the volume.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    rng : numpy.random.Generator
        Draws the objects.

    Returns
    -------
    list of Box
        Disjoint; together they hold five whole objects, or one reached its limit. Empty where the truth shows
        no object.
    """
    limit = min(math.prod(shape_zyx), max(LEAST_LIMIT, min(MOST_LIMIT, int(NETWORK_SHARE * math.prod(shape_zyx)))))
    boxes: list[Box] = []
    still_cut: list[Box] = []
    for _ in range(_TRIES):
        seed = _seed_voxel(read, shape_zyx, spacing_um_zyx, rng)
        if seed is None or any(_inside(box, seed) for box in boxes):
            continue
        box_around, is_whole = _grow(read, seed, shape_zyx, spacing_um_zyx, limit)
        if not is_whole:
            still_cut.append(box_around)
            if len(still_cut) == _CUT_OBJECTS:
                return sorted(_merged(boxes, still_cut[0]))
            continue
        boxes = _merged(boxes, box_around)
        if sum(len(whole_objects(objects_of(read(box)), box, shape_zyx)) for box in boxes) >= WHOLE_OBJECTS:
            return sorted(boxes)
    return sorted(boxes if boxes or not still_cut else still_cut[:1])


def objects_of(labels: npt.NDArray[Any]) -> Numbers:
    """Return connected voxels of one value (26-neighbourhood) as numbered objects, int32."""
    return label_components(labels, 26)[0]


def whole_objects(
    numbers: Numbers, box: Box, shape_zyx: ZYX, unknown: npt.NDArray[np.bool_] | None = None
) -> list[int]:
    """Return the numbers of objects of at least 27 voxels that no face of `box` inside the volume cuts.

    Nor what is not annotated, where `unknown` tells.

    Examples
    --------
    Two cubes of 3 voxels in the first half of a volume; the second one reaches the face where the volume goes on:

    >>> numbers = np.zeros((3, 3, 8), np.int32)
    >>> numbers[..., :3], numbers[..., 5:] = 1, 2
    >>> whole_objects(numbers, Box((0, 0, 0), (3, 3, 8)), (3, 3, 16))
    [1]
    """
    cut: set[int] = set()
    for axis, (near, far) in enumerate(open_faces(box, shape_zyx)):
        for opened, place in ((near, 0), (far, -1)):
            if opened:
                cut.update(np.unique(np.take(numbers, place, axis=axis)).tolist())
    if unknown is not None and unknown.any():
        cut.update(np.unique(numbers[ndimage.binary_dilation(unknown, np.ones((3, 3, 3), bool))]).tolist())
    values, sizes = np.unique(numbers, return_counts=True)
    return [int(v) for v, n in zip(values, sizes, strict=True) if v > 0 and n >= SMALLEST and v not in cut]


def open_faces(box: Box, shape_zyx: ZYX) -> list[tuple[bool, bool]]:
    """Tell for each axis whether the volume goes on beyond the near and the far face of a box."""
    return [(o > 0, s < n) for o, s, n in zip(box.offset_zyx, box.stop_zyx, shape_zyx, strict=True)]


def _seed_voxel(read: Reader, shape_zyx: ZYX, spacing_um_zyx: Spacing, rng: np.random.Generator) -> ZYX | None:
    """Draw an object among those that make up nine tenths of a random field's foreground; return a voxel of its middle.

    Neither fragments, of which there are always many, nor the one largest object stand for the structure; nor does the
    trunk of a tree, so that the voxel is drawn along the object's length.
    """
    field = zyx(min(n, m) for n, m in zip(shape_zyx, _LOOK, strict=True))
    start = [int(rng.integers(n - f + 1)) for n, f in zip(shape_zyx, field, strict=True)]
    numbers = objects_of(read(Box(zyx(start), field)))
    sizes = np.bincount(numbers.ravel())[1:]
    if not sizes.any():
        return None
    order = np.argsort(-sizes, kind="stable")
    main = order[: int(np.searchsorted(np.cumsum(sizes[order]), _MAIN_SHARE * sizes.sum())) + 1]
    is_object = numbers == main[rng.integers(len(main))] + 1
    depth = ndimage.distance_transform_edt(is_object, sampling=spacing_um_zyx)
    middle = np.flatnonzero(is_object & (depth >= ndimage.maximum_filter(depth, size=3)))
    place = np.unravel_index(middle[rng.integers(len(middle))], field)
    return zyx(int(s) + int(p) for s, p in zip(start, place, strict=True))


def _grow(read: Reader, seed: ZYX, shape_zyx: ZYX, spacing: Spacing, limit: int) -> tuple[Box, bool]:
    """Grow a box around a voxel until its object is whole, with a margin; or until it reaches the limit."""
    voxels = 1000.0
    while True:
        box = _around(seed, isotropic_shape(spacing, int(voxels), shape_zyx), shape_zyx)
        numbers = objects_of(read(box))
        mine = int(numbers[tuple(s - o for s, o in zip(seed, box.offset_zyx, strict=True))])
        if mine in whole_objects(numbers, box, shape_zyx):
            shape = zyx(min(n, math.ceil(s * _MARGIN)) for s, n in zip(box.shape_zyx, shape_zyx, strict=True))
            return _around(seed, shape, shape_zyx), True
        if box.size >= limit or box.shape_zyx == tuple(shape_zyx):
            return box, False
        voxels *= _GROWTH


def _around(voxel: ZYX, box_zyx: ZYX, shape_zyx: ZYX) -> Box:
    start = [min(max(0, v - b // 2), n - b) for v, b, n in zip(voxel, box_zyx, shape_zyx, strict=True)]
    return Box(zyx(start), box_zyx)


def _merged(boxes: list[Box], new: Box) -> list[Box]:
    """Add a box; whatever overlaps becomes one."""
    while touching := [box for box in boxes if box.intersects(new)]:
        boxes = [box for box in boxes if box not in touching]
        ends = [new, *touching]
        new = Box.from_bounds(
            [min(b.offset_zyx[a] for b in ends) for a in range(3)], [max(b.stop_zyx[a] for b in ends) for a in range(3)]
        )
    return [*boxes, new]


def _inside(box: Box, voxel: ZYX) -> bool:
    return box.contains(Box(voxel, (1, 1, 1)))
