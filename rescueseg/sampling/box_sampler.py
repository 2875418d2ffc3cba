"""Draws boxes by strata: volumes take turns, and no place is drawn twice, by whatever name it goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, Patch, box_bounds
from rescueseg.records import VolumeRecord
from rescueseg.sampling import strata
from rescueseg.sampling.free_places import FreePlaces
from rescueseg.shared_places import SharedPlaces


@dataclass(frozen=True)
class SampledBox:
    """A box that was drawn.

    Parameters
    ----------
    volume_id : str
        Its volume.
    box : Box
        Where.
    stratum : str
        What it stands for.
    reason : str
        The measurements behind that; empty in a rehearsal of the layout.
    """

    volume_id: str
    box: Box
    stratum: str
    reason: str


class BoxSampler:
    """Draws boxes stratum by stratum, volumes by turns; no two drawn boxes share a voxel, in whichever volumes.

    Parameters
    ----------
    volumes : sequence of VolumeRecord
        Volumes to draw from.
    places : dict of str to list of Box
        Where a box may lie, by volume.
    shared : SharedPlaces
        Which places of the volumes are the same.
    rng : numpy.random.Generator
        Decides among equals.
    features : dict of str to Features, optional
        Measurements of the places, by volume; without them all boxes are alike, and the layout is only rehearsed.
    gap_zyx : tuple of int
        Distance from boxes already drawn that is kept where there is a choice.
    """

    def __init__(
        self,
        volumes: Sequence[VolumeRecord],
        places: dict[str, list[Box]],
        shared: SharedPlaces,
        rng: np.random.Generator,
        features: dict[str, strata.Features] | None = None,
        gap_zyx: ZYX = (0, 0, 0),
    ) -> None:
        self.volumes = [v for v in volumes if places[v.volume_id]]
        self.places, self.rng, self.features = places, rng, features
        bounds = {v: box_bounds(boxes) for v, boxes in places.items()}
        self._disjoint, self._spaced = FreePlaces(bounds, shared), FreePlaces(bounds, shared, gap_zyx)

    def draw(self, turns: Sequence[str], order: Sequence[str]) -> list[SampledBox]:
        """Draw one box for each turn of a volume, fewer when all is full.

        A stratum takes the first turn whose volume has a box for it, else any volume that has one. One that no
        volume has, such as imaging artefacts in clean data, gives its turns to those that follow.

        Parameters
        ----------
        turns : sequence of str
            Volume ids; where one is full, another stands in.
        order : sequence of str
            Strata: the n-th box belongs to the n-th, over and over.

        Returns
        -------
        list of SampledBox
            In the order of drawing.
        """
        open_turns, samples, n_missed = list(turns), list[SampledBox](), 0
        strata_cycle = itertools.cycle(order)
        while open_turns and n_missed < len(order):
            stratum = next(strata_cycle)
            volume_id = self._volume_for(stratum, open_turns)
            if volume_id is None:
                n_missed += 1
                continue
            n_missed = 0
            open_turns.remove(volume_id if volume_id in open_turns else open_turns[0])
            samples.append(self._draw_in(volume_id, stratum))
        return samples

    def absent(self, order: Sequence[str]) -> list[str]:
        """Return the strata that no place of any volume stands for."""
        if self.features is None:
            return []
        features = list(self.features.values())
        return [s for s in dict.fromkeys(order) if not any(f.eligible(s).any() for f in features)]

    def _volume_for(self, stratum: str, turns: Sequence[str]) -> str | None:
        anywhere = [*dict.fromkeys(turns), *(v.volume_id for v in self.volumes if v.volume_id not in turns)]
        return next((v for v in anywhere if (self._disjoint.free[v] & self._eligible(v, stratum)).any()), None)

    def _eligible(self, volume_id: str, stratum: str) -> npt.NDArray[np.bool_]:
        if self.features is None:
            return np.ones(len(self.places[volume_id]), dtype=bool)
        return self.features[volume_id].eligible(stratum)

    def _draw_in(self, volume_id: str, stratum: str) -> SampledBox:
        eligible = self._eligible(volume_id, stratum)
        free, spaced = self._disjoint.free[volume_id], self._spaced.free[volume_id]
        features = self.features[volume_id] if self.features else None
        score = np.zeros(len(free)) if features is None else features.score(stratum)
        preferred = spaced & eligible
        index = strata.draw(score, preferred if preferred.any() else free & eligible, self.rng)
        assert index is not None, "the volume was chosen because it has a free box"
        box = self.places[volume_id][index]
        for boxes in (self._disjoint, self._spaced):
            boxes.take(Patch(volume_id, box))
        return SampledBox(volume_id, box, stratum, features.reason(stratum, index) if features else "")


def volume_turns(volumes: Sequence[VolumeRecord], count: int, rng: np.random.Generator) -> list[str]:
    """Share `count` turns among domains, then among the volumes of each, by their voxels, in shuffled order.

    As long as there are enough, every domain and every volume of it gets one: what is rare among the voxels may be
    all of another microscope.
    """
    domains: dict[str, list[VolumeRecord]] = {}
    for volume in volumes:
        domains.setdefault(volume.domain, []).append(volume)
    turns: list[str] = []
    sizes = [sum(math.prod(v.shape_zyx) for v in members) for members in domains.values()]
    for members, quota in zip(domains.values(), _quotas(sizes, count), strict=True):
        for volume, own in zip(members, _quotas([math.prod(v.shape_zyx) for v in members], quota), strict=True):
            turns += [volume.volume_id] * own
    return [turns[i] for i in rng.permutation(len(turns))]


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Share `count` by size, each at least 1 where that is possible; the largest remainders get what is left."""
    if not sizes:
        return []
    size = np.array(sizes, dtype=np.float64)
    least = np.full(len(size), 1 if count >= len(size) else 0)
    share = size / size.sum() * count
    quota = np.maximum(np.floor(share).astype(int), least)
    while quota.sum() > count:
        quota[np.argmax(np.where(quota > least, quota - share, -np.inf))] -= 1
    for index in np.argsort(quota - share, kind="stable")[: count - int(quota.sum())]:
        quota[index] += 1
    return [int(n) for n in quota]
