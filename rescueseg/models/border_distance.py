"""How far each voxel lies from the border of its own object: what tells objects apart that touch.

Where two objects touch there is no background between them, so a mask joins them; the distance falls to one voxel on both
sides all the same. A watershed on it parts them. What a patch cuts is censored: a voxel that is nearer to what nobody
labelled than to the border of its object, as far as that is seen, may lie at any distance from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import Spacing

Ends: TypeAlias = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]
_BEYOND = 32
UNKNOWN = -1.0
"""In place of a target that is not known."""
_FINEST_VOXELS = 2
_TOLERANCE = 1e-6
"""Relative; two ways to compute the same distance agree better than that."""

Distances = npt.NDArray[np.float32]


def border_distance(
    objects: npt.NDArray[np.integer], unlabelled: npt.NDArray[np.bool_], spacing_um_zyx: Spacing, cap_um: float
) -> Distances:
    """Return the distance of each voxel to the nearest voxel that is not of its object, as a share of a largest one.

    Parameters
    ----------
    objects : ndarray of integers, zyx
        Numbers of the objects, 0 background.
    unlabelled : ndarray of bool, zyx
        Voxels that nobody labelled. What lies beyond the array counts as unlabelled too.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    cap_um : float
        All larger distances count as this one.

    Returns
    -------
    ndarray of float32, zyx
        From 0 (background) to 1 (`cap_um` and more); `UNKNOWN` where it is not known: at unlabelled voxels, and where one
        is as near as the border, and nearer than `cap_um`.

    Examples
    --------
    Two objects touch, between background. With 2 voxels as the largest distance all is known:

    >>> row = np.array([[[0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]]] * 5).transpose(1, 0, 2).repeat(5, axis=0)
    >>> border_distance(row, np.zeros(row.shape, bool), (1.0, 1.0, 1.0), 2.0)[2, 2].tolist()
    [0.0, 0.0, 0.0, 0.5, 1.0, 0.5, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0]

    In its outermost plane the row is as near to what nobody has seen as to its border:

    >>> border_distance(row, np.zeros(row.shape, bool), (1.0, 1.0, 1.0), 2.0)[0, 2, 3:6].tolist()
    [-1.0, -1.0, -1.0]
    """
    to_border, to_unlabelled = distances_to_borders(objects, unlabelled, spacing_um_zyx)
    least = cap_um * (1 - _TOLERANCE)
    known = ~unlabelled & (is_nearer(to_border, to_unlabelled) | (to_border >= least))
    share = np.minimum(to_border, cap_um) / np.float32(cap_um)
    return np.where(known, share, np.float32(UNKNOWN)).astype(np.float32)


def inscribed_radii(
    objects: npt.NDArray[np.integer], unlabelled: npt.NDArray[np.bool_], spacing_um_zyx: Spacing
) -> tuple[list[float], list[float]]:
    """Return the radius of the largest ball in each object, in micrometre: of those that are whole there, and of the others.

    Parameters as those of `border_distance`. Of an object that the patch cuts through its middle the radius is a least one.

    Examples
    --------
    >>> ball = np.zeros((9, 9, 9), int)
    >>> ball[3:6, 3:6, 3:6] = 7
    >>> inscribed_radii(ball, np.zeros(ball.shape, bool), (0.5, 0.5, 0.5))
    ([1.0], [])
    """
    to_border, to_unlabelled = distances_to_borders(objects, unlabelled, spacing_um_zyx)
    numbers = np.unique(objects[(objects > 0) & ~unlabelled])
    whole: list[float] = []
    cut: list[float] = []
    for place in ndimage.maximum_position(to_border, np.where(unlabelled, 0, objects), numbers) if len(numbers) else ():
        radius = float(to_border[place])
        (whole if is_nearer(to_border[place], to_unlabelled[place]) else cut).append(radius)
    return whole, cut


def choose_cap(radii: Iterable[tuple[list[float], list[float]]], spacing_um_zyx: Spacing) -> float:
    """Return the largest distance that is learned, in micrometre: the median radius of the whole objects.

    Half of the objects then have a middle of their own shape, and no network must guess how thick the thickest are. Two
    of the finest voxels at least; where no object is whole, the median of what is seen of them.

    Parameters
    ----------
    radii : iterable
        What `inscribed_radii` returned of each patch.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Examples
    --------
    >>> choose_cap([([3.0, 5.0], [1.0]), ([4.0], [])], (1.0, 1.0, 1.0))
    4.0
    >>> choose_cap([([], [])], (0.2, 0.1, 0.1))
    0.2
    """
    patches = list(radii)
    whole, cut = ([r for patch in patches for r in patch[kind]] for kind in (0, 1))
    chosen = whole or cut
    return round(max(float(np.median(chosen)) if chosen else 0.0, _FINEST_VOXELS * min(spacing_um_zyx)), 6)


def continue_beyond(
    objects: npt.NDArray[np.integer], unlabelled: npt.NDArray[np.bool_], ends: Ends, voxels: int = _BEYOND
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_], tuple[slice, slice, slice]]:
    """Return a patch with what lies beyond the volume, where it ends with it: the same as in its outermost plane.

    Nobody can annotate beyond a volume, and a network sees nothing there either: to it an object that the volume's face cuts
    looks like one that goes on. In a stack of a few planes no other object would be whole.

    Parameters
    ----------
    objects, unlabelled : ndarray, zyx
        As for `border_distance`.
    ends : tuple
        By axis, whether the first and the last plane of the patch are the volume's.
    voxels : int
        How far it goes on.

    Returns
    -------
    objects, unlabelled : ndarray, zyx
        Larger where the patch ends with the volume.
    inner : tuple of slice
        Where the patch lies in them.

    Examples
    --------
    >>> row = np.array([[[0, 7, 7]]])
    >>> more, _, inner = continue_beyond(row, row < 0, ((False, False), (False, False), (False, True)), 2)
    >>> more.tolist(), inner[2]
    ([[[0, 7, 7, 7, 7]]], slice(0, 3, None))
    """
    pads = [(voxels * first, voxels * last) for first, last in ends]
    z, y, x = (slice(low, low + n) for (low, _), n in zip(pads, objects.shape, strict=True))
    return np.pad(objects, pads, mode="edge"), np.pad(unlabelled, pads, mode="edge"), (z, y, x)


def is_nearer(to_border: Any, to_unlabelled: Any) -> Any:
    """Tell where a border is nearer than what nobody labelled, by more than rounding; shape and kind of what is given."""
    return to_border < to_unlabelled * (1 - _TOLERANCE)


def distances_to_borders(
    objects: npt.NDArray[np.integer], unlabelled: npt.NDArray[np.bool_], spacing_um_zyx: Spacing
) -> tuple[Distances, Distances]:
    """Return how far each voxel of an object is from what is not surely the same object, and each voxel from the unlabelled.

    Parameters as those of `border_distance`; distances are in micrometre, zyx.

    What is not surely the same object is all else: others, background, the unlabelled, and what lies beyond the array. The
    nearest such voxel lies in the box around the object grown by one voxel, for the nearest point of that box is nearer.
    """
    padded = np.pad(np.where(unlabelled, 0, objects), 1)
    _, positions = np.unique(padded, return_inverse=True)
    numbers = positions.reshape(padded.shape)
    to_border = np.zeros(padded.shape, np.float32)
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        grown = tuple(slice(s.start - 1, s.stop + 1) for s in place)
        inside = numbers[grown] == number
        distance = ndimage.distance_transform_edt(inside, sampling=spacing_um_zyx)
        to_border[grown][inside] = distance[inside]
    to_unlabelled = ndimage.distance_transform_edt(np.pad(~unlabelled, 1), sampling=spacing_um_zyx)
    middle = (slice(1, -1),) * 3
    return to_border[middle], to_unlabelled[middle].astype(np.float32)
