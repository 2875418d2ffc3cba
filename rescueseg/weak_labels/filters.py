"""Linear filters with scales in micrometre: an anisotropic voxel grid changes the sampling, not the scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.feature import hessian_matrix_eigvals

from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.weak_labels.base import Float32

TRUNCATE = 4.0
"""Gaussians are cut at this many standard deviations: cut at 3, a second derivative sees 3 % of a constant."""
LEAST_SIGMA = 0.5
"""Least standard deviation in voxels of a Gaussian that is differentiated: a narrower one falls between the voxels."""


def smooth(image: Float32, sigma_um: float, spacing_um_zyx: Spacing, truncate: float = TRUNCATE) -> Float32:
    """Return an image (zyx) smoothed by a Gaussian that is isotropic in micrometre."""
    widths = [sigma_um / s for s in spacing_um_zyx]
    return np.asarray(ndimage.gaussian_filter(image, widths, truncate=truncate, mode="mirror"), np.float32)


def derivative(image: Float32, sigma_um: float, spacing_um_zyx: Spacing, order_zyx: Sequence[int]) -> Float32:
    """Return a derivative of the smoothed image, scale-normalised: σ per order, lengths in micrometre.

    Parameters
    ----------
    image : ndarray of float32, zyx
        Not changed.
    sigma_um : float
        Scale in micrometre.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    order_zyx : sequence of int
        Order along each axis.

    References
    ----------
    Lindeberg, Feature detection with automatic scale selection, doi:10.1023/A:1008045108935.

    Examples
    --------
    A ramp of 2 per micrometre, at a scale of 0.5 µm:

    >>> ramp = np.zeros((9, 9, 99), np.float32) + np.float32(2 * 0.1) * np.arange(99, dtype=np.float32)
    >>> slope = derivative(ramp, 0.5, (0.5, 0.1, 0.1), (0, 0, 1))
    >>> round(float(slope[4, 4, 50]), 2)
    1.0
    """
    widths = [max(LEAST_SIGMA, sigma_um / s) for s in spacing_um_zyx]
    unit = math.prod((sigma_um / s) ** o for s, o in zip(spacing_um_zyx, order_zyx, strict=True))
    response = ndimage.gaussian_filter(image, widths, order=list(order_zyx), truncate=TRUNCATE, mode="mirror")
    return np.asarray(response * np.float32(unit), np.float32)


def gradient_magnitude(image: Float32, sigma_um: float, spacing_um_zyx: Spacing) -> Float32:
    """Return the scale-normalised length of the gradient (zyx)."""
    parts = [derivative(image, sigma_um, spacing_um_zyx, order) for order in np.eye(3, dtype=int).tolist()]
    return np.sqrt(sum(part**2 for part in parts)).astype(np.float32)


def hessian_eigenvalues(image: Float32, sigma_um: float, spacing_um_zyx: Spacing) -> Float32:
    """Return the scale-normalised eigenvalues of the Hessian, float32 (3, z, y, x), largest first."""
    orders = ((2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2))
    elements = [derivative(image, sigma_um, spacing_um_zyx, order) for order in orders]
    return np.asarray(hessian_matrix_eigvals(elements), np.float32)


def laplacian(image: Float32, sigma_um: float, spacing_um_zyx: Spacing) -> Float32:
    """Return the scale-normalised Laplacian of Gaussian (zyx)."""
    orders = (2 * np.eye(3, dtype=int)).tolist()
    parts = [derivative(image, sigma_um, spacing_um_zyx, order) for order in orders]
    return np.asarray(np.sum(parts, axis=0), np.float32)


def filter_reach(sigma_um: float, spacing_um_zyx: Spacing, truncate: float = TRUNCATE) -> ZYX:
    """Return the reach of these filters in voxels: what lies farther away does not count.

    Examples
    --------
    >>> filter_reach(0.5, (0.5, 0.1, 0.1))
    (5, 21, 21)
    """
    return zyx(math.ceil(truncate * max(LEAST_SIGMA, sigma_um / s)) + 1 for s in spacing_um_zyx)


def finest(spacing_um_zyx: Spacing) -> float:
    """Return the finest voxel size, in micrometre."""
    return min(spacing_um_zyx)
