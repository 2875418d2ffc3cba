"""Random rotation, scaling and bending of training windows, in micrometre whatever the shape of a voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms.utils import create_rotate
from torch import Tensor
from torch.nn import functional

from rescueseg.geometry import ZYX, zyx
from rescueseg.models.unet.plan import TrainingPlan
from rescueseg.randomness import keyed_generator

_FLAT = 3.0
"""An axis that is so many times as coarse as the finest one, or as short as the longest one, is left as it is."""
_ROUNDING = 1e-3
"""Share of a spacing by which it may be rounded: a ratio of exactly three is the same in any unit."""
_SHARE = 0.2
"""Of windows that are rotated; as many are scaled, and as many bent."""
_TILT, _TURN = math.radians(30), math.radians(45)
"""Largest angle; with quarter turns beside it, the larger one reaches every direction."""
_SCALE = math.log(1.25)
"""Objects become so many times as large or as small at most: less than in nnU-Net, for a size in micrometre tells
structures apart."""
_POINTS = 4
"""A window is bent at so many points per length."""
_BEND = 0.1
"""Largest standard deviation of the points' shifts, per distance between them: the window never folds."""


@dataclass(frozen=True)
class Warp:
    """Where the voxels of a window come from.

    Parameters
    ----------
    window_zyx : tuple of int
        Shape of the window.
    matrix : ndarray of float64, shape (3, 3)
        Maps a voxel's offset from the window's middle to an offset in the image, both in voxels, zyx.
    shifts : ndarray of float32, shape (3, z, y, x), optional
        What is added to it, in voxels, at points spread evenly over the window.
    """

    window_zyx: ZYX
    matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    shifts: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None

    @property
    def margin_zyx(self) -> ZYX:
        """How much more than the window is read, on both sides of each axis."""
        half = (np.array(self.window_zyx) - 1) / 2
        reach = np.abs(self.matrix) @ half
        if self.shifts is not None:
            reach = reach + np.abs(self.shifts).max(axis=(1, 2, 3))
        return zyx(max(0, math.ceil(r - h - 1e-6)) for r, h in zip(reach, half, strict=True))

    def apply(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the window of an image (interpolated linearly) and of its labels (the nearest voxel's).

        Parameters
        ----------
        image, label : Tensor, shape (c, z, y, x)
            The window with its margin.

        Raises
        ------
        ValueError
            If they are of another shape: the window would show another place.
        """
        needed = tuple(n + 2 * m for n, m in zip(self.window_zyx, self.margin_zyx, strict=True))
        for shape in (tuple(image.shape[1:]), tuple(label.shape[1:])):
            if shape != needed:
                raise ValueError(f"the window with its margin has shape {needed}, not {shape}")
        if self.shifts is None and np.array_equal(self.matrix, np.eye(3)):
            return image, label
        grid = self._grid(image.shape[1:], image.device)
        sampled = functional.grid_sample(image[None], grid, "bilinear", "border", align_corners=True)
        labels = functional.grid_sample(label[None].float(), grid, "nearest", "border", align_corners=True)
        return sampled[0], labels[0].to(label.dtype)

    def _grid(self, shape_zyx: Sequence[int], device: torch.device) -> Tensor:
        """Return what `grid_sample` needs, (1, z, y, x, 3): the middle is 0, the outermost voxels of the image ±1."""
        axes = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in self.window_zyx]
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        sources = torch.einsum("ab,bzyx->azyx", torch.from_numpy(self.matrix).to(offsets), offsets)
        if self.shifts is not None:
            shifts = torch.from_numpy(self.shifts)[None].to(device)
            sources += functional.interpolate(shifts, self.window_zyx, mode="trilinear", align_corners=True)[0]
        half = torch.tensor([max(n - 1, 1) / 2 for n in shape_zyx], device=device)
        return (sources.movedim(0, -1) / half).flip(-1)[None]


def draw_warp(plan: TrainingPlan, *key: int | str) -> Warp:
    """Draw how a window is rotated, scaled and bent.

    As in nnU-Net, an axis along which voxels are more than three times as long as along another, or the window holds less
    than a third of the voxels, is left as it is: thick slices are turned about z alone, and scaled and bent within their
    plane (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).

    Parameters
    ----------
    plan : TrainingPlan
        Window and spacing. Where border distances are learned, which are lengths, windows are only rotated.
    *key : int or str
        What the random numbers derive from.
    """
    rng = keyed_generator(*key, "warp")
    spacing, window = np.array(plan.spacing_um_zyx), np.array(plan.window_zyx)
    free = (spacing <= _FLAT * (1 + _ROUNDING) * spacing.min()) & (window * _FLAT >= window.max())
    rotated, scaled, bent = (rng.random(3) < _SHARE) & (True, plan.border_um is None, plan.border_um is None)
    in_um = np.eye(3)
    if rotated:
        largest = np.array([_TURN if plan.square else _TILT, _TILT, _TILT])
        angles = rng.uniform(-1, 1, 3) * largest * [free[[b, c]].all() for b, c in ((1, 2), (0, 2), (0, 1))]
        in_um = np.asarray(create_rotate(3, angles.tolist()), dtype=np.float64)[:3, :3]
    if scaled:
        in_um = in_um @ np.diag(np.where(free, np.exp(rng.uniform(-_SCALE, _SCALE)), 1.0))
    matrix = in_um * spacing[None, :] / spacing[:, None]
    return Warp(plan.window_zyx, matrix, _draw_shifts(spacing, window, free, rng) if bent and free.any() else None)


def _draw_shifts(
    spacing: np.ndarray[tuple[int], np.dtype[np.float64]],
    window: np.ndarray[tuple[int], np.dtype[np.int64]],
    free: np.ndarray[tuple[int], np.dtype[np.bool_]],
    rng: np.random.Generator,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the shifts of points that are equally far apart in micrometre along all axes that may be bent."""
    lengths = window * spacing
    distance = lengths[free].min() / _POINTS
    points = [round(n / distance) + 1 if f else 1 for n, f in zip(lengths, free, strict=True)]
    shifts_um = rng.standard_normal((3, *points)) * (rng.uniform(0, _BEND) * distance)
    return np.asarray(shifts_um * (free / spacing)[:, None, None, None], dtype=np.float32)
