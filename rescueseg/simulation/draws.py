"""Seeds and boxes of a benchmark drawn anew: how much its results would change with others.

Every training of a setting is judged by the same test boxes, and the same seed gives all strategies the same start. So seeds and
boxes are drawn anew side by side, once for all strategies, loops and trainings on all of the pool (bootstrap of crossed
factors [1]_): boxes drawn for each seed by itself would average out how hard a box is. Dice is computed anew from the
counts of the drawn boxes.

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
_BATCH = 100
"""Draws whose counts are in memory at once."""


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
        Mean of the trainings on all of the pool, from the same boxes; nan without one.
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
        None with fewer than `LEAST_SEEDS` seeds, or where truth holds a class in fewer than
        `rescueseg.evaluation.intervals.LEAST` boxes: too few to say how much a result scatters.
    """
    truth = setting.counts[0, 0, 0][..., [0, 2]].sum(axis=-1)
    of_class = (truth > 0).sum(axis=0)
    number, boxes = len(setting.seeds), len(truth)
    if number < LEAST_SEEDS or of_class[of_class > 0].min() < LEAST:
        return None
    rng = random_generator("strategies", number, boxes)
    weights = _seed_weights(draws, number, rng)
    times = _box_weights(draws, truth, rng)
    dice = np.empty((draws, *setting.dice.shape))
    full = np.full(draws, np.nan)
    for begin in range(0, draws, _BATCH):
        part = slice(begin, begin + _BATCH)
        dice[part] = pooled_dice(np.einsum("db,kslbcn->dkslcn", times[part], setting.counts))
        if len(setting.full_counts):
            full[part] = pooled_dice(np.einsum("db,fbcn->dfcn", times[part], setting.full_counts)).mean(axis=1)
    return Draws(weights, dice, full)


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
