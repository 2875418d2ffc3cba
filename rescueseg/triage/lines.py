"""How long an object is: its middle line, where that ends, and what a wall without its content would hide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from rescueseg.geometry import Spacing
from rescueseg.triage.thickness import EQUAL, Faces
from rescueseg.voxels.components import label_components

Mask = npt.NDArray[np.bool_]

LONGEST = 1000.0
"""Stands for a length without an upper bound, in multiples of the thickness."""
_CONFIDENCE = 0.95


def smooth_mask(mask: Mask, sigmas: Sequence[float]) -> Mask:
    """Return a mask without the roughness of its surface, of which a skeleton would make branches."""
    smooth: Mask = ndimage.gaussian_filter(mask.astype(np.float32), sigmas) > 0.5
    return smooth if smooth.any() else mask


def skeleton_branches(bones: npt.NDArray[Any], spacing: Spacing) -> tuple[int, float]:
    """Return the number of branch points of a skeleton and its length in micrometre."""
    thin = np.asarray(bones, bool)
    if not thin.any():
        return 0, 0.0
    neighbours = ndimage.convolve(thin.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant") - 1
    branch = thin & (neighbours > 2)
    length = 0.0
    for step in np.argwhere(np.ones((3, 3, 3)))[14:] - 1:
        near = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(step, thin.shape, strict=True))
        far = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(step, thin.shape, strict=True))
        length += float(np.linalg.norm(step * spacing)) * int((thin[near] & thin[far]).sum())
    return label_components(branch, 26)[1], length


def line_tips(bones: Mask, spacing: Spacing, faces: Faces, reach: float) -> int:
    """Count the ends of a skeleton; a single voxel has two, or one where the patch cuts the object, a closed line none.

    Parameters
    ----------
    bones : ndarray of bool, zyx
        The skeleton in a box with one voxel of margin around the object.
    spacing : tuple of float
        Voxel size in micrometre.
    faces : sequence of (bool, bool)
        Sides at faces of the patch.
    reach : float
        Ends that lie nearer to such a face, in micrometre, are where the patch cuts the object.

    Examples
    --------
    >>> bones = np.zeros((3, 3, 12), bool)
    >>> bones[1, 1, 1:11] = True
    >>> aside = (False, False)
    >>> line_tips(bones, (1, 1, 1), [aside] * 3, 2.0), line_tips(bones, (1, 1, 1), [aside, aside, (True, False)], 2.0)
    (2, 1)
    """
    neighbours = ndimage.convolve(bones.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant")
    ends = np.argwhere(bones & (neighbours <= 2))
    ends = ends[_from_faces(ends, bones.shape, spacing, faces) > reach]
    lone = 2 - any(map(any, faces))
    return sum(lone if neighbours[tuple(place)] == 1 else 1 for place in ends)


def inner_share(bones: Mask, spacing: Spacing, faces: Faces, reach: float) -> float:
    """Return the share of a skeleton on which an end would count as one, see `line_tips`.

    Examples
    --------
    >>> bones = np.zeros((3, 3, 12), bool)
    >>> bones[1, 1, 1:11] = True
    >>> inner_share(bones, (1, 1, 1), [(False, False)] * 2 + [(True, False)], 2.0)
    0.8
    """
    places = np.argwhere(bones)
    return float((_from_faces(places, bones.shape, spacing, faces) > reach).mean()) if len(places) else 1.0


def _from_faces(
    places: npt.NDArray[np.int64], shape: Sequence[int], spacing: Spacing, faces: Faces
) -> npt.NDArray[np.float64]:
    """Return how far places in a box with one voxel of margin are from the patch's faces, in micrometre."""
    away = np.full(len(places), math.inf)
    for axis, (near, far) in enumerate(faces):
        if near:
            away = np.minimum(away, (places[:, axis] - 0.5) * spacing[axis])
        if far:
            away = np.minimum(away, (shape[axis] - 1.5 - places[:, axis]) * spacing[axis])
    return away


def filled_shell(mask: Mask, faces: Faces) -> tuple[Mask, bool]:
    """Return an object with its cavity filled where it is the wall around a single one, and whether it is.

    A patch may cut the wall, once along an axis or right through it, as a slice does. Many cavities, which walls have
    that cells share, are left as they are: such a wall goes on.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        The object's bounding box.
    faces : sequence of (bool, bool)
        Sides at faces of the patch.
    """
    if sum(all(face) for face in faces) > 1:
        return mask, False
    around = [(int(not a), int(not b)) for a, b in faces]
    outside = np.pad(~mask, around, constant_values=True)
    numbers, count = label_components(outside, 6)
    open_air = np.zeros(count + 1, bool)
    for axis, pads in enumerate(around):
        for pad, place in zip(pads, (0, -1), strict=True):
            if pad:
                open_air[np.unique(np.take(numbers, place, axis))] = True
    crop = tuple(slice(a, n - b) for (a, b), n in zip(around, outside.shape, strict=True))
    sizes = np.bincount(numbers[crop].ravel(), minlength=count + 1)
    sizes[open_air] = 0
    sizes[0] = 0
    total, largest = int(sizes.sum()), int(sizes.max(initial=0))
    if total == 0 or largest < _MAIN_CAVITY * total or largest < _LEAST_CAVITY * int(mask.sum()):
        return mask, False
    return np.asarray(mask | (sizes > 0)[numbers[crop]], np.bool_), True


_MAIN_CAVITY = 0.9
"""Share of all that is enclosed that the one cavity of a shell holds."""
_LEAST_CAVITY = 0.1
"""Share of the wall's volume below which a cavity is a hole in an annotation."""


def close_slits(mask: Mask, spacing: Spacing, faces: Faces, radius: float) -> Mask:
    """Return an object with what is outside filled where no ball of a radius fits: slits between parts that lie side by side.

    Half a voxel is in doubt: a gap just as wide as the ball may be filled.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Its bounding box.
    spacing : tuple of float
        Voxel size in micrometre.
    faces : sequence of (bool, bool)
        Sides at faces of the patch, beyond which the mask goes on as it is there.
    radius : float
        Of the ball, in micrometre.

    Examples
    --------
    Of two gaps between three lines, the one of two voxels is filled, the one of five is not:

    >>> lines = np.array([[[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]]], bool)
    >>> close_slits(lines, (1, 1, 1), [(True, True)] * 2 + [(False, False)], 2.0).astype(int)[0, 0].tolist()
    [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    """
    margins = [math.ceil(2 * radius / s) + 1 for s in spacing]
    wider = np.pad(mask, [(m * a, m * b) for m, (a, b) in zip(margins, faces, strict=True)], mode="edge")
    wider = np.pad(wider, [(m * (not a), m * (not b)) for m, (a, b) in zip(margins, faces, strict=True)])
    # a ball ends where voxels do, half a voxel before the middle of the next one
    reach = radius + (0.5 - EQUAL) * min(spacing)
    fits = ndimage.distance_transform_edt(~wider, sampling=spacing) >= reach
    if not fits.any():
        return np.ones_like(mask)
    reached = ndimage.distance_transform_edt(~fits, sampling=spacing) < reach
    crop = tuple(slice(m, m + n) for m, n in zip(margins, mask.shape, strict=True))
    return np.asarray(mask | ~reached[crop], np.bool_)


def length_bounds(total: float, tips: int) -> tuple[float, float]:
    """Return bounds of the mean length of lines of which a patch shows parts.

    Each line has two ends, and as many ends are seen as the shown share of all lines holds: the mean length is twice the
    total over the number of ends, whatever the patch cuts. Its bounds are those of a Poisson count, 5 % to each side.

    Parameters
    ----------
    total : float
        Length of all that is seen.
    tips : int
        Ends that are seen.

    Examples
    --------
    Where no end is seen, up to three were to be expected; without a bound above, `LONGEST` stands:

    >>> [round(b, 1) for b in length_bounds(90.0, 0)], [round(b, 1) for b in length_bounds(90.0, 20)]
    ([60.1, 1000.0], [6.2, 13.6])
    """
    most = float(special.gammaincinv(tips + 1, _CONFIDENCE))
    least = float(special.gammaincinv(tips, 1 - _CONFIDENCE)) if tips else 0.0
    return min(LONGEST, 2 * total / most), min(LONGEST, 2 * total / least) if least else LONGEST
