"""How coarse, how noisy and how sharp a volume's texture is: pure functions on arrays, free of its intensity scale.

Structure and noise are told apart by the variogram, half the mean squared difference of voxels a lag apart (Matheron
1963, doi:10.2113/gsecongeo.58.8.1246): unlike an autocorrelation it needs no mean, so that it does not depend on how
large the boxes are that it is measured in. Sharpness is the blur of the strongest edges, from their gradients at two
scales (Zhuo & Sim 2011, doi:10.1016/j.patcog.2011.03.009): noise makes edges look
sharper, by a fifth where there is as much of it as of image, more where they are blurred over four pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

LAGS = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32)
"""Lags in voxels that are looked at, as far as a box is long enough."""
_SCALES = (1.5, 3.0)
"""Pixels over which gradients are taken: above the noise, below most structures."""
_EDGES = 0.02
"""Share of the pixels of a box that are its strongest edges; the stronger half of all boxes' edges counts."""
_LEAST_SIGNAL = 0.02
"""Share of the variance below which there is noise alone."""


@dataclass
class Variogram:
    """The variogram along one axis, gathered box by box.

    Parameters
    ----------
    sums, counts : ndarray of float64, shape (len(LAGS),)
        Squared differences and how many.
    """

    sums: Floats = field(default_factory=lambda: np.zeros(len(LAGS)))
    counts: Floats = field(default_factory=lambda: np.zeros(len(LAGS)))

    def add(self, image: Image, axis: int) -> None:
        """Add the differences within one box, float32 zyx; lags above half its length are left out."""
        moved = np.moveaxis(image, axis, 0)
        for index, lag in enumerate(LAGS):
            if 2 * lag > len(moved):
                break
            difference = (moved[lag:] - moved[:-lag]).ravel()
            self.sums[index] += float(np.dot(difference, difference))
            self.counts[index] += difference.size

    def values(self) -> Floats:
        """Return the variogram at the first of `LAGS`, those that were measured."""
        is_measured = self.counts > 0
        return np.asarray(0.5 * self.sums[is_measured] / self.counts[is_measured])


def variogram_noise(variogram: Floats) -> float:
    """Return the variance of the white noise by the variogram.

    The variogram begins as a straight line; where that line meets lag 0 it does not reach 0 but the variance of the noise
    (the nugget of geostatistics). Smoothed noise counts as structure. It is one of three estimates: `haar_noise` of the
    triage and `residual_noise` of the strata give standard deviations.

    Parameters
    ----------
    variogram : ndarray of float64
        At the first of `LAGS`.

    Returns
    -------
    float
        In squared units of the image; 0 for fewer than two lags.

    Examples
    --------
    >>> variogram_noise(np.array([3.0, 4.0, 5.0]))
    2.0
    """
    return float(np.clip(2 * variogram[0] - variogram[1], 0, variogram[0])) if len(variogram) > 1 else 0.0


def structure_length(variogram: Floats, variance: float) -> float | None:
    """Return the lag at which the structure, without the noise, has lost half of its correlation.

    Parameters
    ----------
    variogram : ndarray of float64
        At the first of `LAGS`.
    variance : float
        Of the voxels.

    Returns
    -------
    float or None
        In voxels, interpolated; None for noise alone, and where the boxes are too short to see it.

    Examples
    --------
    Without noise, half of a variance of 8 is reached at lag 4, the fourth of `LAGS`:

    >>> structure_length(np.array([1.0, 2.0, 3.0, 4.0]), variance=8.0)
    4.0
    """
    if len(variogram) < 2 or variance <= 0:
        return None
    noise = variogram_noise(variogram)
    signal = variance - noise
    if signal < _LEAST_SIGNAL * variance:
        return None
    lags = np.array((0, *LAGS[: len(variogram)]), dtype=np.float64)
    decorrelation = np.maximum.accumulate([0.0, *((variogram - noise) / signal)])
    if decorrelation[-1] < 0.5:
        return None
    after = int(np.argmax(decorrelation >= 0.5))
    share = (0.5 - decorrelation[after - 1]) / (decorrelation[after] - decorrelation[after - 1])
    return float(lags[after - 1] + share * (lags[after] - lags[after - 1]))


@dataclass
class Edges:
    """The strongest edges in the planes of a volume, gathered box by box.

    Parameters
    ----------
    coarse, fine : list of ndarray
        Gradient along its own direction, over 3 and over 1.5 pixels.
    """

    coarse: list[Image] = field(default_factory=list)
    fine: list[Image] = field(default_factory=list)

    def add(self, planes: Image) -> None:
        """Add the strongest edges of planes (n, y, x), 24 pixels or more along y and x; smaller ones are passed over."""
        margin = math.ceil(2 * _SCALES[1])
        if min(planes.shape[1:]) < 4 * margin:
            return
        inside = (slice(None), slice(margin, -margin), slice(margin, -margin))
        fine, coarse = ([_gradient(planes, s, axis)[inside] for axis in (1, 2)] for s in _SCALES)
        size = np.hypot(*coarse)
        strong = size >= np.quantile(size, 1 - _EDGES)
        strong &= size > 0
        along = (fine[0] * coarse[0] + fine[1] * coarse[1])[strong] / size[strong]
        self.coarse.append(size[strong])
        self.fine.append(along.astype(np.float32))

    def blur(self) -> float | None:
        """Return the standard deviation, in pixels, of the Gaussian that blurs the edges; None without edges."""
        if not self.coarse or not sum(map(len, self.coarse)):
            return None
        coarse, fine = np.concatenate(self.coarse), np.concatenate(self.fine)
        stronger = coarse >= np.median(coarse)
        ratio = float(fine[stronger].mean(dtype=np.float64) / coarse[stronger].mean(dtype=np.float64))
        a, b = (s**2 for s in _SCALES)
        if ratio <= 1.01:  # as blurred as can be told
            ratio = 1.01
        return math.sqrt(max(0.0, (b - ratio**2 * a) / (ratio**2 - 1)))


def _gradient(planes: Image, sigma: float, axis: int) -> Image:
    order = [0, 0, 0]
    order[axis] = 1
    result: Image = ndimage.gaussian_filter(planes, (0, sigma, sigma), order=order, truncate=3.0)
    return result


def standardise(voxels: npt.NDArray[np.generic], low: Sequence[float], high: Sequence[float]) -> Image:
    """Return the mean over channels, each clipped to its range and scaled to 0…1: float32 zyx from czyx."""
    parts = [
        np.clip((channel.astype(np.float32) - a) / max(b - a, 1e-12), 0, 1)
        for channel, a, b in zip(voxels, low, high, strict=True)
    ]
    mean: Image = np.mean(parts, axis=0, dtype=np.float32)
    return mean
