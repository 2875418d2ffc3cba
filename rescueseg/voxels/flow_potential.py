"""The map whose slope a flow is: it rises along the flow, to the middle of each object; the same wherever the array was cut.

Cellpose follows the flow from each voxel to where it ends (Stringer et al. 2021, doi:10.1038/s41592-020-01018-x), however far
that is. Where the map is highest is where the flow ends, and its basins are what flows there; around a voxel it depends on
what lies within a few lengths of its reach alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

LOWEST = 3.0
"""The potential of flows of unit length is nowhere lower than minus so many times its reach."""
_TRUNCATE = 3.0
"""Standard deviations after which a Gaussian ends."""
_LEAST_VOXELS = 0.5
"""Standard deviation below which a Gaussian is hardly wider than a voxel."""

Spacing = tuple[float, float, float]
Float32 = npt.NDArray[np.float32]


def flow_potential(flow: Float32, spacing_um_zyx: Spacing, reach_um: float) -> Float32:
    """Return the map whose slope a flow is, in the sense of least squares.

    That map solves the heat equation at rest, with what flows together as the source: it is the sum over all times of the
    source's spread, a Gaussian. The times up to that in which it spreads by `reach_um` are summed up, in steps that grow
    fourfold. So the map is what is left of the whole solution after its mean around each voxel is taken off.

    Parameters
    ----------
    flow : ndarray of float32, (3, z, y, x)
        Components along z, y, x, without a unit; 0 outside of the objects.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    reach_um : float
        Standard deviation of the widest Gaussian; half of an object's radius or more parts it from others.

    Returns
    -------
    ndarray of float32, zyx
        In micrometre; along a flow of unit length it rises by about as much as the way is long.

    Examples
    --------
    Two objects in a row, with flows to the middle of each:

    >>> flow = np.zeros((3, 1, 1, 12), np.float32)
    >>> flow[2, 0, 0, 1:11] = [1, 1, 0, -1, -1, 1, 1, 0, -1, -1]
    >>> rises = np.diff(flow_potential(flow, (1.0, 1.0, 1.0), 2.0)[0, 0, 1:11]) > 0
    >>> rises.tolist()
    [True, True, False, False, False, True, True, False, False]
    """
    converging = np.zeros(flow.shape[1:], np.float32)
    for axis, (component, spacing) in enumerate(zip(flow, spacing_um_zyx, strict=True)):
        if component.shape[axis] > 1:
            converging -= np.gradient(component, axis=axis) / np.float32(spacing)
    total = np.zeros_like(converging)
    for sigma in _deviations(spacing_um_zyx, reach_um):
        spread = converging
        for axis, radius in enumerate(_radii(spacing_um_zyx, sigma)):
            if radius:  # the same sums in the same order for each voxel, wherever it lies in the array
                width = sigma / spacing_um_zyx[axis]
                spread = ndimage.gaussian_filter1d(spread, width, axis, mode="nearest", radius=radius)
        total += np.float32(math.log(4) * sigma**2 / 2) * spread
    return total


def potential_reach(spacing_um_zyx: Spacing, reach_um: float) -> tuple[int, int, int]:
    """Return how far around a voxel there is anything that its potential depends on, in voxels.

    Examples
    --------
    >>> potential_reach((0.5, 0.2, 0.2), 1.0)
    (7, 16, 16)
    """
    z, y, x = (radius + 1 for radius in _radii(spacing_um_zyx, reach_um))
    return z, y, x


def _deviations(spacing_um_zyx: Spacing, reach_um: float) -> list[float]:
    """Return the standard deviations of the Gaussians, each half of the one before it."""
    count = 1 + max(0, math.floor(math.log2(reach_um / (_LEAST_VOXELS * min(spacing_um_zyx))) + 1e-6))
    return [reach_um / 2**i for i in range(count)]


def _radii(spacing_um_zyx: Spacing, sigma_um: float) -> tuple[int, int, int]:
    z, y, x = (math.floor(_TRUNCATE * sigma_um / s + 0.5) for s in spacing_um_zyx)
    return z, y, x
