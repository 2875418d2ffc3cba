"""Acquisition functions: the entropy of a class, voxel by voxel, and the noise of a stochastic batch.

A patch score is the mean of a voxel score over the patch (`rescueseg.inference.box_means`); how voxels are aggregated
matters more than which uncertainty they carry (Kahl et al., ValUES, arXiv 2401.08501).
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

    Examples
    --------
    Two voxels of the same entropy, 0.5 nat; only the second may belong to the class:

    >>> class_entropy(np.full((1, 1, 2), 0.5), np.array([[[0.0, 0.5]]])).tolist()
    [[[0.0, 0.25]]]
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

    Examples
    --------
    A score of 0 comes last; a large beta leaves the others in their order:

    >>> noisy = power_noise(np.array([0.0, 0.2, 0.8]), 100.0, np.random.default_rng(0))
    >>> np.argsort(-noisy).tolist(), bool(np.isneginf(noisy[0]))
    ([2, 1, 0], True)
    """
    with np.errstate(divide="ignore"):
        logarithm = np.log(np.maximum(score, 0.0))
    noisy: Floats = logarithm + rng.gumbel(0.0, 1.0 / beta, size=score.shape)
    return noisy
