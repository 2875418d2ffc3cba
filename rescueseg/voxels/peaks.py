"""Peaks of a map: voxels that are higher than all their neighbours."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt


def find_peaks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return which voxels are above zero and higher than all 26 neighbours; of equal neighbours the first one counts as higher.

    A peak of a volume is one of every box that holds it; a box may have more of them at its faces.

    Parameters
    ----------
    values : ndarray of float, zyx
        The map.

    Returns
    -------
    ndarray of bool, zyx

    Examples
    --------
    >>> find_peaks(np.array([[[0.2, 0.9, 0.9, 0.1, 0.3, 0.0]]])).astype(int).tolist()
    [[[0, 1, 0, 0, 1, 0]]]
    """
    values = np.pad(values.astype(np.float32, copy=False), 1, constant_values=-np.inf)
    middle = values[1:-1, 1:-1, 1:-1]
    peaks = middle > 0
    for direction in itertools.product((-1, 0, 1), repeat=3):
        z, y, x = (slice(1 + d, n - 1 + d) for d, n in zip(direction, values.shape, strict=True))
        if direction < (0, 0, 0):
            peaks &= middle > values[z, y, x]
        elif direction > (0, 0, 0):
            peaks &= middle >= values[z, y, x]
    return peaks
