"""Shapes by distances in micrometre: what lies between two pieces, and what a ball fits into. Exact, whatever is around.

Squares of distances are those of scipy, in double precision. A comparison leaves a millionth of the length, so that how a
distance was summed up never decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from rescueseg.geometry import ZYX, Spacing, zyx

Mask = npt.NDArray[np.bool_]
_ROUNDING = 1e-6


def reach_voxels(reach_um: float, spacing_um_zyx: Spacing) -> ZYX:
    """Return how many voxels lie within a distance along each axis.

    Examples
    --------
    >>> reach_voxels(1.0, (0.3, 0.1, 0.1))
    (3, 10, 10)
    """
    return zyx(math.floor(reach_um * (1 + _ROUNDING) / s) for s in spacing_um_zyx)


def between(pieces: npt.NDArray[Any], candidates: Mask, spacing_um_zyx: Spacing, reach_um: float) -> Mask:
    """Return the candidates that lie on a way from one piece to another.

    Parameters
    ----------
    pieces : ndarray of int, zyx
        Numbered pieces, 0 elsewhere.
    candidates : ndarray of bool, zyx
        Voxels outside the pieces.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    reach_um : float
        The longest way, from the centre of a piece's last voxel to that of the other's first: the distances of a candidate to
        the two pieces nearest to it add up to no more.

    Returns
    -------
    ndarray of bool, zyx

    Examples
    --------
    Two gaps of two and of three voxels; the longer way is 4 µm:

    >>> row = np.array([[[1, 0, 0, 2, 0, 0, 0, 3]]])
    >>> between(row, row == 0, (1, 1, 1), 3.0).astype(int).tolist()
    [[[0, 1, 1, 0, 0, 0, 0, 0]]]
    """
    result = np.zeros(pieces.shape, np.bool_)
    at = np.flatnonzero(candidates)
    mask = pieces > 0
    numbers, dense_numbers = np.unique(pieces[mask], return_inverse=True)
    if not at.size or len(numbers) < 2:
        return result
    limit = reach_um * (1 + _ROUNDING)
    dense = np.zeros(pieces.shape, np.int32)
    dense[mask] = dense_numbers + 1
    index = np.full(pieces.shape, -1, np.int64)
    index[candidates] = np.arange(at.size)
    nearest, second = np.full(at.size, np.inf), np.full(at.size, np.inf)
    margin = reach_voxels(reach_um, spacing_um_zyx)
    for number, place in enumerate(ndimage.find_objects(dense), start=1):
        around = tuple(slice(max(0, p.start - m), p.stop + m) for p, m in zip(place, margin, strict=True))
        near = np.argwhere(index[around] >= 0)
        if not near.size:
            continue
        rim = np.argwhere(_rim(dense[around] == number))
        scale = np.array(spacing_um_zyx)
        distances, _ = cKDTree(rim * scale).query(near * scale, distance_upper_bound=limit)
        mine = index[around][tuple(near.T)]
        second[mine] = np.minimum(second[mine], np.maximum(nearest[mine], distances))
        nearest[mine] = np.minimum(nearest[mine], distances)
    result.ravel()[at[nearest + second <= limit]] = True
    return result


def _rim(mask: Mask) -> Mask:
    """Return the voxels of a mask that have a neighbour outside it: the nearest of a mask to any voxel outside is one."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=1))


def opening(mask: Mask, spacing_um_zyx: Spacing, width_um: float) -> Mask:
    """Return what of a mask is at least so wide: the union of all balls of this diameter that fit into it.

    What a ball covers are the voxels whose centres lie less than half the width from its own, so that what is just so wide
    stays. Nothing is known beyond the array's faces: balls are cut there, and a structure that goes on is no narrower.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Any mask.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    width_um : float
        The diameter.

    Returns
    -------
    ndarray of bool, zyx

    References
    ----------
    Serra, Image Analysis and Mathematical Morphology, 1982.

    Examples
    --------
    Bars of one, two and three voxels, closed above and below by faces:

    >>> bars = np.array([[[0, 1, 0, 1, 1, 0, 1, 1, 1, 0]]], bool)
    >>> opening(bars, (1, 1, 1), 3.0).astype(int).tolist()
    [[[0, 0, 0, 0, 0, 0, 1, 1, 1, 0]]]
    """
    if mask.all() or not mask.any():
        return mask.copy()
    limit = width_um / 2 * (1 - _ROUNDING)
    centres = _distance(mask, spacing_um_zyx) >= limit
    if not centres.any():
        return np.zeros_like(mask)
    return np.asarray(_distance(~centres, spacing_um_zyx) < limit)


def _distance(mask: Mask, spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the distance of each voxel of a mask to the nearest outside it, which must exist."""
    if not mask.any():
        return np.zeros(mask.shape)
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))
