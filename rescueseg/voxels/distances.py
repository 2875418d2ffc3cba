"""Distances to the border of a mask, in whole numbers: to the last bit the same wherever the array was cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_UNIT = 1 << 30
"""Square of the largest distance."""


def capped_distance(
    mask: npt.NDArray[np.bool_], spacing_um_zyx: tuple[float, float, float], cap_um: float
) -> npt.NDArray[np.float32]:
    """Return the distance of each voxel of a mask to the nearest voxel outside it, up to a largest one.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        What lies beyond the array counts as unknown, not as outside.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    cap_um : float
        All larger distances count as this one; at least the voxel size.

    Returns
    -------
    ndarray of float32, zyx
        In micrometre; 0 outside. A millionth is left to rounding: squares of distances are added up in steps of a 2³⁰th of
        the largest.

    References
    ----------
    Felzenszwalb & Huttenlocher 2012, doi:10.4086/toc.2012.v008a019: axis by axis; within a cap, plain minima are quicker.

    Examples
    --------
    >>> capped_distance(np.array([[[0, 1, 1, 1, 1]]], bool), (1.0, 0.5, 0.5), 1.5).tolist()
    [[[0.0, 0.5, 1.0, 1.5, 1.5]]]
    """
    squares = np.where(mask, np.int32(_UNIT), np.int32(0))
    steps = [round((s / cap_um) ** 2 * _UNIT) for s in spacing_um_zyx]
    for axis in (2, 1, 0):
        lines = np.moveaxis(squares, axis, 0)
        for other in range(lines.shape[1]):
            part = lines[:, other]
            if part.any():
                part[...] = _along_first(np.ascontiguousarray(part), steps[axis])
    distances = np.empty(mask.shape, np.float32)
    for plane, whole in zip(distances, squares, strict=True):
        plane[...] = np.sqrt(whole * (1 / _UNIT)) * cap_um
    return distances


def _along_first(squares: npt.NDArray[np.int32], step: int) -> npt.NDArray[np.int32]:
    """Return the least of each square and of all others along the first axis with the square of their distance added."""
    least, offset = squares.copy(), 1
    while offset < len(squares) and offset * offset * step < int(least.max()):
        further = squares + np.int32(offset * offset * step)
        np.minimum(least[offset:], further[:-offset], out=least[offset:])
        np.minimum(least[:-offset], further[offset:], out=least[:-offset])
        offset += 1
    return least
