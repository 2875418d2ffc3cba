"""Uncertainty of a predictive distribution, voxel by voxel. NumPy only.

A predictive distribution is a set of members: Monte-Carlo dropout samples [1]_ under each of several test-time
symmetries [2]_ of each network of an ensemble [4]_. A member ``m`` gives class probabilities ``p[m]`` over background and
K classes; ``p̄`` is their mean and ``H[p] = -Σ_c p_c ln p_c`` in nats. Then

- predictive entropy ``H[p̄]``: the whole uncertainty, at most ``ln(K + 1)``;
- expected entropy ``mean H[p[m]]``: what each member itself is uncertain of (ambiguous image);
- mutual information ``H[p̄] - mean H[p[m]]``: what the members disagree on (BALD [3]_);
- Monte-Carlo variance: the variance over the samples of one symmetry, averaged over symmetries and classes;
- test-time variance: the variance over the symmetries of one network of the mean over their samples, averaged over
  networks and classes;
- ensemble variance: the variance over networks of the mean over their members, averaged over classes.

By the law of total variance the last three add up to the variance over all members. Variances are those of the
population (divided by the number of members, so a single member has none).

References
----------
.. [1] Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016, arXiv:1506.02142.
.. [2] Wang et al., Aleatoric uncertainty estimation with test-time augmentation for medical image segmentation,
   Neurocomputing 338 (2019), doi:10.1016/j.neucom.2019.01.103.
.. [3] Houlsby et al., Bayesian active learning for classification and preference learning, 2011, arXiv:1112.5745.
.. [4] Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS
   2017, arXiv:1612.01474.
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

    Examples
    --------
    A voxel of which nothing is known, and a certain one:

    >>> entropy(np.array([[0.5, 1.0], [0.5, 0.0]])).round(3).tolist()
    [0.693, 0.0]
    """
    logs = np.maximum(probabilities, probabilities.dtype.type(_TINY))
    np.log(logs, out=logs)
    logs *= probabilities
    total: Float = logs.sum(axis=axis)
    return np.maximum(-total, 0, out=total)


class _Group:
    """Mean of members and sums of squared deviations, merged as by Chan et al. (doi:10.1080/00031305.1983.10483115)."""

    def __init__(self, key: tuple[int, ...] = ()) -> None:
        self.key = key
        self.count = 0
        self.mean = np.zeros((), np.float32)
        self.squares: list[Float32] = []
        """Sums over classes' means within the groups below, level by level, then between them."""

    def merge(self, mean: Float32, count: int, squares: list[Float32]) -> None:
        """Take in a group of the level below; its arrays are kept."""
        if not self.count:
            self.mean, self.squares = mean, [*squares, np.zeros(mean.shape[1:], np.float32)]
        else:
            share = np.float32(count / (self.count + count))
            delta = mean - self.mean
            self.mean += delta * share
            for own, other in zip(self.squares, squares, strict=False):
                own += other
            np.square(delta, out=delta)
            self.squares[-1] += delta.mean(axis=0) * (np.float32(self.count) * share)
        self.count += count


class MemberStatistics:
    """The mean, the entropies and the variances of members that come one at a time; no two are in memory together.

    Members of one symmetry must follow one another, and so must the symmetries of one network. Should the groups have
    different numbers of members, each weighs by its number, so that the mean is that of all members and the three
    variances add up to the total one.

    Examples
    --------
    Two dropout samples of background and one class, in one voxel; they are certain and disagree:

    >>> statistics = MemberStatistics()
    >>> statistics.add(0, np.array([1.0, 0.0]).reshape(2, 1, 1, 1))
    >>> statistics.add(0, np.array([0.0, 1.0]).reshape(2, 1, 1, 1))
    >>> result = statistics.result()
    >>> result["probability"].ravel().tolist()
    [0.5, 0.5]
    >>> round(result["mutual_information"].item(), 3), result["mc_variance"].item(), result["tta_variance"].item()
    (0.693, 0.25, 0.0)
    """

    def __init__(self) -> None:
        self._closed: set[tuple[int, ...]] = set()
        self._entropy: Float32 | None = None
        self._samples, self._symmetries, self._networks = _Group(), _Group(), _Group()

    def add(self, symmetry: int, probabilities: Float, network: int = 0) -> None:
        """Take in one member.

        Parameters
        ----------
        symmetry : int
            Its symmetry.
        probabilities : ndarray, shape (K + 1, z, y, x)
            Its class probabilities; not kept.
        network : int
            Its network.

        Raises
        ------
        ValueError
            If members of another symmetry or network came in between.
        """
        p = np.asarray(probabilities, dtype=np.float32)
        if self._samples.key != (network, symmetry):
            self._open(network, symmetry)
        own = entropy(p)
        if self._entropy is None:
            self._entropy = own
        else:
            self._entropy += own
        self._samples.merge(p if self._samples.count else p.copy(), 1, [])

    def _open(self, network: int, symmetry: int) -> None:
        """Begin a symmetry, and a network where it is another one."""
        self._close_symmetry((network, symmetry))
        if self._symmetries.key != (network,):
            self._close_network((network,))
        for key, name in (((network,), f"network {network}"), ((network, symmetry), f"symmetry {symmetry}")):
            if key in self._closed:
                raise ValueError(f"the members of {name} do not follow one another")

    def _close_symmetry(self, following: tuple[int, ...]) -> None:
        group, self._samples = self._samples, _Group(following)
        self._closed.add(group.key)
        if group.count:
            self._symmetries.merge(group.mean, group.count, group.squares)

    def _close_network(self, following: tuple[int, ...]) -> None:
        group, self._symmetries = self._symmetries, _Group(following)
        self._closed.add(group.key)
        if group.count:
            self._networks.merge(group.mean, group.count, group.squares)

    def result(self) -> dict[str, Float32]:
        """Return the statistics of all members; none can be added after it.

        Returns
        -------
        dict
            "probability" (K + 1, z, y, x): the mean; "predictive_entropy", "expected_entropy", "mutual_information",
            "mc_variance", "tta_variance", "ensemble_variance" (z, y, x). All float32.

        Raises
        ------
        ValueError
            If there was no member.
        """
        self._close_symmetry(())
        self._close_network(())
        if self._entropy is None:
            raise ValueError("no members were added")
        whole = self._networks
        count = np.float32(whole.count)
        predictive, expected = entropy(whole.mean), self._entropy / count
        mc, tta, ensemble = (squares / count for squares in whole.squares)
        return {
            "probability": whole.mean,
            "predictive_entropy": predictive,
            "expected_entropy": expected,
            "mutual_information": np.maximum(predictive - expected, np.float32(0)),
            "mc_variance": mc,
            "tta_variance": tta,
            "ensemble_variance": ensemble,
        }
