"""The planes of a step: drawn from the patches, turned, scaled and varied in intensity, each from its own key."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rescueseg.campaign import VolumeFolder
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.models.cellpose.plan import CellposePlan
from rescueseg.models.cellpose.targets import decode_flows, flow_targets
from rescueseg.models.training_items import TrainingSet
from rescueseg.randomness import keyed_generator
from rescueseg.records import Snapshot

_CACHE_BYTES = 2 * 1024**3
_SHARE = 0.5
"""Of planes that are turned by an angle other than a quarter; as many are scaled."""
_TURN, _SCALE = math.pi / 4, math.log(1.25)
"""Largest angle and scale; objects become a quarter larger or smaller, as in Cellpose."""
_GAIN, _SHIFT, _NOISE = 0.3, 0.3, 0.2
"""Largest change of contrast and brightness, and largest standard deviation of noise, of normalised images."""


@dataclass(frozen=True)
class _PlanePlan:
    spacing_um_zyx: Spacing
    window_zyx: ZYX
    batch_size: int = 1


@dataclass(frozen=True)
class Planes:
    """Planes of a step.

    Parameters
    ----------
    images : Tensor of float32, shape (n, c, h, w)
        Normalised.
    labels : Tensor of int64, shape (n, h, w)
        0, 1 or 255.
    flows : Tensor of float32, shape (n, 2, h, w)
        Along h and w, of unit length or 0; NaN where not known.
    """

    images: Tensor
    labels: Tensor
    flows: Tensor

    def to(self, device: torch.device) -> Planes:
        """Return them on a device."""
        return Planes(*(t.to(device, non_blocking=True) for t in (self.images, self.labels, self.flows)))

    def pinned(self) -> Planes:
        """Return them ready to be copied to a GPU."""
        return Planes(*(t.pin_memory() for t in (self.images, self.labels, self.flows)))


class PlaneSet:
    """Planes around labelled voxels, as many of each orientation.

    Parameters
    ----------
    volumes : VolumeFolder
        Of the campaign.
    snapshot : Snapshot
        What may be read.
    plan : CellposePlan
        Orientations, size, working spacing and number of planes.

    Raises
    ------
    TrainingError
        If not one voxel is labelled.
    StorageError
        If a label array is damaged.
    """

    def __init__(self, volumes: VolumeFolder, snapshot: Snapshot, plan: CellposePlan) -> None:
        self._plan = plan
        self._sets = []
        for axis in plan.axes:
            flat = _PlanePlan(plan.spacing_um_zyx, zyx(1 if a == axis else plan.side for a in range(3)))
            cache = _CACHE_BYTES // len(plan.axes)
            self._sets.append(TrainingSet(volumes, snapshot, flat, cache, flow_targets(axis)))
        self.unlabelled_classes = self._sets[0].unlabelled_classes
        """Classes without a labelled voxel."""

    def batch(self, seed: int, step: int) -> Planes:
        """Return the planes of a step, which depend on `seed` and `step` alone."""
        count, kinds = self._plan.batch_size, len(self._sets)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for kind, (axis, data) in enumerate(zip(self._plan.axes, self._sets, strict=True)):
            own = [i for i in range(count) if (step * count + i) % kinds == kind]
            warps = [draw_warp(seed, step, i) for i in own]
            margins = [_in_space(margin_of(warp, self._plan.side), axis) for warp in warps]
            windows = data.batch(seed + kind, step, margins) if own else []
            for i, warp, (image, label) in zip(own, warps, windows, strict=True):
                flat = image.squeeze(1 + axis), label.squeeze(1 + axis)
                turned = apply_warp(warp, *flat, self._plan.side)
                parts.append((vary(turned[0], keyed_generator(seed, "intensity", step, i)), *turned[1:]))
        images, labels, flows = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        return Planes(images, labels, flows)


def _in_space(margin: tuple[int, int], axis: int) -> ZYX:
    values = list(margin)
    values.insert(axis, 0)
    return zyx(values)


Warp = npt.NDArray[np.float64]
"""A matrix (2, 2): from a pixel's offset from the plane's middle to where it comes from, both in pixels, first axis first."""


def draw_warp(*key: int | str) -> Warp:
    """Draw how a plane is mirrored, turned and scaled."""
    rng = keyed_generator(*key, "warp")
    matrix: Warp = np.eye(2)[rng.permutation(2)] * rng.choice((-1.0, 1.0), 2)
    turned, scaled = rng.random(2) < _SHARE
    angle, scale = rng.uniform(-_TURN, _TURN), math.exp(rng.uniform(-_SCALE, _SCALE))
    if turned:
        matrix = np.matmul(matrix, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if scaled:
        matrix = matrix * scale
    return matrix


def margin_of(warp: Warp, side: int) -> tuple[int, int]:
    """Return how much more than the plane is read, on both sides of each axis."""
    half = (side - 1) / 2
    reach = np.abs(warp).sum(axis=1) * half
    first, second = (max(0, math.ceil(r - half - 1e-6)) for r in reach)
    return first, second


def apply_warp(warp: Warp, image: Tensor, label: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, labels and flows of a plane; the flows are turned with it.

    Parameters
    ----------
    warp : ndarray of float64, shape (2, 2)
        See `Warp`.
    image, label : Tensor of float32, shape (c, h, w) and (3, h, w)
        The plane with its margin; the labels with the targets of `rescueseg.models.cellpose.targets.plane_flows`.
    side : int
        Of the plane.

    Returns
    -------
    image : Tensor of float32, shape (c, side, side)
        Interpolated linearly.
    labels : Tensor of int64, shape (side, side)
        The nearest pixel's.
    flows : Tensor of float32, shape (2, side, side)
        The nearest pixel's, as they are in the frame of the warped plane; NaN where not known.
    """
    offsets = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    places = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"))
    sources = torch.einsum("ab,bhw->ahw", torch.from_numpy(warp).float(), places)
    half = torch.tensor([max(n - 1, 1) / 2 for n in image.shape[1:]])
    grid = (sources.movedim(0, -1) / half).flip(-1)[None]
    sampled = functional.grid_sample(image[None], grid, "bilinear", "border", align_corners=True)[0]
    nearest = functional.grid_sample(label[None], grid, "nearest", "border", align_corners=True)[0]
    rotation = torch.from_numpy(warp / math.sqrt(abs(np.linalg.det(warp)))).float()
    return sampled, nearest[0].long(), torch.einsum("ab,ahw->bhw", rotation, decode_flows(nearest[1:]))


def vary(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return an image (c, h, w) with another contrast and brightness, and noise in some."""
    gain, shift = 1 + rng.uniform(-_GAIN, _GAIN), rng.uniform(-_SHIFT, _SHIFT)
    deviation = rng.uniform(0, _NOISE) * (rng.random() < _SHARE)
    noise = rng.standard_normal(tuple(image.shape), dtype=np.float32) * np.float32(deviation)
    return image * gain + shift + torch.from_numpy(noise)
