"""Image evidence: noise, contrast, background texture, blur, drift. Pure functions on arrays.

Intensities stay in the image's own units; what decides is a ratio of two of them, so that gain and offset do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import block_reduce

from rescueseg.geometry import Spacing
from rescueseg.randomness import seeded_generator

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_NORMAL_MAD = 0.6744897501960817
_NORMAL_RANGE = 2 * 0.9944578832097532
"""Width of a unit normal distribution between its 16th and 84th percentile."""
_SMOOTHING = 3.0
"""Voxels of the narrower smoothing's standard deviation above which an image is thinned out by whole steps."""
_FEWEST = 50
"""Voxels below which a median means little."""


def quantisation_step(values: npt.NDArray[Any]) -> float:
    """Return the smallest difference between two intensities that occur; 0 for a constant image."""
    steps = np.diff(np.unique(values).astype(np.float64))
    return float(steps.min()) if len(steps) else 0.0


def haar_noise(planes: npt.NDArray[Any], step: float) -> Floats:
    """Return the standard deviation of the noise in each plane, by its finest Haar coefficients.

    The median absolute deviation of the finest diagonal Haar coefficients (Donoho & Johnstone 1994,
    doi:10.1093/biomet/81.3.425): smooth structure and straight edges cancel in them. Never below step/√12, the noise of
    rounding: a denoised image would come out as free of noise. Noise that is correlated between pixels (interpolated or
    denoised images) is underestimated. It is one of three estimates: strata are measured with `residual_noise`, the
    consistency check with `variogram_noise`.

    Parameters
    ----------
    planes : ndarray, (z, y, x)
        Any real dtype; at least 2×2 pixels.
    step : float
        Quantisation step of the image.

    Returns
    -------
    ndarray of float64, (z,)
        In intensity units.

    Examples
    --------
    One plane without noise, where the floor of rounding remains, and one of noise with standard deviation 5:

    >>> noise = np.random.default_rng(0).normal(0, 5, (64, 64))
    >>> haar_noise(np.stack([np.full((64, 64), 100.0), 100 + noise]), step=1.0).round(1).tolist()
    [0.3, 5.0]
    """
    image = np.asarray(planes, np.float64)[:, : planes.shape[1] // 2 * 2, : planes.shape[2] // 2 * 2]
    detail = image[:, ::2, ::2] - image[:, 1::2, ::2] - image[:, ::2, 1::2] + image[:, 1::2, 1::2]
    detail = (detail / 2).reshape(len(image), -1)
    # rounded values would make the median jump by whole steps
    detail = detail + seeded_generator(0).uniform(-step / 4, step / 4, detail.shape[1])
    middle = np.median(detail, axis=1, keepdims=True)
    floor = step / math.sqrt(12)
    noise: Floats = np.maximum(np.median(np.abs(detail - middle), axis=1) / _NORMAL_MAD, floor)
    return noise


@dataclass(frozen=True)
class Regions:
    """Parts of an annotated patch that are compared.

    Parameters
    ----------
    core, surroundings : ndarray of bool, zyx
        The structure without its rim, and what lies next to it. Where objects fill the patch, their common borders
        stand for the surroundings.
    background : ndarray of bool, zyx
        Away from the structure: where look-alikes would be.
    """

    core: Mask
    surroundings: Mask
    background: Mask


def regions(labels: npt.NDArray[Any], unknown: Mask, spacing_um_zyx: Spacing, thickness: float) -> Regions:
    """Divide a patch into core, surroundings and background.

    Parameters
    ----------
    labels : ndarray, zyx
        Numbered objects or classes; 0 is background.
    unknown : ndarray of bool, zyx
        Not annotated: in none of the regions.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    thickness : float
        Of the structure, in micrometre: sets how far its surroundings reach.
    """
    inside = labels > 0
    finest = min(spacing_um_zyx)
    outside = ~inside
    borders = object_borders(labels)
    crowded = borders.any() and not unknown.all() and outside[~unknown].mean() < 0.05
    rim = borders if crowded else outside
    if not rim.any() or rim.all():
        return Regions(inside & ~unknown, np.zeros_like(inside), np.zeros_like(inside))
    deep = ndimage.distance_transform_edt(~rim, sampling=spacing_um_zyx)
    core = inside & (deep > finest) & ~unknown
    if core.sum() < _FEWEST:
        core = inside & ~rim & ~unknown
    if crowded:
        return Regions(core, borders & ~unknown, np.zeros_like(inside))
    away = ndimage.distance_transform_edt(outside, sampling=spacing_um_zyx)
    near = outside & (away <= max(thickness, 4 * finest)) & ~unknown
    clear = near & (away > 1.5 * finest)
    near = clear if clear.sum() >= _FEWEST else near
    far = outside & (away > max(1.5 * finest, thickness / 4)) & ~unknown
    return Regions(core, near, far)


def object_borders(labels: npt.NDArray[Any]) -> Mask:
    """Tell which voxels have a voxel of another object next to them; background does not count."""
    numbers = labels.astype(np.int64)
    above = int(numbers.max(initial=0)) + 1  # filters calculate in floats, in which the largest integer has no place
    low = ndimage.minimum_filter(np.where(numbers > 0, numbers, above), size=3)
    borders: Mask = (numbers > 0) & ((ndimage.maximum_filter(numbers, size=3) != numbers) | (low != numbers))
    return borders


def background_texture(image: npt.NDArray[Any], background: Mask, spacing_um_zyx: Spacing, thickness: float) -> Floats:
    """Return how the background fluctuates at the scale of the structure.

    The background is smoothed to a quarter of the structure's thickness less smoothed to a whole one, both normalised by
    how much background they covered (Knutsson & Westin 1993, doi:10.1109/CVPR.1993.341081): noise is averaged out, drift
    is taken away, and the structure itself takes no part.

    Returns
    -------
    ndarray of float64, (n,)
        One value per background voxel, in intensity units; empty where there is no background. Of a structure that is
        many voxels thick, one per block of voxels, so that no smoothing spans more than some 24.
    """
    if background.sum() < _FEWEST:
        return np.zeros(0)
    step = tuple(
        max(1, min(n, int(thickness / 4 / s / _SMOOTHING)))
        for s, n in zip(spacing_um_zyx, background.shape, strict=True)
    )
    values = block_reduce(np.where(background, image, 0).astype(np.float64), step, np.sum)
    weight = block_reduce(background.astype(np.float64), step, np.sum)
    known = weight > 0
    smooth = []
    for width in (thickness / 4, thickness):
        sigmas = [width / (s * n) for s, n in zip(spacing_um_zyx, step, strict=True)]
        coverage = ndimage.gaussian_filter(weight, sigmas, truncate=3.0)
        smooth.append(ndimage.gaussian_filter(values, sigmas, truncate=3.0)[known] / coverage[known])
    texture: Floats = smooth[0] - smooth[1]
    return texture


def robust_spread(values: npt.NDArray[Any]) -> float:
    """Return the standard deviation of a normal distribution with the same 16th and 84th percentile."""
    low, high = np.percentile(values, (16, 84))
    return float(high - low) / _NORMAL_RANGE


def correlation_lengths(image: npt.NDArray[Any], spacing_um_zyx: Spacing) -> tuple[float, float]:
    """Return how far intensities stay alike, along z and in the plane, in micrometre.

    The lag at which the autocovariance falls to half of what lags 1 and 2 extrapolate to at lag 0: noise, which is in
    lag 0 alone, does not count. Their ratio is the axial blur: near 1 where resolution is isotropic and structures have
    no preferred direction.

    Parameters
    ----------
    image : ndarray, zyx
        Any real dtype.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    z, plane : float
        nan where the image is too thin or constant; the largest lag where it stays alike throughout.
    """
    centred = np.asarray(image, np.float64) - float(np.mean(image, dtype=np.float64))
    z, y, x = (_half_length(centred, axis) * s for axis, s in enumerate(spacing_um_zyx))
    return z, float(np.nanmean([y, x])) if not (math.isnan(y) and math.isnan(x)) else math.nan


def _half_length(centred: Floats, axis: int) -> float:
    most = min(32, centred.shape[axis] // 2)
    if most < 3:
        return math.nan
    lines = np.moveaxis(centred, axis, 0)
    alike = [float(np.mean(lines[:-k] * lines[k:])) for k in range(1, most + 1)]
    top = (4 * alike[0] - alike[1]) / 3
    if top <= 0:
        return math.nan
    half, before = top / 2, top
    for lag, value in enumerate(alike, start=1):
        if value <= half:
            return lag - 1 + (before - half) / max(before - value, 1e-12)
        before = value
    return float(most)


def plane_steps(image: npt.NDArray[Any]) -> Floats:
    """Return by how much each plane's typical intensity differs from that of the plane before: (z − 1,)."""
    if len(image) < 2:
        return np.zeros(0)
    steps: Floats = np.median(np.diff(np.asarray(image, np.float64), axis=0), axis=(1, 2))
    return steps


def weighted_median(values: Sequence[float] | Floats, weights: Sequence[float] | Floats) -> float:
    """Return the value at which half of the weight is reached; nan values are left out, nan when none remains.

    Examples
    --------
    >>> weighted_median([1.0, 2.0, 30.0], [1.0, 1.0, 5.0])
    30.0
    """
    return weighted_quantile(values, weights, 0.5)


def weighted_quantile(values: Sequence[float] | Floats, weights: Sequence[float] | Floats, share: float) -> float:
    """Return the value at which a share of the weight is reached; nan values are left out, nan when none remains.

    Examples
    --------
    >>> weighted_quantile([1.0, 2.0, 30.0], [1.0, 1.0, 2.0], 0.25)
    1.0
    """
    pairs = sorted((v, w) for v, w in zip(values, weights, strict=True) if not math.isnan(v) and w > 0)
    enough, reached = sum(w for _, w in pairs) * share, 0.0
    for value, weight in pairs:  # sums are not divided, as np.quantile does: rounding would decide ties otherwise
        reached += weight
        if reached >= enough:
            return float(value)
    return math.nan
