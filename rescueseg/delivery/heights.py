"""The map whose basins become objects: of what class, smoothed, in whole numbers; the same voxels whatever is read at once.

Foreground are the voxels of the class that objects are made of. Where that class is the boundary itself, it is all that is
neither boundary nor background; where there is no other class, it is all that is not boundary, because nothing then tells the
inside of an object from what lies around all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.delivery.folder import MASK
from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.target import TargetVolume
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.inference.quick_objects import FLOW_REACH_VOXELS
from rescueseg.models.predictor import BORDER_DISTANCE, FLOW, PROBABILITY
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.voxels.basin_objects import LEVELS, LEVELS_PER_VOXEL, heights_of
from rescueseg.voxels.basins import Heights
from rescueseg.voxels.distances import capped_distance
from rescueseg.voxels.flow_potential import LOWEST, flow_potential, potential_reach

_FARTHEST_VOXELS = 32
_TRUNCATE = 3.0
"""Standard deviations after which the Gaussian ends."""

Maps = Mapping[str, npt.NDArray[Any]]
Mask = npt.NDArray[np.uint8]


def object_rule(rule: DeliveryRule) -> ObjectRule:
    """Return how objects are made; there must be such a rule."""
    if rule.objects is None:
        raise ValueError("the rule makes no objects")
    return rule.objects


def foreground(mask: Mask, rule: DeliveryRule, n_classes: int) -> npt.NDArray[np.bool_]:
    """Return which voxels objects are made of.

    Parameters
    ----------
    mask : ndarray of uint8, zyx
        Classes, 0 background.
    rule : DeliveryRule
        Of which class.
    n_classes : int
        How many there are.
    """
    if object_rule(rule).source != "boundary":
        return np.asarray(mask == rule.object_class)
    return np.asarray(mask == 0) if n_classes == 1 else np.asarray((mask != 0) & (mask != rule.object_class))


def quantity(rule: ObjectRule) -> str | None:
    """Return the map that the heights are made of, None where the mask is enough."""
    return {"border_distance": BORDER_DISTANCE, "flow": FLOW, "distance": None, "pieces": None}.get(
        rule.source, PROBABILITY
    )


def step_of_heights(rule: ObjectRule, spacing_um_zyx: Spacing) -> float:
    """Return how much the map rises from one height to the next: its unit is that of the map.

    Examples
    --------
    >>> step_of_heights(ObjectRule(source="distance"), (0.5, 0.2, 0.2)) * 256
    0.2
    """
    far = rule.source in ("distance", "border_distance", "flow")
    return min(spacing_um_zyx) / LEVELS_PER_VOXEL if far else 1.0 / LEVELS


def depth_in_steps(rule: ObjectRule, spacing_um_zyx: Spacing) -> int:
    """Return the rule's depth as a difference of heights, at least 1."""
    return max(1, round(rule.depth / step_of_heights(rule, spacing_um_zyx)))


def halo_of_heights(rule: ObjectRule, spacing_um_zyx: Spacing) -> ZYX:
    """Return how far around a voxel there is anything that its height depends on, in voxels.

    Examples
    --------
    >>> halo_of_heights(ObjectRule(source="distance", farthest_um=1.0, smoothing_um=0.4), (0.5, 0.2, 0.2))
    (4, 11, 11)
    """
    reach = (0, 0, 0)
    if rule.source == "distance":
        farthest = _farthest(rule, spacing_um_zyx)
        reach = zyx(math.ceil(farthest / s) for s in spacing_um_zyx)
    elif rule.source == "flow":
        reach = potential_reach(spacing_um_zyx, _flow_reach(rule, spacing_um_zyx))
    return zyx(a + b for a, b in zip(reach, _radii(rule, spacing_um_zyx), strict=True))


def _farthest(rule: ObjectRule, spacing: Spacing) -> float:
    return max(rule.farthest_um or _FARTHEST_VOXELS * min(spacing), *spacing)


def _flow_reach(rule: ObjectRule, spacing: Spacing) -> float:
    """Return how far flows are summed up: so far that the potential, too, has a height of its own for each of its values."""
    finest = min(spacing)
    return min(max(rule.farthest_um or FLOW_REACH_VOXELS * finest, finest), _FARTHEST_VOXELS * finest)


def _radii(rule: ObjectRule, spacing: Spacing) -> ZYX:
    return zyx(math.floor(_TRUNCATE * rule.smoothing_um / s + 0.5) for s in spacing)


def heights_of_box(mask: Mask, maps: Maps, rule: DeliveryRule, spacing_um_zyx: Spacing) -> Heights:
    """Return the heights of a box that is a whole volume; 0 outside of the foreground.

    Parameters
    ----------
    mask : ndarray of uint8, zyx
        Classes.
    maps : mapping
        "probability", (K + 1, z, y, x), "flow", (3, z, y, x), or "border_distance", (z, y, x) or (1, z, y, x), as the source
        needs it.
    rule : DeliveryRule
        Source, smoothing, class and temperature.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of uint16, zyx
        1 where the map is lowest, and one more for each `step_of_heights`.
    """
    objects = object_rule(rule)
    values, inside = _values(mask, maps, rule, spacing_um_zyx)
    for axis, radius in enumerate(_radii(objects, spacing_um_zyx)):
        if radius:  # the same sums in the same order for each voxel, wherever it lies in the array
            sigma = objects.smoothing_um / spacing_um_zyx[axis]
            values = ndimage.gaussian_filter1d(values, sigma, axis, mode="nearest", radius=radius)
    return heights_of(values, inside, step_of_heights(objects, spacing_um_zyx))


def _values(
    mask: Mask, maps: Maps, rule: DeliveryRule, spacing: Spacing
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the map before it is smoothed, zyx, and the foreground."""
    objects = object_rule(rule)
    if objects.source in ("distance", "border_distance"):
        inside = foreground(mask, rule, 0)
        if objects.source == "distance":
            return capped_distance(inside, spacing, _farthest(objects, spacing)), inside
        return np.asarray(maps[BORDER_DISTANCE], np.float32).reshape(mask.shape), inside
    if objects.source == "flow":
        inside, reach = foreground(mask, rule, 0), _flow_reach(objects, spacing)
        flow = np.asarray(maps[FLOW], np.float32) * inside
        return flow_potential(flow, spacing, reach) + np.float32(LOWEST * reach), inside
    probability = np.asarray(maps[PROBABILITY], np.float32)
    inside = foreground(mask, rule, len(probability) - 1)
    if rule.temperature != 1.0:
        flat = temper(probability.reshape(len(probability), -1), rule.temperature)
        probability = flat.reshape(probability.shape)
    values = probability[rule.object_class]
    return (1 - values if objects.source == "boundary" else values), inside


@dataclass(frozen=True)
class TargetHeights:
    """Reads the heights of any box of a volume from its mask and its maps; it can be pickled, so blocks get it.

    Parameters
    ----------
    target : TargetVolume
        The volume.
    """

    target: TargetVolume

    def read(self, box: Box) -> Heights:
        """Return the heights in a box of the volume, zyx, as those of the whole volume are."""
        target = self.target
        rule, spacing = object_rule(target.rule), target.spacing_um_zyx
        heights = np.zeros(box.shape_zyx, np.uint16)
        name = quantity(rule)
        maps = {name: target.source.maps.open(name)} if name else {}
        n_classes = maps[PROBABILITY].shape[0] - 1 if PROBABILITY in maps else 0
        inside = foreground(self._mask(box), target.rule, n_classes)
        if not inside.any():
            return heights
        [extent] = ndimage.find_objects(inside.astype(np.uint8))
        part = Box.from_bounds([s.start for s in extent], [s.stop for s in extent])
        place = Box(zyx(a + b for a, b in zip(box.offset_zyx, part.offset_zyx, strict=True)), part.shape_zyx)
        halo = [max(1, n) for n in halo_of_heights(rule, spacing)]  # a single voxel is summed up in another order
        outer = place.expand(halo).clip(target.shape_zyx)
        voxels = {key: np.asarray(array[(..., *outer.slices)]) for key, array in maps.items()}
        around = heights_of_box(self._mask(outer), voxels, target.rule, spacing)
        shift = zyx(a - b for a, b in zip(place.offset_zyx, outer.offset_zyx, strict=True))
        heights[part.slices] = around[Box(shift, place.shape_zyx).slices]
        return heights

    def _mask(self, box: Box) -> Mask:
        return self.target.labels(MASK).read(box).astype(np.uint8, copy=False)
