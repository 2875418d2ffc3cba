"""Connected components and holes of masks, by cc3d; numbered like scipy's and scikit-image's, so that results stay.

Distances stay with scipy where they are computed: ``edt`` has single precision and breaks ties at thresholds otherwise, and
``fill-voids`` fills some voxels of the border. ``tests/benchmarks/libraries.py`` measures both.
"""

from __future__ import annotations

from typing import Any, Literal

import cc3d
import numpy as np
import numpy.typing as npt

Connectivity = Literal[6, 18, 26]
"""How many neighbours a voxel has: over its faces, over faces and edges, over corners too."""
Numbers = npt.NDArray[np.int32]


def label_components(values: npt.NDArray[Any], connectivity: Connectivity) -> tuple[Numbers, int]:
    """Return the connected components of a mask, or of each value of an array; values that touch stay apart.

    Parameters
    ----------
    values : ndarray of bool or integers, zyx
        A mask, classes or objects; 0 is background.
    connectivity : {6, 18, 26}
        Which voxels are neighbours.

    Returns
    -------
    labels : ndarray of int32, zyx
        1…n in the order of each component's first voxel, row by row; 0 outside.
    count : int
        n.

    References
    ----------
    Wu, Otoo & Suzuki 2005, https://www.osti.gov/servlets/purl/929013; in 3D as cc3d computes it.

    Examples
    --------
    >>> labels, count = label_components(np.array([[[7, 7, 0, 7, 9]]]), 26)
    >>> labels.tolist(), count
    ([[[1, 1, 0, 2, 3]]], 3)
    """
    if not values.size:
        return np.zeros(values.shape, np.int32), 0
    numbers = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if numbers.dtype == np.bool_:
        numbers = numbers.view(np.uint8)  # cc3d 4.1.1 fails on flat bool arrays with connectivity 26
    labels, count = cc3d.connected_components(numbers, connectivity=connectivity, out_dtype=np.uint32, return_N=True)
    return labels.view(np.int32), int(count)


def fill_holes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return a mask with its holes filled: background from which no path over faces leads out of the box.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        May be empty.

    Examples
    --------
    A cube of 3 × 3 × 3 voxels without its middle voxel:

    >>> cube = np.ones((3, 3, 3), bool)
    >>> cube[1, 1, 1] = False
    >>> int(fill_holes(cube).sum())
    27
    """
    background = np.ones([n + 2 for n in mask.shape], np.bool_)
    inner = (slice(1, -1),) * mask.ndim
    background[inner] = ~mask
    outside = 1  # the first voxel of all lies beyond the box
    return np.asarray(label_components(background, 6)[0][inner] != outside)
