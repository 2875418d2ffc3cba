"""Size, surface, axes and place of objects, from what was counted of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.spatial import SphericalVoronoi

from rescueseg.delivery.object_sums import DIRECTIONS, KINDS, PAIRS, ObjectSums, middle
from rescueseg.geometry import ZYX, Spacing

Float64 = npt.NDArray[np.float64]


def surface_weights(spacing_um_zyx: Spacing) -> Float64:
    """Return the surface, in µm², that an exit of a line of voxels stands for, by `KINDS`.

    Crofton's formula with the 13 directions of the 26 neighbours: a surface is four times the mean area of the object's
    shadows; the shadow along a direction is the number of chords times the area that belongs to a line, and a direction
    weighs as much as the part of the sphere that is nearest to it. A ball's surface comes out within 1 %, that of objects
    five voxels wide within 2 %; in voxels three times as long as wide, long objects come out up to 10 % too small.

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    References
    ----------
    Ohser & Mücklich 2000, ISBN 978-0471974864; Legland, Kiêu & Devaux 2007, https://doi.org/10.5566/ias.v26.p83-92.

    Examples
    --------
    >>> surface_weights((1.0, 1.0, 1.0)).round(4).tolist()
    [0.3662, 0.3662, 0.3662, 0.2092, 0.2092, 0.2092, 0.1626]
    """
    steps = np.asarray(DIRECTIONS, np.float64) * spacing_um_zyx
    lengths = np.linalg.norm(steps, axis=1)
    unit = steps / lengths[:, np.newaxis]
    areas = SphericalVoronoi(np.concatenate([unit, -unit])).calculate_areas()
    share = (areas[: len(unit)] + areas[len(unit) :]) / (4 * math.pi)
    weights = 4 * share * math.prod(spacing_um_zyx) / lengths
    kinds = [KINDS.index((abs(z), abs(y), abs(x))) for z, y, x in DIRECTIONS]
    return np.array([weights[kinds.index(kind)] for kind in range(len(KINDS))], np.float64)


def shape_measures(sums: ObjectSums, shape_zyx: ZYX, spacing_um_zyx: Spacing) -> dict[str, Float64]:
    """Return volume, surface, sphericity, axes and centroid of objects, in micrometre.

    Parameters
    ----------
    sums : ObjectSums
        Of the whole volume.
    shape_zyx : tuple of int
        Its shape.
    spacing_um_zyx : tuple of float
        Voxel size.

    Returns
    -------
    dict of str to ndarray of float64, (n,)
        ``volume_um3``; ``surface_um2``, by `surface_weights`, faces where the volume ends included; ``sphericity``, the
        surface of a ball of the same volume over the object's [1]_, above 1 for objects of few voxels; ``axis_1_um`` ≥
        ``axis_2_um`` ≥ ``axis_3_um``, the full axes of the ellipsoid with the same second moments, each voxel taken as a
        small box; ``z_um``, ``y_um``, ``x_um``, the centroid, where the middle of the first voxel is 0.

    References
    ----------
    .. [1] Wadell 1935, https://doi.org/10.1086/624298.
    """
    volume = sums.voxels * math.prod(spacing_um_zyx)
    surface = (sums.exits * surface_weights(spacing_um_zyx)).sum(axis=1)
    axes = _axes(sums, np.asarray(spacing_um_zyx))
    centre = (sums.first / sums.voxels[:, np.newaxis] + middle(shape_zyx)) * spacing_um_zyx
    return {
        "volume_um3": volume,
        "surface_um2": surface,
        "sphericity": math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface,
        **{f"axis_{n + 1}_um": axes[:, n] for n in range(3)},
        **{f"{axis}_um": centre[:, n] for n, axis in enumerate("zyx")},
    }


def _axes(sums: ObjectSums, um: Float64) -> Float64:
    """Return the axes of each object, the longest first, (n, 3)."""
    count = sums.voxels[:, np.newaxis]
    mean = sums.first / count
    moments = np.empty((len(mean), 3, 3))
    for (a, b), column in zip(PAIRS, (sums.second / count).T, strict=True):
        covariance = (column - mean[:, a] * mean[:, b] + (1 / 12 if a == b else 0)) * um[a] * um[b]
        moments[:, a, b] = moments[:, b, a] = covariance
    variances = np.linalg.eigvalsh(moments)[:, ::-1]
    return np.asarray(2 * np.sqrt(5 * np.maximum(variances, 0)), np.float64)
