"""Uncertainty of a predictive distribution, voxel by voxel, on the device that the members are on.

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

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def entropy(probabilities: Tensor, axis: int = 1) -> Tensor:
    """Return H[p] in nats, with ``0 ln 0 = 0``.

    Parameters
    ----------
    probabilities : Tensor of float32
        Class probabilities along `axis`.
    axis : int
        Class axis; it is summed over.

    Examples
    --------
    A voxel of which nothing is known, and a certain one:

    >>> [round(value, 3) for value in entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist()]
    [0.693, 0.0]
    """
    logs = probabilities.clamp_min(_TINY).log_()
    return (0.0 - logs.mul_(probabilities).sum(axis)).clamp_min_(0)


class _Group:
    """Mean of members and sums of squared deviations, merged as by Chan et al. (doi:10.1080/00031305.1983.10483115)."""

    def __init__(self, key: tuple[int, ...] = ()) -> None:
        self.key = key
        self.count = 0
        self.mean = torch.zeros(())
        self.squares: list[Tensor] = []
        """Sums over classes' means within the groups below, level by level, then between them."""

    def merge(self, mean: Tensor, count: int, squares: list[Tensor]) -> None:
        """Take in a group of the level below; tensors that it was given are not changed."""
        if not self.count:
            self.mean, self.squares = mean, [*squares, torch.zeros_like(mean[:, 0])]
        else:
            share = count / (self.count + count)
            delta = mean - self.mean
            self.mean = torch.add(self.mean, delta, alpha=share)
            for own, other in zip(self.squares, squares, strict=False):
                own += other
            self.squares[-1].add_(delta.square_().mean(dim=1), alpha=self.count * share)
        self.count += count


class MemberStatistics:
    """The mean, the entropies and the variances of members that come one at a time; no two are in memory together.

    Members of one symmetry must follow one another, and so must the symmetries of one network. Should the groups have
    different numbers of members, each weighs by its number, so that the mean is that of all members and the three
    variances add up to the total one.

    Examples
    --------
    Two dropout samples of background and one class, in one voxel of one window; they are certain and disagree:

    >>> statistics = MemberStatistics()
    >>> statistics.add(0, torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1))
    >>> statistics.add(0, torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1))
    >>> result = statistics.result()
    >>> result["probability"].ravel().tolist()
    [0.5, 0.5]
    >>> round(result["mutual_information"].item(), 3), result["mc_variance"].item(), result["tta_variance"].item()
    (0.693, 0.25, 0.0)
    """

    def __init__(self) -> None:
        self._closed: set[tuple[int, ...]] = set()
        self._entropy: Tensor | None = None
        self._samples, self._symmetries, self._networks = _Group(), _Group(), _Group()

    @property
    def members(self) -> int:
        """How many members the closed groups and the open one hold."""
        return self._networks.count + self._symmetries.count + self._samples.count

    def add(self, symmetry: int, probabilities: Tensor, network: int = 0) -> None:
        """Take in one member.

        Parameters
        ----------
        symmetry : int
            Its symmetry.
        probabilities : Tensor of float32, shape (n, K + 1, z, y, x)
            Its class probabilities in n windows; neither changed nor kept.
        network : int
            Its network.

        Raises
        ------
        ValueError
            If members of another symmetry or network came in between.
        """
        if self._samples.key != (network, symmetry):
            self._open(network, symmetry)
        own = entropy(probabilities)
        self._entropy = own if self._entropy is None else self._entropy.add_(own)
        self._samples.merge(probabilities if self._samples.count else probabilities.clone(), 1, [])

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

    def result(self) -> dict[str, Tensor]:
        """Return the statistics of all members; none can be added after it.

        Returns
        -------
        dict
            "probability" (n, K + 1, z, y, x): the mean; "predictive_entropy", "expected_entropy", "mutual_information",
            "mc_variance", "tta_variance", "ensemble_variance" (n, z, y, x). All float32.

        Raises
        ------
        ValueError
            If there was no member.
        """
        self._close_symmetry(())
        self._close_network(())
        if self._entropy is None:
            raise ValueError("no members were added")
        whole, expected = self._networks, self._entropy / self._networks.count
        predictive = entropy(whole.mean) if whole.count > 1 else expected
        mc, tta, ensemble = (squares / whole.count for squares in whole.squares)
        return {
            "probability": whole.mean,
            "predictive_entropy": predictive,
            "expected_entropy": expected,
            "mutual_information": (predictive - expected).clamp_min_(0),
            "mc_variance": mc,
            "tta_variance": tta,
            "ensemble_variance": ensemble,
        }
