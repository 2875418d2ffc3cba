"""Which patches to annotate next: strategies that pick a batch from a table of scored candidates.

A strategy orders the candidates; the batch is then filled greedily in that order, across all volumes, so that no two of
its patches overlap, by whatever name the place goes. Every strategy sees predictions only: a live campaign has no truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.active_learning.acquisition import power_noise
from rescueseg.active_learning.candidates import CandidateTable
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import Floats, Patch
from rescueseg.inference.maps import OBJECT_DISAGREEMENT
from rescueseg.records import QueriedPatch
from rescueseg.sampling.free_places import FreePlaces, bounds_by_volume

CLASS_SHARE = 0.66
"""Share of a ClaSP batch that goes to the foreground classes."""
FOREGROUND_SHARE = 0.66
"""Share of a foreground-aware random batch that is drawn by predicted foreground."""
BETA_FIRST, BETA_LAST = 1.0, 100.0
"""Ends of the ClaSP noise schedule: much noise at first, next to none at last."""


@dataclass(frozen=True)
class Loop:
    """Where the campaign stands: query `index` (from 0) of about `total`.

    Examples
    --------
    >>> [round(Loop(index, 3).beta, 6) for index in range(3)]
    [1.0, 10.0, 100.0]
    """

    index: int
    total: int

    @property
    def beta(self) -> float:
        """Inverse scale of the power noise: grows exponentially from 1 to 100 over the queries."""
        progress = min(1.0, self.index / (self.total - 1)) if self.total > 1 else 0.0
        return float(BETA_FIRST * (BETA_LAST / BETA_FIRST) ** progress)


@dataclass(frozen=True)
class Pick:
    """One candidate of a batch: its row in the table, its score without noise, and the reason in words."""

    index: int
    score: float
    reason: str


class Batch:
    """A batch of patches that is filled in order; no two of its patches share a voxel, in whichever volumes."""

    def __init__(self, table: CandidateTable) -> None:
        self.picks: list[Pick] = []
        bounds, self._rows = bounds_by_volume([*map(Patch, table.volume_ids, table.boxes)])
        self._places = FreePlaces(bounds, table.places)

    def add(self, order: npt.NDArray[np.int64], count: int, scores: Floats, reason: str) -> None:
        """Add up to `count` patches that are still free, in the order of their rows."""
        for position in self._places.take_first((self._rows[index] for index in order), count):
            index = int(order[position])
            self.picks.append(Pick(index, float(scores[index]), reason))


Strategy = Callable[[CandidateTable, int, np.random.Generator, Loop], list[Pick]]


def random(table: CandidateTable, count: int, rng: np.random.Generator, loop: Loop) -> list[Pick]:
    """Every candidate with the same chance."""
    del loop
    batch = Batch(table)
    batch.add(rng.permutation(len(table)), count, np.ones(len(table)), "random")
    return batch.picks


def foreground_random(table: CandidateTable, count: int, rng: np.random.Generator, loop: Loop) -> list[Pick]:
    """Two thirds by predicted foreground, the rest at random: nnActive's baseline, which uses the truth, on predictions.

    A patch is drawn with a chance proportional to its mean foreground probability, as a patch around a random
    foreground voxel would be; that is power noise with β = 1.

    References
    ----------
    nnActive, arXiv 2511.19183.
    """
    del loop
    batch = Batch(table)
    noisy = power_noise(table.foreground, 1.0, rng)
    batch.add(descending(noisy, rng), round(FOREGROUND_SHARE * count), table.foreground, "random foreground")
    batch.add(rng.permutation(len(table)), count - len(batch.picks), table.foreground, "random")
    return batch.picks


def highest(score: str) -> Strategy:
    """Return the strategy that takes the highest box means of one map."""

    def strategy(table: CandidateTable, count: int, rng: np.random.Generator, loop: Loop) -> list[Pick]:
        del loop
        batch, values = Batch(table), table.scores[score]
        batch.add(descending(values, rng), count, values, f"highest {score}")
        return batch.picks

    strategy.__doc__ = f"Highest box means of {score}."
    return strategy


def sampled(score: str) -> Strategy:
    """Return the strategy that draws patches weighted by the box means of one map, instead of its top: power noise, β = 1.

    References
    ----------
    Kirsch et al., Stochastic Batch Acquisition, TMLR 2023.
    """

    def strategy(table: CandidateTable, count: int, rng: np.random.Generator, loop: Loop) -> list[Pick]:
        del loop
        batch, values = Batch(table), table.scores[score]
        batch.add(descending(power_noise(values, 1.0, rng), rng), count, values, f"{score}, power noise")
        return batch.picks

    strategy.__doc__ = f"Box means of {score} with power noise."
    return strategy


def clasp_entropy(table: CandidateTable, count: int, rng: np.random.Generator, loop: Loop) -> list[Pick]:
    """Class-balanced power entropy (ClaSP PE).

    int(0.66·k) of the batch are shared evenly among the foreground classes (what does not divide goes to classes
    drawn at random), each choosing by predictive entropy times the probability of its class; the rest is chosen by
    predictive entropy. All with power noise whose β grows exponentially from 1 to 100 over the queries.

    References
    ----------
    ClaSP PE, arXiv 2601.13677.
    """
    batch, entropy = Batch(table), table.scores["predictive_entropy"]
    n_classes = table.class_entropy.shape[1]
    shares = np.full(n_classes, int(CLASS_SHARE * count) // n_classes)
    classes = rng.permutation(n_classes)
    shares[classes[: int(CLASS_SHARE * count) % n_classes]] += 1
    for index in classes:
        values = table.class_entropy[:, index]
        order = descending(power_noise(values, loop.beta, rng), rng)
        batch.add(order, int(shares[index]), values, f"class {index + 1}: predictive_entropy × probability")
    order = descending(power_noise(entropy, loop.beta, rng), rng)
    batch.add(order, count - len(batch.picks), entropy, "predictive_entropy, power noise")
    return batch.picks


STRATEGIES: dict[str, Strategy] = {
    "random": random,
    "foreground_random": foreground_random,
    "entropy": highest("predictive_entropy"),
    "bald": highest("mutual_information"),
    "mc_variance": highest("mc_variance"),
    "tta_variance": highest("tta_variance"),
    "power_bald": sampled("mutual_information"),
    "clasp_entropy": clasp_entropy,
    "object_disagreement": highest(OBJECT_DISAGREEMENT),
    "power_object_disagreement": sampled(OBJECT_DISAGREEMENT),
}
"""Every query strategy by its name in the campaign file. To add one, put it here."""
_OF_OBJECTS = ("object_disagreement", "power_object_disagreement")


def descending(score: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the indices from the highest score to the lowest; ties in random order.

    Examples
    --------
    >>> descending(np.array([0.2, 0.9, 0.5]), np.random.default_rng(0)).tolist()
    [1, 2, 0]
    """
    return np.lexsort((rng.random(len(score)), -score))


def find_strategy(name: str) -> Strategy:
    """Return a strategy by name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in STRATEGIES:
        raise ConfigError(
            f"unknown query strategy '{name}'", where="query.strategy", todo=f"Choose one of {', '.join(STRATEGIES)}"
        )
    return STRATEGIES[name]


def needed_maps(name: str) -> tuple[str, ...]:
    """Return the maps that a strategy needs beside those that every model has.

    Examples
    --------
    >>> needed_maps("object_disagreement"), needed_maps("clasp_entropy")
    (('object_disagreement',), ())
    """
    return (OBJECT_DISAGREEMENT,) if name in _OF_OBJECTS else ()


def choose_patches(
    config: CampaignConfig, strategy: str, table: CandidateTable, generation: int, rng: np.random.Generator
) -> list[QueriedPatch]:
    """Choose the patches to annotate after a generation, by a strategy and the campaign's batch size.

    Parameters
    ----------
    config : CampaignConfig
        `sampling.query_patches` and, for the noise schedule, `stopping.max_generations`.
    strategy : str
        Key of `STRATEGIES`; see `rescueseg.campaign.route.query_strategy`.
    table : CandidateTable
        Candidates that have no ticket yet, from `score_candidates`.
    generation : int
        Whose maps the scores come from: its query is the one of index `generation`.
    rng : numpy.random.Generator
        Only source of chance.

    Returns
    -------
    list of QueriedPatch
        In the order of choice, each with its score without noise; empty when the pool is used up.

    Raises
    ------
    ConfigError
        If there is no such strategy.
    """
    loop = Loop(generation, max(1, config.stopping.max_generations - 1))
    picks = find_strategy(strategy)(table, config.sampling.query_patches, rng, loop)
    return [
        QueriedPatch(volume_id=table.volume_ids[p.index], box=table.boxes[p.index], score=p.score, reason=p.reason)
        for p in picks
    ]
