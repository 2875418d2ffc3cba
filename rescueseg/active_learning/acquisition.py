"""From score maps to patch scores: box sums that may be gathered block by block.

A patch score is the mean of a voxel score over the patch; how voxels are aggregated matters more than which
uncertainty they carry (Kahl et al., ValUES, arXiv 2401.08501). Sums over the parts of a box that lie in
different blocks add up to the sum over the box, so no map is ever in memory as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Floats


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
