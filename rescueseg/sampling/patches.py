"""Boxes for sampling: how large they are, where they may lie, and how they are drawn by strata."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.geometry import ZYX, Box, Floats, Patch, axis_starts, isotropic_shape, overlapping, zyx
from rescueseg.progress import Progress
from rescueseg.records import Holdout, VolumeRecord
from rescueseg.sampling import strata
from rescueseg.sampling.effort import (
    HANDLING_SECONDS,
    LEAST_PLANE_SECONDS,
    LEAST_PLANES,
    LEAST_WIDTH,
    MOST_MORE,
    SECONDS_PER_PIXEL,
    WIDTH,
    seconds,
)
from rescueseg.sampling.free_places import FreePlaces
from rescueseg.shared_places import SharedPlaces
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import read_box

Hint = Callable[[VolumeRecord, Sequence[Box]], Floats | None]
"""Returns how much of each box of a volume is probably structure, (n,); None where it cannot tell."""
SMALLEST_PATCH = 8**3
"""Voxels below which a patch shows nothing, however small the volume."""
LEAST_PLACES = 30
"""Patches that must fit outside the guarded holdout without overlap: the budget of a difficult data set."""
_STEP = 1.03
"""Ratio of two patch sizes tried."""
_ISOTROPIC = 1.35
"""Ratio of the sides of a patch, in micrometre, that counts as about isotropic; kept unless that halves the patch."""
_LARGEST_SHARE = 8
"""A patch takes at most this part of its volume, so that a small one keeps places beside its holdout boxes."""
_REFERENCE_VOXELS, _REFERENCE_SHARE = 131_072, 96
"""Size that the holdout is laid out for, before the patch is known, and its part of the volume at most."""
_LAYERS = 2.5
"""Below this many patches along the shortest axis, they divide it without rest."""
_MOST_CANDIDATES = 100_000
"""Candidates per volume; the grid gets coarser on huge volumes."""
_MOST_MEASURED = 160
"""Boxes measured for their strata, over all volumes."""


@dataclass(frozen=True)
class PatchLimit:
    """How large a patch may be.

    Parameters
    ----------
    voxels : int
        At most.
    minutes : float
        That a person is assumed to take for it at most.
    """

    voxels: int
    minutes: float


def reference_shape(config: CampaignConfig, volume: VolumeRecord) -> ZYX:
    """Return the patch shape that the holdout is laid out for, and the one of campaigns that recorded none.

    The configured shape, cut to the volume; else about isotropic in micrometre, at most 131072 voxels and at
    most a 96th of the volume. Whoever annotates holdout boxes annotates all of them: they stay this small.

    Parameters
    ----------
    config : CampaignConfig
        `sampling.patch_zyx` decides when it is set.
    volume : VolumeRecord
        Shape and spacing count.
    """
    shape = volume.shape_zyx
    if config.sampling.patch_zyx is not None:
        return zyx(min(p, n) for p, n in zip(config.sampling.patch_zyx, shape, strict=True))
    return advised_shape(volume, min(_REFERENCE_VOXELS, math.prod(shape) // _REFERENCE_SHARE))


def patch_shape(config: CampaignConfig, volume: VolumeRecord, holdout: Holdout | None = None) -> ZYX:
    """Return the patch shape for a volume, in voxels.

    The configured shape, cut to the volume; else the one fixed with the holdout (see `suggested_shapes`).

    Parameters
    ----------
    config : CampaignConfig
        `sampling.patch_zyx` decides when it is set.
    volume : VolumeRecord
        Shape and spacing count.
    holdout : Holdout, optional
        Frozen or about to be. Without it, or where it recorded none, `reference_shape`.
    """
    fixed = (holdout.patch_zyx or {}).get(volume.volume_id) if holdout else None
    return reference_shape(config, volume) if config.sampling.patch_zyx or fixed is None else fixed


def suggested_shapes(
    volumes: Sequence[VolumeRecord],
    guarded: dict[str, list[Box]],
    places: SharedPlaces,
    least: int,
    largest: Mapping[str, PatchLimit],
) -> dict[str, ZYX]:
    """Return the largest patch shapes that leave enough room: flat where the volume is, no image is read.

    All volumes get about the same number of voxels, but none more than an eighth of its own, nor more than people can
    be asked to annotate. Sizes are tried from the largest down in steps of 3 %.

    Parameters
    ----------
    volumes : sequence of VolumeRecord
        Shape and spacing count.
    guarded : dict of str to list of Box
        Holdout boxes with their guard band, by volume.
    places : SharedPlaces
        Which places of the volumes are the same.
    least : int
        Patches that must fit outside them without overlap, over all volumes.
    largest : mapping of str to PatchLimit
        By volume; see `patch_limit`.

    Returns
    -------
    dict of str to tuple of int
        By volume. The smallest size where not even that leaves enough.
    """
    fallback: dict[str, ZYX] = {}
    most = {v.volume_id: min(largest[v.volume_id].voxels, math.prod(v.shape_zyx) // _LARGEST_SHARE) for v in volumes}
    voxels = min(max(most.values()), sum(math.prod(v.shape_zyx) for v in volumes) // least)
    last = SMALLEST_PATCH
    while voxels > last:
        shapes = {
            v.volume_id: limited_shape(v, min(voxels, most[v.volume_id]), largest[v.volume_id].minutes) for v in volumes
        }
        isotropic = all(_isotropic(v, shapes[v.volume_id]) for v in volumes)
        if (isotropic or not fallback) and count_places(volumes, shapes, guarded, places, least) >= least:
            if isotropic:
                return shapes
            fallback, last = shapes, voxels // 2
        voxels = min(voxels - 1, int(voxels / _STEP))
    return fallback or {
        v.volume_id: within_time(advised_shape(v, min(SMALLEST_PATCH, most[v.volume_id])), largest[v.volume_id].minutes)
        for v in volumes
    }


def patch_limit(volume: VolumeRecord, minutes: float, thickness_um: float | None = None) -> PatchLimit:
    """Return how large a patch may be that takes a person at most so long.

    Parameters
    ----------
    volume : VolumeRecord
        Shape and spacing count.
    minutes : float
        The time, as `rescueseg.sampling.effort.seconds` assumes it.
    thickness_um : float, optional
        Of the structure; where the patch is narrower than 2.5 times that, it gets up to twice the time.
    """
    voxels = _most_voxels(volume, minutes)
    if thickness_um is None or not math.isfinite(thickness_um) or thickness_um <= 0:
        return PatchLimit(voxels, minutes)
    sides = zip(volume.shape_zyx, volume.spacing_um_zyx, strict=True)
    wide = math.prod(min(n, math.ceil(WIDTH * thickness_um / s - 1e-9)) for n, s in sides)
    if wide <= voxels:
        return PatchLimit(voxels, minutes)
    more = MOST_MORE * minutes
    return PatchLimit(max(voxels, min(wide, _most_voxels(volume, more))), more)


def _most_voxels(volume: VolumeRecord, minutes: float) -> int:
    """Return the most voxels whose box takes at most so long; nothing smaller than a voxel."""
    low, high = 1, max(2, math.ceil((60 * minutes - HANDLING_SECONDS) / SECONDS_PER_PIXEL) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        fits = seconds(advised_shape(volume, middle)) <= 60 * minutes
        low, high = (middle, high) if fits else (low, middle)
    return low


def limited_shape(volume: VolumeRecord, voxels: int, minutes: float) -> ZYX:
    """Return the shape of a patch of about so many voxels that takes at most so long, for a grid of half a patch."""
    return _tiling(volume, within_time(_with_planes(volume, advised_shape(volume, voxels)), minutes))


def within_time(shape_zyx: ZYX, minutes: float) -> ZYX:
    """Return a shape that takes at most so long: with fewer planes, of which three stay, else with smaller ones.

    Examples
    --------
    >>> within_time((100, 28, 28), 8), within_time((100, 80, 80), 8), within_time((4, 200, 200), 8)
    ((78, 28, 28), (9, 80, 80), (3, 144, 144))
    """
    planes, height, width = shape_zyx
    time = max(0.0, 60 * minutes - HANDLING_SECONDS)
    least = min(planes, LEAST_PLANES)
    fitting = int(time / max(LEAST_PLANE_SECONDS, SECONDS_PER_PIXEL * height * width))
    if fitting >= least:
        return zyx((min(planes, fitting), height, width))
    side = min(1.0, math.sqrt(time / least / SECONDS_PER_PIXEL / (height * width)))
    return zyx((least, max(1, int(height * side)), max(1, int(width * side))))


def _isotropic(volume: VolumeRecord, shape_zyx: ZYX) -> bool:
    """Tell whether a patch is about isotropic in micrometre, along the axes that it does not fill."""
    triples = zip(shape_zyx, volume.shape_zyx, volume.spacing_um_zyx, strict=True)
    lengths = [n * spacing for n, limit, spacing in triples if n < limit]
    return not lengths or max(lengths) <= _ISOTROPIC * min(lengths)


def _tiling(volume: VolumeRecord, shape_zyx: ZYX) -> ZYX:
    """Make the long axes even: on a grid of half a patch two odd ones never lie side by side."""
    return zyx(
        n - n % 2 if n > LEAST_PLANES and length / n >= _LAYERS else n
        for n, length in zip(shape_zyx, volume.shape_zyx, strict=True)
    )


def _with_planes(volume: VolumeRecord, shape_zyx: ZYX) -> ZYX:
    """Give a patch of fewer than three planes a third one, where the volume has it; the planes get smaller for that."""
    planes, height, width = shape_zyx
    least = min(LEAST_PLANES, volume.shape_zyx[0])
    if planes >= least:
        return shape_zyx
    side = math.sqrt(planes / least)
    return zyx((least, max(1, int(height * side)), max(1, int(width * side))))


def count_places(
    volumes: Sequence[VolumeRecord],
    shapes: dict[str, ZYX],
    guarded: dict[str, list[Box]],
    places: SharedPlaces,
    enough: int,
) -> int:
    """Count the patches that fit outside a guarded holdout, up to `enough`; no two share a voxel, in whichever volumes."""
    chosen: list[Patch] = []
    for volume in volumes:
        name = volume.volume_id
        shape, blocked = shapes[name], [*guarded.get(name, []), *places.boxes_in(name, chosen)]
        starts = grid_starts(volume.shape_zyx, shape, half_stride(shape), blocked)
        grid = FreePlaces({name: (starts, starts + np.array(shape))})
        rows = grid.take_first(((name, row) for row in range(len(starts))), enough - len(chosen))
        chosen += [Patch(name, Box(zyx(starts[row]), shape)) for row in rows]
    return len(chosen)


def advised_shape(volume: VolumeRecord, voxels: int) -> ZYX:
    """Return the shape of a box of about `voxels`, isotropic in micrometre as far as volume and eye allow.

    Planes of less than 28×28 pixels that are closer together than their pixels are made larger, and fewer.
    """
    limit, spacing = volume.shape_zyx, volume.spacing_um_zyx
    shape = list(isotropic_shape(spacing, max(1, voxels), limit))
    thin = min(range(3), key=lambda a: limit[a] * spacing[a])
    layers = limit[thin] / shape[thin]
    if layers < _LAYERS:
        shape[thin] = limit[thin] // max(1, round(layers))
        others = sorted((a for a in range(3) if a != thin), key=lambda a: limit[a] * spacing[a])
        area = max(1.0, voxels / shape[thin])
        side = math.sqrt(area * spacing[others[0]] * spacing[others[1]])
        shape[others[0]] = max(1, min(limit[others[0]], round(side / spacing[others[0]])))
        shape[others[1]] = max(1, min(limit[others[1]], round(area / shape[others[0]])))
    return _wide_planes(volume, zyx(shape))


def _wide_planes(volume: VolumeRecord, shape_zyx: ZYX) -> ZYX:
    """Give a box of more planes than pixels along a side larger planes, and fewer: nobody draws on planes of 1×1 pixels."""
    planes, *sides = shape_zyx
    least = min(LEAST_WIDTH, round(math.prod(shape_zyx) ** (1 / 3)))
    if planes <= max(sides) or min(sides) >= least:
        return shape_zyx
    height, width = (max(side, min(least, n)) for side, n in zip(sides, volume.shape_zyx[1:], strict=True))
    return zyx((max(1, min(planes, math.prod(shape_zyx) // (height * width))), height, width))


def scaled_shape(volume: VolumeRecord, shape_zyx: ZYX, factor: float) -> ZYX:
    """Return a shape with at most `factor` times the voxels; a short axis keeps its length, so that layers match."""
    limit = volume.shape_zyx
    axes = [a for a in range(3) if limit[a] / shape_zyx[a] >= _LAYERS] or [0, 1, 2]
    scale = factor ** (1 / len(axes))
    return zyx(max(1, min(limit[a], int(n * scale))) if a in axes else n for a, n in enumerate(shape_zyx))


def grid_starts(shape_zyx: ZYX, box_zyx: ZYX, stride_zyx: ZYX, blocked: Sequence[Box]) -> npt.NDArray[np.int64]:
    """Return where the boxes of a grid begin that overlap none of `blocked`, int64 (n, 3) in z, y, x order.

    Where the grid has more than 100000 boxes, its stride is doubled until it has not: bounded work on any volume.

    Examples
    --------
    >>> grid_starts((8, 8, 16), (8, 8, 8), (4, 4, 4), [Box((0, 0, 14), (8, 8, 2))]).tolist()
    [[0, 0, 0], [0, 0, 4]]
    """
    stride = stride_zyx
    while True:
        axes = [axis_starts(n, p, t) for n, p, t in zip(shape_zyx, box_zyx, stride, strict=True)]
        if math.prod(map(len, axes)) <= _MOST_CANDIDATES:
            break
        stride = zyx(2 * t for t in stride)
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    free = np.ones(len(starts), dtype=bool)
    for box in blocked:
        free &= ~overlapping(starts, starts + np.array(box_zyx), box)
    return np.asarray(starts[free], np.int64)


def boxes_on_grid(shape_zyx: ZYX, box_zyx: ZYX, stride_zyx: ZYX, blocked: Sequence[Box]) -> Iterator[Box]:
    """Yield the boxes of a grid that overlap none of `blocked`, in z, y, x order; see `grid_starts`."""
    return (Box(zyx(start), box_zyx) for start in grid_starts(shape_zyx, box_zyx, stride_zyx, blocked))


def half_stride(patch_zyx: ZYX) -> ZYX:
    """Return the stride of a grid of half a patch.

    Examples
    --------
    >>> half_stride((1, 64, 65))
    (1, 32, 32)
    """
    return zyx(max(1, n // 2) for n in patch_zyx)


def candidates(volume: VolumeRecord, patch_zyx: ZYX, blocked: Sequence[Box]) -> Iterator[Box]:
    """Yield the patches on a grid of half a patch that overlap none of `blocked`; see `boxes_on_grid`."""
    return boxes_on_grid(volume.shape_zyx, patch_zyx, half_stride(patch_zyx), blocked)


def subsample_places(
    boxes: Sequence[Box], volume: VolumeRecord, volumes: Sequence[VolumeRecord], rng: np.random.Generator
) -> list[Box]:
    """Thin out boxes at random, so that about 160 over all volumes are measured; their order stays."""
    total = sum(math.prod(v.shape_zyx) for v in volumes)
    count = max(16, round(_MOST_MEASURED * math.prod(volume.shape_zyx) / total))
    if len(boxes) <= count:
        return list(boxes)
    return [boxes[i] for i in np.sort(rng.choice(len(boxes), count, replace=False))]


def measure_places(
    folder: VolumeFolder,
    volumes: Sequence[VolumeRecord],
    places: dict[str, list[Box]],
    progress: Progress | None = None,
    hint: Hint | None = None,
) -> dict[str, strata.Features]:
    """Measure the boxes at all places, by volume; see `strata.measure`. A hint adds how much of each is structure."""
    measured = {}
    for volume in volumes:
        boxes = places[volume.volume_id]
        features = strata.measure(volume_reader(folder, volume), boxes, volume, progress)
        shares = hint(volume, boxes) if hint is not None else None
        measured[volume.volume_id] = features if shares is None else replace(features, structure=shares)
    return measured


def volume_reader(folder: VolumeFolder, volume: VolumeRecord) -> strata.Reader:
    """Return a function that reads a box of a volume as acquired, czyx."""
    image = open_image(folder, volume.volume_id)
    return lambda box: read_box(image, box)
