"""Uncertainty of a predictive distribution, voxel by voxel. NumPy only.

A predictive distribution is a set of members: Monte-Carlo dropout samples [1]_ under each of several test-time
symmetries [2]_. Member ``m`` under symmetry ``s`` gives class probabilities ``p[s, m]`` over background and K classes;
``p̄`` is their mean and ``H[p] = -Σ_c p_c ln p_c`` in nats. Then

- predictive entropy ``H[p̄]``: everything the model does not know, at most ``ln(K + 1)``;
- expected entropy ``mean H[p[s, m]]``: what each member itself leaves open (ambiguous image);
- mutual information ``H[p̄] - mean H[p[s, m]]``: what the members disagree on (BALD [3]_);
- Monte-Carlo variance: the variance over the samples of one symmetry, averaged over symmetries and classes;
- test-time variance: the variance over symmetries of the mean over their samples, averaged over classes.

By the law of total variance the last two add up to the variance over all members. Variances are those of the
population (divided by the number of members, so a single member has none).

References
----------
.. [1] Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016, arXiv:1506.02142.
.. [2] Wang et al., Aleatoric uncertainty estimation with test-time augmentation for medical image segmentation,
   Neurocomputing 338 (2019), doi:10.1016/j.neucom.2019.01.103.
.. [3] Houlsby et al., Bayesian active learning for classification and preference learning, 2011, arXiv:1112.5745.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]

_TINY = np.float32(np.finfo(np.float32).tiny)


def entropy(probabilities: Float, axis: int = 0) -> Float:
    """Return H[p] in nats, with ``0 ln 0 = 0``.

    Parameters
    ----------
    probabilities : ndarray
        Class probabilities along `axis`.
    axis : int
        Class axis; it is summed over.
    """
    logs = np.maximum(probabilities, probabilities.dtype.type(_TINY))
    np.log(logs, out=logs)
    logs *= probabilities
    total: Float = logs.sum(axis=axis)
    return np.maximum(-total, 0, out=total)


def predictive_entropy(members: Float) -> Float:
    """Return H of the mean probability, in nats.

    Parameters
    ----------
    members : ndarray, shape (M, K + 1, …)
        Class probabilities of M members.

    Returns
    -------
    ndarray, shape (…)
        Between 0 and ln(K + 1).
    """
    return entropy(members.mean(axis=0))


def expected_entropy(members: Float) -> Float:
    """Return the mean over members of H[p], in nats; shapes as in `predictive_entropy`."""
    mean: Float = entropy(members, axis=1).mean(axis=0)
    return mean


def mutual_information(members: Float) -> Float:
    """Return predictive minus expected entropy (BALD), in nats, never negative; shapes as in `predictive_entropy`."""
    difference = predictive_entropy(members) - expected_entropy(members)
    return np.maximum(difference, 0, out=difference)


def mc_variance(members: Float) -> Float:
    """Return the variance over dropout samples, averaged over symmetries and classes.

    Parameters
    ----------
    members : ndarray, shape (S, M, K + 1, …)
        Class probabilities of M samples under each of S symmetries.

    Returns
    -------
    ndarray, shape (…)
        Between 0 and 1/4.
    """
    variance: Float = members.var(axis=1).mean(axis=(0, 1))
    return variance


def tta_variance(members: Float) -> Float:
    """Return the variance over symmetries of the mean over samples, averaged over classes; as `mc_variance`."""
    variance: Float = members.mean(axis=1).var(axis=0).mean(axis=0)
    return variance


class MemberStatistics:
    """All of the above from members that come one at a time, so that no two are in memory together.

    Members of one symmetry must follow one another. Should the symmetries have different numbers of samples, each
    weighs by its number, so that the mean is that of all members and the two variances add up to the total one.
    Means and variances are updated as by Welford (doi:10.1080/00401706.1962.10490022).
    """

    def __init__(self) -> None:
        self._count = 0
        self._symmetries: list[int] = []
        self._samples = 0
        self._entropy: Float32 | None = None
        self._sample_mean: Float32 | None = None
        self._sample_squares: Float32 | None = None
        self._mean: Float32 | None = None
        self._mc_squares: Float32 | None = None
        self._tta_squares: Float32 | None = None

    def add(self, symmetry_index: int, probabilities: Float) -> None:
        """Take in one member.

        Parameters
        ----------
        symmetry_index : int
            Its symmetry.
        probabilities : ndarray, shape (K + 1, z, y, x)
            Its class probabilities; not kept.

        Raises
        ------
        ValueError
            If members of another symmetry came in between.
        """
        p = np.asarray(probabilities, dtype=np.float32)
        if not self._symmetries or self._symmetries[-1] != symmetry_index:
            if symmetry_index in self._symmetries:
                raise ValueError(f"the members of symmetry {symmetry_index} do not follow one another")
            self._close_symmetry()
            self._symmetries.append(symmetry_index)
        own = entropy(p)
        if self._entropy is None:
            self._entropy = own
        else:
            self._entropy += own
        self._samples += 1
        if self._sample_mean is None or self._sample_squares is None:
            self._sample_mean, self._sample_squares = p.copy(), np.zeros(p.shape[1:], np.float32)
            return
        delta = p - self._sample_mean
        self._sample_mean += delta / np.float32(self._samples)
        delta *= p - self._sample_mean
        self._sample_squares += delta.mean(axis=0)

    def _close_symmetry(self) -> None:
        """Merge the samples of the symmetry that just ended into the sums over symmetries (Chan's update)."""
        if self._sample_mean is None or self._sample_squares is None:
            return
        if self._mean is None or self._mc_squares is None or self._tta_squares is None:
            self._mean, self._mc_squares = self._sample_mean, self._sample_squares
            self._tta_squares = np.zeros_like(self._mc_squares)
        else:
            share = np.float32(self._samples / (self._count + self._samples))
            delta = self._sample_mean - self._mean
            self._mean += delta * share
            self._mc_squares += self._sample_squares
            np.square(delta, out=delta)
            self._tta_squares += delta.mean(axis=0) * (np.float32(self._count) * share)
        self._count += self._samples
        self._samples, self._sample_mean, self._sample_squares = 0, None, None

    def result(self) -> dict[str, Float32]:
        """Return the statistics of the members so far.

        Returns
        -------
        dict
            "probability" (K + 1, z, y, x): the mean; "predictive_entropy", "expected_entropy", "mutual_information",
            "mc_variance", "tta_variance" (z, y, x). All float32.

        Raises
        ------
        ValueError
            If there was no member.
        """
        self._close_symmetry()
        if self._mean is None or self._entropy is None or self._mc_squares is None or self._tta_squares is None:
            raise ValueError("no members were added")
        count = np.float32(self._count)
        predictive, expected = entropy(self._mean), self._entropy / count
        return {
            "probability": self._mean,
            "predictive_entropy": predictive,
            "expected_entropy": expected,
            "mutual_information": np.maximum(predictive - expected, np.float32(0)),
            "mc_variance": self._mc_squares / count,
            "tta_variance": self._tta_squares / count,
        }
