"""Objects as star-convex polyhedra within a mask: in memory for a box and block by block for a volume, to the last voxel the same.

Polyhedra tell which voxels of the mask belong together, the mask where they end: flat faces between the ends of rays cut off
some of an object, so its voxels up to a quarter beyond them count, too.

Each peak of the object's probability proposes a polyhedron; of those that overlap the most probable one stays. StarDist asks
every voxel; the others around a peak propose nearly the same object with less probability, so that it would suppress them.
Polyhedra are compared all at once, so none depends on blocks; memory grows with their number, not with the voxels.

::

    peaks/000012.npz        what the peaks of a block propose
    polyhedra.npz           those that stay, of the whole volume
    seen/000012.npz         how much of each is seen in a block
    numbers.npz             the number of each object
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.array_file import read_arrays, write_arrays
from rescueseg.delivery.block_pass import Arrays
from rescueseg.delivery.folder import MASK, OBJECTS
from rescueseg.delivery.heights import foreground, object_rule
from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.models.polyhedra import Polyhedra, propose
from rescueseg.models.predictor import OBJECT_PROBABILITY, STAR_DISTANCE
from rescueseg.storage import Storage

Maps = Mapping[str, npt.NDArray[Any]]
Numbers = npt.NDArray[np.uint32]
_POLYHEDRA, _NUMBERS = "polyhedra.npz", "numbers.npz"


def star_objects_of_box(mask: npt.NDArray[np.uint8], maps: Maps, rule: DeliveryRule, spacing: Spacing) -> Numbers:
    """Return the objects of a box that is a whole volume; parameters and result as `rescueseg.delivery.objects.objects_of_box`."""
    whole = Box((0, 0, 0), zyx(mask.shape))
    rays = maps[STAR_DISTANCE]
    probability = maps[OBJECT_PROBABILITY][0]
    found = propose(probability, whole, object_rule(rule).depth, lambda box: rays[(slice(None), *box.slices)])
    polyhedra = found.without_overlaps(spacing)
    drawn = polyhedra.drawn(whole, spacing) * foreground(mask, rule, len(rule.cleanup))
    numbers = _numbers(len(polyhedra), [_seen(drawn, whole, whole)], _least_voxels(rule, spacing))
    return numbers[drawn]


def make_star_objects(target: TargetVolume, step: Step) -> int:
    """Write the objects of a volume and return how many there are; see `rescueseg.delivery.objects.make_objects`."""
    shape, block = target.shape_zyx, target.block_zyx
    stored = read_arrays(step.storage, _POLYHEDRA, step.digest)
    if stored is None:
        found = step.run(step.block_pass("peaks", shape, block), _peaks_of_block, target)
        parts = [Polyhedra(a["points"], a["probabilities"], a["lengths_um"]) for a in found.results()]
        some = [part for part in parts if len(part)] or parts[:1]
        every = Polyhedra(*(np.concatenate(arrays) for arrays in zip(*map(_arrays, some), strict=True)))
        kept = every.without_overlaps(target.spacing_um_zyx)
        names = ("points", "probabilities", "lengths_um")
        stored = dict(zip(names, _arrays(kept), strict=True))
        write_arrays(step.storage, _POLYHEDRA, step.digest, stored)
    numbered = read_arrays(step.storage, _NUMBERS, step.digest)
    job = _Draw(target, step.url, step.digest)
    if numbered is None:
        seen = step.run(step.block_pass("seen", shape, block), _see_block, job)
        least = _least_voxels(target.rule, target.spacing_um_zyx)
        numbered = {"numbers": _numbers(len(stored["points"]), list(seen.results()), least)}
        write_arrays(step.storage, _NUMBERS, step.digest, numbered)
    step.run(step.block_pass("write", shape, block), _write_block, job)
    return int(numbered["numbers"].max(initial=0))


def _arrays(polyhedra: Polyhedra) -> tuple[npt.NDArray[Any], ...]:
    return polyhedra.points, polyhedra.probabilities, polyhedra.lengths_um


def _least_voxels(rule: DeliveryRule, spacing: Spacing) -> int:
    return max(1, object_rule(rule).least_voxels(spacing))


def _seen(drawn: Numbers, box: Box, volume: Box) -> Arrays:
    """Return of the polyhedra in a box their index, how many of their voxels lie there, and the first one's place."""
    indices, first, sizes = np.unique(drawn, return_index=True, return_counts=True)
    places = np.unravel_index(first, box.shape_zyx)
    in_volume = [p + o for p, o in zip(places, box.offset_zyx, strict=True)]
    return {"indices": indices, "sizes": sizes, "first": np.ravel_multi_index(in_volume, volume.shape_zyx)}


def _numbers(count: int, parts: list[Arrays] | list[dict[str, npt.NDArray[Any]]], least: int) -> Numbers:
    """Return the number of the object of each polyhedron 0…n, 0 being none: by the first voxel; 0 where it is too small."""
    sizes, first = np.zeros(count + 1, np.int64), np.full(count + 1, np.iinfo(np.int64).max)
    for part in parts:
        np.add.at(sizes, part["indices"], part["sizes"])
        np.minimum.at(first, part["indices"], part["first"])
    sizes[0] = 0
    stays = np.flatnonzero(sizes >= least)
    numbers = np.zeros(count + 1, np.uint32)
    numbers[stays[np.argsort(first[stays])]] = np.arange(1, len(stays) + 1, dtype=np.uint32)
    return numbers


# blocks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    target: TargetVolume
    url: str
    digest: str

    def drawn(self, box: Box) -> Numbers:
        """Return which polyhedron each voxel of a block lies in, within the mask."""
        mask = self.target.labels(MASK).read(box).astype(np.uint8, copy=False)
        inside = foreground(mask, self.target.rule, len(self.target.rule.cleanup))
        if not inside.any():
            return np.zeros(box.shape_zyx, np.uint32)
        return _stored_polyhedra(self.url, self.digest).drawn(box, self.target.spacing_um_zyx) * inside


def _stored(url: str, name: str, digest: str) -> dict[str, npt.NDArray[Any]]:
    arrays = read_arrays(Storage(url), name, digest)
    if arrays is None:
        raise RuntimeError(f"{name} of {url} is missing")
    return arrays


@lru_cache(maxsize=1)
def _stored_polyhedra(url: str, digest: str) -> Polyhedra:
    """Return the polyhedra of a step, which a worker needs for each block."""
    return Polyhedra(**_stored(url, _POLYHEDRA, digest))


def _peaks_of_block(target: TargetVolume, box: Box) -> Arrays:
    outer = box.expand((1, 1, 1)).clip(target.shape_zyx)
    arrays = target.source.maps.open_several((OBJECT_PROBABILITY, STAR_DISTANCE))
    probability = np.asarray(arrays[OBJECT_PROBABILITY][(0, *outer.slices)])

    def read_lengths(part: Box) -> npt.NDArray[Any]:
        place = Box(zyx(a + b for a, b in zip(part.offset_zyx, outer.offset_zyx, strict=True)), part.shape_zyx)
        return np.asarray(arrays[STAR_DISTANCE][(slice(None), *place.slices)])

    found = propose(probability, box.relative_to(outer), object_rule(target.rule).depth, read_lengths)
    points = found.points + np.asarray(outer.offset_zyx)
    return {"points": points, "probabilities": found.probabilities, "lengths_um": found.lengths_um}


def _see_block(job: _Draw, box: Box) -> Arrays:
    return _seen(job.drawn(box), box, Box((0, 0, 0), job.target.shape_zyx))


def _write_block(job: _Draw, box: Box) -> Arrays:
    numbers = _stored(job.url, _NUMBERS, job.digest)["numbers"]
    job.target.labels(OBJECTS).write(box, numbers[job.drawn(box)])
    return {}
