"""How slender an object is, ball to tube and sheet, from what a patch shows of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import block_reduce

from rescueseg.geometry import Spacing
from rescueseg.triage.thickness import Faces

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_SMOOTHING = 3.0
"""Voxels of a smoothing's standard deviation above which a mask is thinned out by whole steps."""
_SEEN = 2.0
"""Thicknesses of an object up to which a patch that cuts it on both sides does not tell whether it is long."""
_WHOLE = ((False, False),) * 3


def hessian_shape(
    mask: Mask,
    spacing: Spacing,
    radius: float,
    middle: Mask,
    faces: Faces = _WHOLE,
    unseen: Sequence[bool] = (False, False, False),
) -> tuple[float, float]:
    """Return tubularity and plateness of a mask, 0 to 1, medians over its middle.

    With the eigenvalues of the Hessian of the smoothed mask ordered |a| ≤ |b| ≤ |c|, a ball has a ≈ b ≈ c, a tube a ≈ 0,
    a sheet a ≈ b ≈ 0 (Frangi et al. 1998, doi:10.1007/BFb0056195): plateness is 1 − |b|/|c|, tubularity (1 − |a|/|b|)·|b|/|c|.
    Of a slice through an object, 1 − |a|/|b| of its profile stands for both together, and is given as tubularity. A mask
    that is many voxels thick is thinned out first, so that the smoothing never spans more than six voxels.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        One object.
    spacing : tuple of float
        Voxel size in micrometre.
    radius : float
        Standard deviation of the smoothing, in micrometre.
    middle : ndarray of bool, zyx
        Where the eigenvalues are taken.
    faces : sequence of (bool, bool)
        Sides at faces of the patch, beyond which the mask is mirrored; elsewhere it ends.
    unseen : sequence of bool
        Axes along which the object goes on without an end in sight, so that only its profile across them is known.

    Returns
    -------
    tubularity, plateness : float
        nan where more than one axis is unseen.
    """
    axes = [axis for axis in range(3) if not unseen[axis]]
    if len(axes) < 2:
        return math.nan, math.nan
    if not middle.any():
        return 0.0, 0.0
    step = tuple(max(1, min(n, int(radius / s / _SMOOTHING))) for s, n in zip(spacing, mask.shape, strict=True))
    coarse = [s * n for s, n in zip(spacing, step, strict=True)]
    sigmas = [max(0.7, radius / s) for s in coarse]
    margins = [math.ceil(3 * s) for s in sigmas]
    ends = [(m * (not a), m * (not b)) for m, (a, b) in zip(margins, faces, strict=True)]
    mirrors = [(m * a, m * b) for m, (a, b) in zip(margins, faces, strict=True)]
    image = np.pad(np.pad(block_reduce(mask.astype(np.float32), step, np.mean), ends), mirrors, mode="symmetric")
    centre = np.pad(block_reduce(middle, step, np.max), [(m, m) for m in margins])
    matrix = np.empty((int(centre.sum()), len(axes), len(axes)))
    for i, first in enumerate(axes):
        for j, second in enumerate(axes[i:], start=i):
            order = [int(axis == first) + int(axis == second) for axis in range(3)]
            curvature = ndimage.gaussian_filter(image, sigmas, order=order, truncate=3.0)[centre]
            matrix[:, i, j] = matrix[:, j, i] = curvature / (coarse[first] * coarse[second])
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix)), axis=1).T + 1e-12
    if len(axes) == 2:
        return float(np.median(1 - values[0] / values[1])), 0.0
    a, b, c = values
    return float(np.median((1 - a / b) * b / c)), float(np.median(1 - b / c))


def slender_parts(
    mask: Mask, spacing: Spacing, faces: Faces, depth: Floats, coarse: float, radius: float
) -> tuple[float, float]:
    """Return tubularity and plateness of an object, of which a patch may show a slice alone."""
    unseen = [
        all(face) and (n == 1 or n * s <= _SEEN * 2 * radius)
        for face, n, s in zip(faces, mask.shape, spacing, strict=True)
    ]
    return hessian_shape(mask, spacing, radius, depth[1:-1, 1:-1, 1:-1] >= 0.7 * coarse, faces, unseen)


def faces_of(place: tuple[slice, ...], shape: Sequence[int]) -> list[tuple[bool, bool]]:
    """Tell which sides of a part of a patch lie at the patch's faces."""
    return [(s.start == 0, s.stop == n) for s, n in zip(place, shape, strict=True)]
