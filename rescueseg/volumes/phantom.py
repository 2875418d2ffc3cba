"""A synthetic volume that is hard in the ways real ones are, with exact truth.

Sparse curved organelles of varying calibre among look-alikes, blurred by an anisotropic point-spread function, with
Poisson-Gaussian noise, a region of low signal, an intensity step between two slabs of slices and uneven illumination.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.randomness import seeded_generator

SHAPE: ZYX = (32, 160, 160)
SPACING: Spacing = (0.25, 0.1, 0.1)

_FOREGROUND = 0.06
_STEP_UM = 0.05
_CALIBRE_UM = (0.55, 0.95)
_ATTEMPTS = 20_000

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Tube = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def make_phantom(
    shape_zyx: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING, seed: int = 0
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], Spacing]:
    """Make a phantom volume.

    The organelles are tubes with a bright wall around a darker lumen. The look-alikes are as bright: solid blobs,
    thin fibres and solid rods, so that a threshold cannot tell them apart, while their cross-section can.

    Parameters
    ----------
    shape_zyx : sequence of int
        Shape in voxels.
    spacing : sequence of float
        Voxel size in micrometre, z y x; usually coarser in z.
    seed : int
        The same arguments give the same voxels.

    Returns
    -------
    image : ndarray
        uint16, ``zyx``, camera counts.
    truth : ndarray
        uint8, ``zyx``; 1 inside an organelle (wall and lumen).
    spacing : tuple of float
        As given.
    """
    shape = zyx(shape_zyx)
    z, y, x = (float(s) for s in spacing)
    size: Spacing = (z, y, x)
    rng = seeded_generator(seed, *shape)
    scene = _Scene(shape, size)
    truth = scene.organelles(rng)
    scene.distractors(rng, 1.2 * int(truth.sum()))
    image = _camera(scene.density, size, rng)
    return image, truth.astype(np.uint8), size


class _Scene:
    """Fluorophore density on the voxel grid, painted object by object."""

    def __init__(self, shape: ZYX, spacing: Spacing) -> None:
        self.shape, self.spacing = shape, np.asarray(spacing)
        self.extent = np.asarray(shape) * self.spacing
        self.density: Volume = np.zeros(shape, np.float32)
        self.occupied: Mask = np.zeros(shape, bool)

    def organelles(self, rng: np.random.Generator) -> Mask:
        """Paint tubes until the wanted share of the volume is filled; return where they are."""
        truth: Mask = np.zeros(self.shape, bool)
        painted_voxels, target_voxels = 0, _FOREGROUND * truth.size
        for _ in range(_ATTEMPTS):
            if painted_voxels >= target_voxels:
                break
            path, radius = self._tube(rng, _CALIBRE_UM, rng.uniform(2.5, 7.0))
            box, distance = self._to_path(path, radius)
            inside = distance < 1
            if not inside.any() or (inside & self.occupied[box]).any():
                continue
            wall = inside & (distance > 0.6)
            brightness = rng.uniform(0.8, 1.2)
            density = self.density[box]
            density[wall] = brightness
            density[inside & ~wall] = 0.3 * brightness
            truth[box] |= inside
            self.occupied[box] |= distance < 1.25
            painted_voxels += int(inside.sum())
        return truth

    def distractors(self, rng: np.random.Generator, target_voxels: float) -> None:
        """Paint look-alikes until they fill `target_voxels`, clear of the organelles."""
        painted_voxels = 0
        for turn in range(_ATTEMPTS):
            if painted_voxels >= target_voxels:
                break
            calibre, length = (
                ((0.30, 0.50), 0.1),
                ((0.12, 0.18), rng.uniform(3.0, 8.0)),
                ((0.22, 0.34), rng.uniform(1.0, 3.0)),
            )[turn % 3]
            box, distance = self._to_path(*self._tube(rng, calibre, length))
            inside = distance < 1
            if not inside.any() or (inside & self.occupied[box]).any():
                continue
            self.density[box][inside] = rng.uniform(0.7, 1.3)
            self.occupied[box] |= inside
            painted_voxels += int(inside.sum())

    def _tube(self, rng: np.random.Generator, calibre: tuple[float, float], length: float) -> Tube:
        """Return the centre line of a smoothly bending tube in micrometre, and its varying radius."""
        steps = max(2, round(length / _STEP_UM))
        direction = rng.normal(size=3) * (0.5, 1.0, 1.0)
        bend = ndimage.gaussian_filter1d(rng.normal(size=(steps, 3)), 12, axis=0, mode="nearest") * 0.5
        headings = direction / np.linalg.norm(direction) + np.cumsum(bend, axis=0) * 0.12
        headings /= np.linalg.norm(headings, axis=1, keepdims=True)
        path = rng.uniform(0, self.extent) + np.cumsum(headings * _STEP_UM, axis=0)
        wobble = ndimage.gaussian_filter1d(rng.normal(size=steps), 10, mode="nearest")
        radius = rng.uniform(*calibre) * np.clip(1 + 0.9 * wobble, 0.75, 1.35)
        return path, radius

    def _to_path(
        self, path: npt.NDArray[np.float64], radius: npt.NDArray[np.float64]
    ) -> tuple[tuple[slice, ...], Volume]:
        """Return the box around a tube, and there the distance to its centre line over the radius."""
        reach = 1.3 * radius.max() + self.spacing.max()
        low = np.clip(np.floor((path.min(0) - reach) / self.spacing).astype(int), 0, self.shape)
        high = np.clip(np.ceil((path.max(0) + reach) / self.spacing).astype(int), low, self.shape)
        centres = [((np.arange(a, b) + 0.5) * s) for a, b, s in zip(low, high, self.spacing, strict=True)]
        near: Volume = np.full(high - low, np.inf, np.float32)
        for (pz, py, px), r in zip(path[::2], radius[::2], strict=True):
            squared = (
                ((centres[0] - pz) ** 2)[:, None, None]
                + ((centres[1] - py) ** 2)[None, :, None]
                + ((centres[2] - px) ** 2)[None, None, :]
            ) / r**2
            np.minimum(near, squared.astype(np.float32), out=near)
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), np.sqrt(near)


def _camera(density: Volume, spacing: Spacing, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Blur, illuminate, dim one region, step the intensity, and count photons."""
    blurred = ndimage.gaussian_filter(density, [0.2 / spacing[0], 0.09 / spacing[1], 0.09 / spacing[2]])
    z, y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in density.shape)
    texture = ndimage.gaussian_filter(rng.normal(size=density.shape).astype(np.float32), [1, 4, 4])
    background = 0.16 + 0.05 * texture / texture.std() + 0.16 * y[None, :, None]
    light = 0.75 + 0.5 * np.exp(-((x[None, None, :] - rng.uniform(0.2, 0.8)) ** 2) / 0.1)
    corner = rng.uniform(0.15, 0.85, 2)
    distance = np.hypot(y[None, :, None] - corner[0], x[None, None, :] - corner[1])
    dim = 1 - 0.65 / (1 + np.exp((distance - 0.28) / 0.04))
    step = np.where(z < rng.uniform(0.4, 0.6), 1.0, 1.45)[:, None, None]
    photons = 120 * (blurred + np.maximum(background, 0.02)) * light * dim * step
    counts = 100 + 4.0 * rng.poisson(photons) + rng.normal(0, 12, density.shape)
    image: npt.NDArray[np.uint16] = np.clip(np.rint(counts), 0, 65535).astype(np.uint16)
    return image
