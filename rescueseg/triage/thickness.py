"""How thick an object is, from what a patch shows of it: the patch's faces are no borders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from rescueseg.geometry import Spacing

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Faces = Sequence[tuple[bool, bool]]
"""For each axis, whether an object's near and far side lie at a face of the patch."""

EQUAL = 1e-5
"""Difference of two distances, in voxels, that is rounding."""
_MOST_PLACES = 400
"""Places along the middle of an object at which its radius is measured between voxels."""


def depth_within(mask: Mask, spacing: Spacing, faces: Faces) -> Floats | None:
    """Return how deep each voxel lies in an object; None where no border of it is seen.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        The object's bounding box.
    spacing : tuple of float
        Voxel size in micrometre.
    faces : sequence of (bool, bool)
        Sides at faces of the patch: beyond them lies more of the same.

    Returns
    -------
    ndarray of float64, zyx, or None
        Micrometre to the middle of the nearest voxel outside, less half of the finest voxel size; 0 outside. One voxel
        larger than the mask on each side.

    Examples
    --------
    >>> depth_within(np.ones((1, 1, 5), bool), (1, 1, 1), [(True, True), (True, True), (False, True)])[1, 1].tolist()
    [0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 0.0]
    >>> depth_within(np.ones((1, 1, 5), bool), (1, 1, 1), [(True, True)] * 3) is None
    True
    """
    solid = _beyond(mask, faces)
    if solid.all():  # without a zero the distance transform is undefined
        return None
    depth = ndimage.distance_transform_edt(solid, sampling=spacing) - 0.5 * min(spacing)
    return np.asarray(np.where(np.pad(mask, 1), depth, 0.0), np.float64)


def _beyond(mask: Mask, faces: Faces) -> Mask:
    """Return a mask with one more voxel on each side: of the object at faces of the patch, of the outside elsewhere."""
    extended = np.pad(mask, [(int(a), int(b)) for a, b in faces], mode="edge")
    return np.pad(extended, [(1 - int(a), 1 - int(b)) for a, b in faces])


def typical_radius(depth: Floats, spacing: Spacing) -> float:
    """Return half of the median local thickness of an object.

    The local thickness of a place is the diameter of the largest ball within the object that covers it (Hildebrand and
    Rüegsegger 1997, doi:10.1046/j.1365-2818.1997.1340694.x). The rim that one plane of flat voxels leaves around the others
    is thin, but little of the object. The radius is found by bisection, as if larger balls always covered less: about right.

    Parameters
    ----------
    depth : ndarray of float, zyx
        Distance to the outside in micrometre, at least half of the finest voxel; 0 outside. Not all of it is outside.
    spacing : tuple of float
        Voxel size in micrometre.

    Examples
    --------
    Of a bar of 5 × 5 voxels with a thin fin, which holds less of it:

    >>> bar = np.zeros((9, 20, 20), bool)
    >>> bar[2:7, 2:7], bar[4, 7:16] = True, True
    >>> typical_radius(depth_within(bar, (1, 1, 1), [(False, False)] * 3), (1, 1, 1))
    2.5
    """
    finest = min(spacing)
    relative, steps = depth / finest, [s / finest for s in spacing]
    inside = relative > 0
    ridge = (relative >= ndimage.maximum_filter(relative, size=3)) & inside
    radii = np.unique(relative[ridge].round(6))
    least, most = 0, len(radii) - 1
    while least < most:
        middle = (least + most + 1) // 2
        from_middles = ndimage.distance_transform_edt(relative < radii[middle] - EQUAL, sampling=steps)
        covered = inside & (from_middles < radii[middle] + 0.5 - EQUAL)  # nearer than the nearest voxel outside
        if 2 * np.count_nonzero(covered) >= np.count_nonzero(inside):
            least = middle
        else:
            most = middle - 1
    return float(radii[least]) * finest


def radii_of(mask: Mask, depth: Floats, spacing: Spacing, faces: Faces) -> tuple[float, float]:
    """Return the typical radius of an object, from the middles of voxels and measured between them.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        The object's bounding box.
    depth : ndarray of float, zyx
        Of `depth_within`.
    spacing : tuple of float
        Voxel size in micrometre.
    faces : sequence of (bool, bool)
        Sides at faces of the patch.
    """
    coarse = typical_radius(depth, spacing)
    return coarse, ridge_radius(np.pad(mask, 1), depth, coarse, spacing, faces)


def ridge_radius(whole: Mask, depth: Floats, coarse: float, spacing: Spacing, faces: Faces) -> float:
    """Return the typical radius of an object, measured between voxels where its middle lies there.

    Around the voxels at the typical depth, on a grid of half voxels, the place farthest from the voxels outside is taken.
    Where the nearest one lies straight along an axis, as at a flat face, half the run of the object's voxels along it is
    the radius (where the patch cuts the run, the border is half a voxel nearer); elsewhere the border passes near the middle
    of that voxel.

    Parameters
    ----------
    whole : ndarray of bool, zyx
        The object, one voxel of outside around it.
    depth : ndarray of float, zyx
        Of `depth_within`.
    coarse : float
        Of `typical_radius`.
    spacing : tuple of float
        Voxel size in micrometre.
    faces : sequence of (bool, bool)
        Sides at faces of the patch.
    """
    finest = min(spacing)
    solid = _beyond(whole[1:-1, 1:-1, 1:-1], faces)
    near = np.argwhere(~solid & ndimage.binary_dilation(solid, np.ones((3, 3, 3), bool)))
    ridge = np.argwhere((depth >= ndimage.maximum_filter(depth, size=3)) & (np.abs(depth - coarse) < 0.25 * finest))
    if not len(near) or not len(ridge):
        return coarse
    scale = np.array(spacing)
    places = ridge[:: -(-len(ridge) // _MOST_PLACES)]
    shifts = np.array(list(itertools.product((-0.5, 0.0, 0.5), repeat=3)))
    middles = places[:, None] + shifts
    away, which = KDTree(near * scale).query(middles * scale)
    best = away.argmax(axis=1)
    radii = []
    for row, column in enumerate(best):
        towards = np.abs(near[which[row, column]] - middles[row, column])
        axis = int((towards * scale).argmax())
        radius = float(away[row, column])
        if np.delete(towards, axis).max() <= 0.5:
            run = _run(solid, places[row], axis)
            radius = min(radius, 0.5 * spacing[axis] * run) if run else radius - 0.5 * spacing[axis]
        radii.append(radius)
    return max(finest / 2, float(np.median(radii)))


def _run(solid: Mask, place: npt.NDArray[np.int64], axis: int) -> int:
    """Return how many voxels of a mask follow on each other along an axis, through a place; 0 where an end is not seen."""
    first, second = np.delete(place, axis).tolist()
    outside = np.flatnonzero(~np.moveaxis(solid, axis, 0)[:, first, second])
    before, after = outside[outside < place[axis]], outside[outside > place[axis]]
    return int(after[0] - before[-1]) - 1 if len(before) and len(after) else 0
