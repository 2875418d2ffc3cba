"""Boxes for sampling: how large, where they may lie, and the drawing of them by strata."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rescueseg import strata
from rescueseg.acquisition import box_bounds
from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.geometry import ZYX, Box, axis_starts, isotropic_shape, zyx
from rescueseg.records import VolumeRecord

PATCH_VOXELS = 131_072
"""Voxels of a patch on a volume large enough."""
_VOLUME_SHARE = 96
"""A patch takes at most this part of its volume, so that there is something to choose from."""
_LAYERS = 2.5
"""Below this many patches along the shortest axis, they divide it without rest."""
_MOST_CANDIDATES = 100_000
"""Candidates per volume; the grid gets coarser on huge volumes."""
_MOST_LOOKED_AT = 160
"""Boxes looked at for their strata, over all volumes."""


def patch_shape(config: CampaignConfig, volume: VolumeRecord) -> ZYX:
    """Return the patch shape for a volume, in voxels.

    The configured shape, cut to the volume; else about isotropic in micrometre, at most 131072 voxels and at
    most a 96th of the volume, and dividing a short axis without rest (flat volumes get flat patches).

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
    return advised_shape(volume, min(PATCH_VOXELS, math.prod(shape) // _VOLUME_SHARE))


def advised_shape(volume: VolumeRecord, voxels: int) -> ZYX:
    """Return the shape of a box of about `voxels`, isotropic in micrometre as far as the volume allows."""
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
    return zyx(shape)


def scaled_shape(volume: VolumeRecord, shape_zyx: ZYX, factor: float) -> ZYX:
    """Return a shape with at most `factor` times the voxels; a short axis keeps its length, so that layers match."""
    limit = volume.shape_zyx
    axes = [a for a in range(3) if limit[a] / shape_zyx[a] >= _LAYERS] or [0, 1, 2]
    scale = factor ** (1 / len(axes))
    return zyx(max(1, min(limit[a], int(n * scale))) if a in axes else n for a, n in enumerate(shape_zyx))


def boxes_on_grid(shape_zyx: ZYX, box_zyx: ZYX, stride_zyx: ZYX, blocked: Sequence[Box]) -> Iterator[Box]:
    """Yield the boxes of a grid that overlap none of `blocked`, in z, y, x order.

    Where the grid has more than 100000 boxes, its stride is doubled until it has not: bounded work on any volume.
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
    return (Box(zyx(start), box_zyx) for start in starts[free])


def candidates(config: CampaignConfig, volume: VolumeRecord, blocked: Sequence[Box]) -> Iterator[Box]:
    """Yield the patches on a grid of half a patch that overlap none of `blocked`; see `boxes_on_grid`."""
    shape = patch_shape(config, volume)
    return boxes_on_grid(volume.shape_zyx, shape, zyx(max(1, n // 2) for n in shape), blocked)


def places_to_look(
    boxes: Sequence[Box], volume: VolumeRecord, volumes: Sequence[VolumeRecord], rng: np.random.Generator
) -> list[Box]:
    """Thin out boxes at random, so that about 160 over all volumes are looked at; their order is kept."""
    total = sum(math.prod(v.shape_zyx) for v in volumes)
    count = max(16, round(_MOST_LOOKED_AT * math.prod(volume.shape_zyx) / total))
    if len(boxes) <= count:
        return list(boxes)
    return [boxes[i] for i in np.sort(rng.choice(len(boxes), count, replace=False))]


class Drawing:
    """Draws boxes stratum by stratum, volumes by turns; no two drawn boxes overlap.

    Parameters
    ----------
    campaign : Campaign
        Where the images are.
    volumes : sequence of VolumeRecord
        Volumes to draw from.
    places : dict of str to list of Box
        Where a box may lie, by volume.
    rng : numpy.random.Generator
        Decides among equals.
    gap_zyx : tuple of int
        Distance from boxes already drawn that is kept where there is a choice.
    look : bool
        Whether to read the images; without, all boxes are alike and the drawing is a rehearsal of the layout.
    """

    def __init__(
        self,
        campaign: Campaign,
        volumes: Sequence[VolumeRecord],
        places: dict[str, list[Box]],
        rng: np.random.Generator,
        gap_zyx: ZYX = (0, 0, 0),
        look: bool = True,
    ) -> None:
        self.volumes = [v for v in volumes if places[v.volume_id]]
        self.places, self.rng, self.gap_zyx = places, rng, gap_zyx
        self.bounds = {v: box_bounds(boxes) for v, boxes in places.items()}
        self.free = {v: np.ones(len(boxes), dtype=bool) for v, boxes in places.items()}
        self.roomy = {v: free.copy() for v, free in self.free.items()}
        self.features = {
            v.volume_id: strata.measure(volume_reader(campaign, v), places[v.volume_id], v.shape_zyx)
            for v in self.volumes
            if look
        }

    def draw(self, turns: Sequence[str], order: Sequence[str]) -> list[tuple[str, Box, str]]:
        """Draw one box for each turn of a volume, fewer when all is full.

        Parameters
        ----------
        turns : sequence of str
            Volume ids; where one is full, another stands in.
        order : sequence of str
            The n-th box belongs to the n-th stratum, over and over.

        Returns
        -------
        list of (str, Box, str)
            Volume, box and stratum, in the order of drawing.
        """
        drawn: list[tuple[str, Box, str]] = []
        for turn, stratum in zip(turns, itertools.cycle(order), strict=False):
            rest = [v.volume_id for v in self.volumes if v.volume_id != turn]
            found = next((hit for v in [turn, *rest] if (hit := self._draw_in(v, stratum)) is not None), None)
            if found is None:
                break
            drawn.append((*found, stratum))
        return drawn

    def _draw_in(self, volume_id: str, stratum: str) -> tuple[str, Box] | None:
        free, roomy = self.free[volume_id], self.roomy[volume_id]
        features = self.features.get(volume_id)
        score = np.zeros(len(free)) if features is None else features.score(stratum)
        index = strata.draw(score, roomy if roomy.any() else free, self.rng)
        if index is None:
            return None
        box = self.places[volume_id][index]
        starts, stops = self.bounds[volume_id]
        free &= ~overlapping(starts, stops, box)
        roomy &= ~overlapping(starts, stops, box.expand(self.gap_zyx))
        return volume_id, box


def volume_turns(volumes: Sequence[VolumeRecord], count: int, rng: np.random.Generator) -> list[str]:
    """Share `count` turns among volumes by their voxels, in shuffled order."""
    if not volumes:
        return []
    size = np.array([math.prod(v.shape_zyx) for v in volumes], dtype=np.float64)
    share = size / size.sum() * count
    quota = np.floor(share).astype(int)
    for index in np.argsort(quota - share, kind="stable")[: count - int(quota.sum())]:
        quota[index] += 1
    turns = [v.volume_id for v, n in zip(volumes, quota, strict=True) for _ in range(n)]
    return [turns[i] for i in rng.permutation(len(turns))]


def volume_reader(campaign: Campaign, volume: VolumeRecord) -> strata.Reader:
    """Return a function that reads a box of a volume, normalised: float32, czyx."""
    from rescueseg.volumes import normalise, open_image, read_box

    image = open_image(campaign, volume.volume_id)
    return lambda box: normalise(read_box(image, box), volume.normalisation)


def overlapping(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], box: Box) -> npt.NDArray[np.bool_]:
    """Tell which of n boxes, given by arrays (n, 3) of starts and stops, overlap `box`."""
    result: npt.NDArray[np.bool_] = np.all((starts < box.stop_zyx) & (stops > box.offset_zyx), axis=1)
    return result
