"""Seeds and boxes of a benchmark drawn anew: how much its results would change with others.

With one seed all strategies have the same start and are judged by the same test boxes. So seeds are drawn, and boxes within them,
once for all strategies, loops and trainings on all of the pool. Where all seeds are judged by the same boxes, these are drawn once
for all seeds too (bootstrap of crossed factors [1]_): drawn for each seed by itself, they would average out how hard
a box is. Dice is computed anew from the counts of the drawn boxes.

Boxes: of n, n − 1 are drawn with replacement, for then the variance of a mean is right for few boxes too [2]_.
Seeds: with four of them no draw with replacement goes beyond the best and the worst seed, and such intervals are too narrow.
So the mean curve of n seeds is drawn from Student's multivariate t distribution: mean + g·Σ (z_s − mean of z)·y_s / √(n (n − 1)),
where y_s is the curve of seed s, z_s are standard normal and g² = (n − 1) / χ² with n − 1 degrees of freedom. For a score
that is a mean over seeds, its percentiles are the interval of the t-test. `tests/benchmarks/strategy_coverage.py` prints how
often such intervals hold the truth, and those of seeds that are drawn with replacement.

Where a class is in few boxes, some draws miss it: Dice is then the mean over the other classes, for all strategies alike.

References
----------
.. [1] Owen and Eckles 2012, Bootstrapping data arrays of arbitrary order, Annals of Applied Statistics, doi:10.1214/12-AOAS547.
.. [2] Rao and Wu 1988, Resampling inference with complex survey data, Journal of the American Statistical Association,
   doi:10.1080/01621459.1988.10478591.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rescueseg.evaluation.intervals import LEAST
from rescueseg.geometry import Floats
from rescueseg.randomness import random_generator
from rescueseg.simulation.rows import pooled_dice
from rescueseg.simulation.settings import Setting
from rescueseg.simulation.statistics import LEAST_SEEDS

DRAWS = 2000
"""Of seeds and boxes."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Seeds and boxes of a setting, drawn anew many times.

    Parameters
    ----------
    weights : ndarray, (draws, seeds)
        Of each seed in a mean over seeds; they sum to 1, and some may be below 0.
    dice : ndarray, (draws, strategies, seeds, loops)
        From the drawn boxes.
    full_dice : ndarray, (draws,)
        Of the trainings on all of the pool, a mean over drawn seeds, from the drawn boxes; nan where a seed has none.
    """

    weights: Floats
    dice: Floats
    full_dice: Floats

    def mean(self, of_seeds: Floats) -> Floats:
        """Return the means over drawn seeds, (draws, strategies, n), of values (draws or 1, strategies, seeds, n)."""
        return np.asarray((self.weights[:, None, :, None] * of_seeds).sum(axis=2))


def draws_of(setting: Setting, draws: int = DRAWS) -> Draws | None:
    """Draw seeds and boxes of a setting, the same for the same setting.

    Parameters
    ----------
    setting : Setting
        The runs.
    draws : int
        How many.

    Returns
    -------
    Draws or None
        None with fewer than `LEAST_SEEDS` seeds, or where with some seed truth holds a class in fewer than
        `rescueseg.evaluation.intervals.LEAST` boxes: too few to say how much a result scatters.
    """
    number = len(setting.runs)
    if number < LEAST_SEEDS or min(_boxes_with_a_class(run.truth) for run in setting.runs) < LEAST:
        return None
    rng = random_generator("strategies", number)
    weights = _seed_weights(draws, number, rng)
    dice, full = np.empty((draws, *setting.dice.shape)), np.full((draws, number), np.nan)
    times = _box_weights(draws, setting.runs[0].truth, rng)
    for index, run in enumerate(setting.runs):
        if index and not setting.have_same_boxes:
            times = _box_weights(draws, run.truth, rng)
        dice[:, :, index] = pooled_dice(np.tensordot(times, run.counts, axes=(1, 2)))
        if len(run.full_counts):
            full[:, index] = pooled_dice(np.tensordot(times, run.full_counts, axes=(1, 1))).mean(axis=1)
    return Draws(weights, dice, (weights * full).sum(axis=1))


def _boxes_with_a_class(truth: Floats) -> int:
    """Return in how many boxes the class that is in fewest is, from truth (boxes, K); one that is in none does not count."""
    boxes = (truth > 0).sum(axis=0)
    return int(boxes[boxes > 0].min())


def _seed_weights(draws: int, number: int, rng: np.random.Generator) -> Floats:
    """Return weights with which a mean over seeds is drawn from Student's t distribution."""
    z = rng.standard_normal((draws, number))
    spread = np.sqrt((number - 1) / rng.chisquare(number - 1, draws))[:, None]
    return np.asarray(1 / number + spread * (z - z.mean(axis=1, keepdims=True)) / np.sqrt(number * (number - 1)))


def _box_weights(draws: int, truth: Floats, rng: np.random.Generator) -> Floats:
    """Return how often each box is drawn, (draws, boxes), each time some box that holds a class, from truth (boxes, K)."""
    boxes = len(truth)
    times = np.empty((0, boxes))
    while len(times) < draws:
        new = rng.multinomial(boxes - 1, np.full(boxes, 1 / boxes), size=draws)
        times = np.concatenate([times, new[new @ truth.sum(axis=1) > 0]])
    return times[:draws]
