"""From score maps to patch scores: box sums that may be gathered block by block.

A patch score is the mean of a voxel score over the patch; how voxels are aggregated matters more than which
uncertainty they carry (Kahl et al., ValUES, arXiv 2401.08501). Sums over the parts of a box that lie in
different blocks add up to the sum over the box, so no map is ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def box_bounds(boxes: Sequence[Box]) -> tuple[Integers, Integers]:
    """Return the starts and stops of boxes: two int64 arrays of shape (n, 3)."""
    starts = np.array([box.offset_zyx for box in boxes], dtype=np.int64).reshape(-1, 3)
    return starts, starts + np.array([box.shape_zyx for box in boxes], dtype=np.int64).reshape(-1, 3)


def box_sums(array: npt.NDArray[Any], offset_zyx: ZYX, starts: Integers, stops: Integers) -> Floats:
    """Sum a block of a map over the part of each box that lies in it, by one integral image.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        The block; any real dtype, summed in float64.
    offset_zyx : tuple of int
        Where the block begins in the volume.
    starts, stops : ndarray of int64, shape (n, 3)
        Bounds of the boxes in the volume (see `box_bounds`); they may reach beyond the block.

    Returns
    -------
    ndarray of float64, shape (n,)
        0 for a box that does not touch the block.
    """
    table = np.zeros([n + 1 for n in array.shape], dtype=np.float64)
    inner = table[1:, 1:, 1:]
    inner[...] = array
    for axis in range(3):
        np.cumsum(inner, axis=axis, out=inner)
    low = np.clip(starts - np.array(offset_zyx), 0, array.shape)
    high = np.maximum(np.clip(stops - np.array(offset_zyx), 0, array.shape), low)
    total = np.zeros(len(starts), dtype=np.float64)
    for corner in np.ndindex(2, 2, 2):
        z, y, x = (np.where(c, high[:, axis], low[:, axis]) for axis, c in enumerate(corner))
        total += (-1.0) ** (3 - sum(corner)) * table[z, y, x]
    return total


def touching(block: Box, starts: Integers, stops: Integers) -> npt.NDArray[np.int64]:
    """Return the indices of the boxes that share a voxel with a block."""
    return np.flatnonzero(np.all((starts < block.stop_zyx) & (stops > block.offset_zyx), axis=1))


def class_entropy(entropy: npt.NDArray[Any], probability: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the class-wise predictive entropy of ClaSP: the entropy weighted by the mean probability of a class.

    Parameters
    ----------
    entropy : ndarray, shape (z, y, x)
        Predictive entropy in nats.
    probability : ndarray, shape (z, y, x)
        Mean probability of the class.

    References
    ----------
    ClaSP PE, arXiv 2601.13677.
    """
    product: npt.NDArray[np.float32] = np.asarray(entropy, np.float32) * np.asarray(probability, np.float32)
    return product


def power_noise(score: Floats, beta: float, rng: np.random.Generator) -> Floats:
    """Return log(score) + Gumbel(0, 1/β): the top k are a sample without replacement, weighted by score^β.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Not negative; 0 becomes minus infinity.
    beta : float
        Above 0; the larger, the closer to the plain order.
    rng : numpy.random.Generator
        Source of the noise.

    References
    ----------
    Kirsch et al., Stochastic Batch Acquisition, TMLR 2023 (openreview vcHwQyNBjW).
    """
    with np.errstate(divide="ignore"):
        logarithm = np.log(np.maximum(score, 0.0))
    noisy: Floats = logarithm + rng.gumbel(0.0, 1.0 / beta, size=score.shape)
    return noisy
