"""Star-convex polyhedra: rays, suppression of those that overlap, and their voxels, by the StarDist library without TensorFlow.

A polyhedron is a centre and the lengths of rays to its corners. Rays are the corners of an octahedron whose faces were
divided: mirrored, or with axes exchanged, they are the same rays in another order, so that what a network says of a turned
window can be turned back.

References
----------
Weigert, Schmidt, Haase, Sugawara & Myers 2020, doi:10.1109/WACV45572.2020.9093435.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import ConfigError
from rescueseg.geometry import Box, Spacing, zyx

Float32 = npt.NDArray[np.float32]

RAY_COUNTS = (18, 66, 258)
"""Of an octahedron whose faces are divided once, twice and three times."""
MOST_OVERLAP = 0.3
"""Share of the smaller of two polyhedra that both may cover; else the less probable one is dropped."""


def star_directions(count: int) -> Float32:
    """Return the directions of rays, unit vectors zyx.

    Parameters
    ----------
    count : int
        One of `RAY_COUNTS`.

    Returns
    -------
    ndarray of float32, (count, 3)

    Raises
    ------
    ConfigError
        If the package `stardist` is not installed.
    """
    directions: Float32 = _rays(count).vertices.astype(np.float32)
    return directions


def suppress_overlaps(
    points: npt.NDArray[np.integer], probabilities: Float32, lengths_um: Float32, spacing_um_zyx: Spacing
) -> npt.NDArray[np.bool_]:
    """Return which polyhedra stay: of two that overlap by more than `MOST_OVERLAP` the more probable one, that one first.

    Parameters
    ----------
    points : ndarray of integers, (n, 3)
        Centres, voxels zyx.
    probabilities : ndarray of float32, (n,)
        How probable each is.
    lengths_um : ndarray of float32, (n, rays)
        Lengths of the rays of `star_directions`, micrometre, above zero.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of bool, (n,)
    """
    if not len(points):
        return np.zeros(0, np.bool_)
    from stardist.nms import non_maximum_suppression_3d_inds

    rays, per_um = _rays_in_voxels(lengths_um.shape[1], spacing_um_zyx)
    stays: npt.NDArray[np.bool_] = non_maximum_suppression_3d_inds(
        lengths_um * per_um, points, rays=rays, scores=probabilities, thresh=MOST_OVERLAP, verbose=False
    )
    return stays


def bounds(points: npt.NDArray[np.integer], lengths_um: Float32, spacing_um_zyx: Spacing) -> tuple[Any, Any]:
    """Return the first voxels of polyhedra and those behind their last ones, ndarrays of int64, (n, 3) each."""
    corners = lengths_um[:, :, None] * (star_directions(lengths_um.shape[1]) / np.asarray(spacing_um_zyx, np.float32))
    low, high = np.floor(corners.min(axis=1)).astype(np.int64), np.ceil(corners.max(axis=1)).astype(np.int64)
    return points + low, points + high + 1


def voxels_of(lengths_um: Float32, spacing_um_zyx: Spacing) -> tuple[Box, npt.NDArray[np.bool_]]:
    """Return the voxels of one polyhedron whose centre is voxel (0, 0, 0).

    Parameters
    ----------
    lengths_um : ndarray of float32, (rays,)
        As for `suppress_overlaps`.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    box : Box
        Around it; its offset is negative.
    mask : ndarray of bool, zyx
        Of the box's voxels. They do not depend on where in a volume it lies.
    """
    from stardist.geometry import polyhedron_to_label

    low, high = bounds(np.zeros((1, 3), np.int64), lengths_um[np.newaxis], spacing_um_zyx)
    box = Box.from_bounds(low[0].tolist(), high[0].tolist())
    rays, per_um = _rays_in_voxels(len(lengths_um), spacing_um_zyx)
    drawn = polyhedron_to_label((lengths_um * per_um)[np.newaxis], -low, rays, box.shape_zyx, verbose=False)
    mask: npt.NDArray[np.bool_] = drawn > 0
    mask[zyx(-low[0])] = True
    return box, mask


def _library() -> ModuleType:
    """Import what tells the rays; TensorFlow stays out."""
    try:
        from stardist import rays3d
    except ImportError as error:
        raise ConfigError(
            "star-convex objects need the package stardist",
            where="rescueseg[stardist]",
            todo="Install it with: pip install 'rescueseg[stardist]'",
        ) from error
    module: ModuleType = rays3d
    return module


@lru_cache(maxsize=4)
def _rays(count: int) -> Any:
    return _library().Rays_Octo(RAY_COUNTS.index(count) + 2)


@lru_cache(maxsize=16)
def _rays_in_voxels(count: int, spacing_um_zyx: Spacing) -> tuple[Any, Float32]:
    """Return the rays as unit vectors in voxels, as StarDist has them, and how many voxels a micrometre is along each."""
    rays = _rays(count)
    in_voxels = rays.vertices / np.asarray(spacing_um_zyx, np.float32)
    per_um = np.linalg.norm(in_voxels, axis=1).astype(np.float32)
    return _library().Rays_Explicit(in_voxels / per_um[:, np.newaxis], rays.faces), per_um
