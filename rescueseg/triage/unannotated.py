"""What is not annotated in a patch: it hides the structure as the world beyond the patch's faces does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import Spacing
from rescueseg.triage.slenderness import faces_of
from rescueseg.triage.thickness import Faces

Mask = npt.NDArray[np.bool_]
Place = tuple[slice, ...]

_AROUND = np.ones((3, 3, 3), bool)


def annotated_place(unknown: Mask) -> Place:
    """Return the smallest box that holds all that is annotated; everything where nothing is.

    Parameters
    ----------
    unknown : ndarray of bool, zyx
        Not annotated.

    Examples
    --------
    >>> unknown = np.ones((4, 4, 8), bool)
    >>> unknown[1:3, :, 2:7] = False
    >>> annotated_place(unknown)
    (slice(1, 3, None), slice(0, 4, None), slice(2, 7, None))
    """
    places = ndimage.find_objects((~unknown).astype(np.uint8))
    return places[0] if places else tuple(slice(0, n) for n in unknown.shape)


def close_gaps(labels: npt.NDArray[Any], unknown: Mask, spacing_um_zyx: Spacing) -> tuple[npt.NDArray[Any], Mask]:
    """Give voxels that are not annotated the label of the nearest annotated one, where the gap is narrow.

    Narrow is a gap of one or two voxels, such as a doubtful rim: it hides no more than that of any object. An axis along
    which voxels are more than twice as long as along the finest does not count.

    Parameters
    ----------
    labels : ndarray, zyx
        Numbered objects or classes; 0 is background.
    unknown : ndarray of bool, zyx
        Not annotated; beyond the patch's faces it goes on.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    labels : ndarray, zyx
        With the narrow gaps closed, 0 in the wide ones.
    unknown : ndarray of bool, zyx
        The wide gaps.

    Examples
    --------
    Of two gaps in a line the one of two voxels is closed:

    >>> labels = np.array([[[3, 3, 0, 0, 3, 0, 0, 0, 3]]])
    >>> closed, wide = close_gaps(labels, labels == 0, (1, 1, 1))
    >>> closed[0, 0].tolist(), wide[0, 0].tolist().count(True)
    ([3, 3, 3, 3, 3, 0, 0, 0, 3], 3)
    """
    if not unknown.any() or unknown.all():
        return np.where(unknown, 0, labels), unknown
    finest = min(spacing_um_zyx)
    block = np.ones([3 if s <= 2 * finest else 1 for s in spacing_um_zyx], bool)
    opened = ndimage.binary_opening(np.pad(unknown, 1, mode="edge"), block)
    wide: Mask = np.asarray(opened[1:-1, 1:-1, 1:-1] & unknown, np.bool_)
    return np.where(wide, 0, _nearest(labels, unknown, spacing_um_zyx)), wide


def extended(mask: Mask, unknown: Mask, spacing: Spacing) -> Mask:
    """Return a mask that goes on where it is not annotated: each such voxel is as the nearest annotated one is."""
    return _nearest(mask, unknown, spacing) if unknown.any() and not unknown.all() else mask


def _nearest(values: npt.NDArray[Any], unknown: Mask, spacing: Spacing) -> npt.NDArray[Any]:
    z, y, x = ndimage.distance_transform_edt(unknown, sampling=spacing, return_distances=False, return_indices=True)
    nearest: npt.NDArray[Any] = values[z, y, x]
    return nearest


def visible_object(
    numbers: npt.NDArray[np.int32], number: int, place: Place, unknown: Mask | None, spacing: Spacing
) -> tuple[Mask, Faces, bool]:
    """Return an object as far as a patch shows it, the sides on which it may go on, and whether it is hidden on any.

    Parameters
    ----------
    numbers : ndarray of int32, zyx
        Numbered objects of the whole patch.
    number : int
        Of the object.
    place : tuple of slice
        Its bounding box.
    unknown : ndarray of bool, zyx, optional
        Not annotated.
    spacing : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    mask : ndarray of bool, zyx
        The object in its bounding box. Where it touches what is not annotated it goes on as at a face of the patch:
        what is nearest to it there counts as its own, up to a voxel beyond the box.
    faces : sequence of (bool, bool)
        Sides of that box beyond which the object may go on: faces of the patch, or what is not annotated.
    hidden : bool
        Whether it touches what is not annotated.
    """
    mask = numbers[place] == number
    wide = tuple(slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(place, numbers.shape, strict=True))
    whole = numbers[wide] == number
    if unknown is None or not (ndimage.binary_dilation(whole, _AROUND) & unknown[wide]).any():
        return mask, faces_of(place, numbers.shape), False
    solid = extended(whole, unknown[wide], spacing)
    inner = ndimage.find_objects(solid.astype(np.uint8))[0]
    return solid[inner], faces_of(inner, solid.shape), True
