"""Connectivity of a mask against that of the truth: centreline Dice and Betti numbers. Pure functions on masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import euler_number

from rescueseg.records import Record
from rescueseg.voxels.components import label_components
from rescueseg.voxels.skeleton import skeleton_of

Mask = npt.NDArray[np.bool_]


class Topology(Record):
    """Counts of one class in one box."""

    found_skeleton: int
    """Voxels of the prediction's skeleton."""
    found_inside: int
    """Of these, how many lie in the truth."""
    true_skeleton: int
    """Voxels of the truth's skeleton."""
    true_inside: int
    """Of these, how many lie in the prediction."""
    found_betti: tuple[int, int, int]
    true_betti: tuple[int, int, int]


def compare_topology(prediction: Mask, truth: Mask) -> Topology:
    """Compare the topology of two masks.

    Parameters
    ----------
    prediction, truth : ndarray of bool, zyx
        Masks of one class.

    Returns
    -------
    Topology
        Sums over boxes give the centreline Dice [1]_; see `rescueseg.voxels.skeleton.skeleton_of`.

    References
    ----------
    .. [1] Shit et al., clDice, CVPR 2021, arXiv:2003.07311.
    """
    predicted_skeleton, true_skeleton = skeleton_of(prediction), skeleton_of(truth)
    return Topology(
        found_skeleton=int(predicted_skeleton.sum()),
        found_inside=int((predicted_skeleton & truth).sum()),
        true_skeleton=int(true_skeleton.sum()),
        true_inside=int((true_skeleton & prediction).sum()),
        found_betti=betti_numbers(prediction),
        true_betti=betti_numbers(truth),
    )


def betti_numbers(mask: Mask) -> tuple[int, int, int]:
    """Count the pieces, tunnels and cavities of a mask.

    Voxels that share a face, an edge or a corner are connected; what is beyond the box counts as background, so that an
    object cut by the box's face is closed there.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        May be empty.

    Returns
    -------
    tuple of int
        b0 pieces, b1 tunnels, b2 cavities; b1 follows from the Euler number b0 − b1 + b2.

    Examples
    --------
    A ring: one piece with one tunnel.

    >>> ring = np.ones((1, 3, 3), bool)
    >>> ring[0, 1, 1] = False
    >>> betti_numbers(ring)
    (1, 1, 0)
    """
    if not mask.any():
        return 0, 0, 0
    padded = np.pad(mask, 1)
    pieces = label_components(padded, 26)[1]
    cavities = label_components(~padded, 6)[1] - 1
    euler: Any = euler_number(padded, connectivity=3)
    return pieces, pieces + cavities - int(euler), cavities
