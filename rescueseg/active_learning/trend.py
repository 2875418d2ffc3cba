"""Where the Dice of a campaign's generations is heading, and how far that can be told from their scatter.

A learning curve rises to a ceiling, y = ceiling - rise · exp(-rate · x), or has not bent yet and is a straight line. Which
of them it is cannot be read from a few scattered points, so none is chosen: each is fitted by least squares, counts by how
well it fits, and what they say is averaged, with the scatter that each leaves (Bayesian model averaging, Hoeting et al.
1999, doi:10.1214/ss/1009212519, with a conjugate prior of the scatter). No curve falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from rescueseg.geometry import Floats

_BENDS = np.geomspace(0.5, 8, 16)
"""Rates of the curves, over the range of patches seen: from hardly bent to nearly flat after the first few steps."""
_STRAIGHT = 1e-6
"""Rate of the line, to which half of the weight is given before any Dice is seen."""
_SCATTER, _SCATTER_WEIGHT = 0.015, 2
"""Dice by which trainings on equal data differ, as far as it is known before, and how many generations that counts for."""
_LEVELS = (np.arange(200) + 0.5) / 200
"""Quantiles of the rise at which a curve is looked at."""
_OTHER_LEVELS = (_LEVELS * 200 * (5**0.5 - 1) / 2) % 1
"""As evenly spread, and in another order: of what varies independently."""


@dataclass(frozen=True)
class Trend:
    """What the generations so far say of the learning curve: many curves, each with a weight.

    Parameters
    ----------
    last, reach : float
        Annotated patches of the last generation, and how many more than those of the first.
    rate, rise, level, weight : ndarray, (curves,)
        Rate over `reach`, Dice gained over `reach`, Dice at the last generation, and weights that sum to 1.
    """

    last: float
    reach: float
    rate: Floats
    rise: Floats
    level: Floats
    weight: Floats

    def gain(self, patches: float, levels: Sequence[float]) -> tuple[float, ...]:
        """Return quantiles of the Dice that so many more patches would bring."""
        left = self.rise * np.exp(-self.rate) / -np.expm1(-self.rate)
        return self._quantiles(left * -np.expm1(-self.rate * patches / self.reach), levels)

    def ceiling(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Return quantiles of the Dice that more patches of the kind lead to, at most 1."""
        return self._quantiles(np.minimum(1.0, self.level + self._left()), levels)

    def patches_within(self, distance: float, levels: Sequence[float]) -> tuple[float, ...]:
        """Return quantiles of the annotated patches after which the ceiling is `distance` away; inf on a straight line.

        Where it is that close already they are those of the last generation.
        """
        more = np.maximum(0.0, np.log(np.maximum(self._left(), 1e-12) / distance)) / self.rate * self.reach
        straight = (self.rate <= _STRAIGHT) & (self.rise > 0)
        return self._quantiles(self.last + np.where(straight, np.inf, more), levels)

    def _left(self) -> Floats:
        return np.asarray(self.rise * np.exp(-self.rate) / -np.expm1(-self.rate))

    def _quantiles(self, values: Floats, levels: Sequence[float]) -> tuple[float, ...]:
        order = np.argsort(values)
        shares = np.cumsum(self.weight[order])
        index = np.minimum(np.searchsorted(shares, np.asarray(levels) * shares[-1]), len(values) - 1)
        return tuple(float(v) for v in values[order][index])


def fit_trend(patches: Sequence[float], dice: Sequence[float]) -> Trend:
    """Fit the learning curve of a campaign.

    Parameters
    ----------
    patches : sequence of float
        Annotated patches of each generation, at least two different numbers.
    dice : sequence of float
        Validation Dice of each, in the same order; at least three.

    Examples
    --------
    Five generations on a plateau: with 95 % certainty four patches more bring less than 0.01.

    >>> trend = fit_trend([4, 8, 12, 16, 20], [0.800, 0.803, 0.799, 0.802, 0.800])
    >>> [round(gain, 3) for gain in trend.gain(4, (0.5, 0.95))]
    [0.001, 0.006]
    """
    x, y = np.asarray(patches, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    reach = float(np.ptp(x))
    rates = np.array([_STRAIGHT, *_BENDS])
    prior = np.array([0.5, *np.full(len(_BENDS), 0.5 / len(_BENDS))])
    shape = np.expm1(-rates[:, None] * (x - x.min()) / reach) / np.expm1(-rates[:, None])
    centred = shape - shape.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    rise = centred @ y / spread
    freedom = len(x) - 2 + _SCATTER_WEIGHT
    rest = np.maximum(0.0, ((y - y.mean()) ** 2).sum() - rise**2 * spread) + _SCATTER_WEIGHT * _SCATTER**2
    scatter = np.sqrt(rest / freedom)
    error = scatter / np.sqrt(spread)
    below = stdtr(freedom, -rise / error)  # how much of it would fall
    likelihood = np.log(prior) - np.log(spread) / 2 - np.log(rest) * freedom / 2
    weight = np.exp(likelihood - likelihood.max()) * (1 - below)
    upwards = stdtrit(freedom, np.minimum(below[:, None] + (1 - below[:, None]) * _LEVELS, 1 - 1e-12))
    rises = np.maximum(0.0, rise[:, None] + error[:, None] * upwards)
    middle = y.mean() + (scatter / np.sqrt(len(x)))[:, None] * stdtrit(freedom, _OTHER_LEVELS)
    levels = middle + rises * (1 - shape.mean(axis=1, keepdims=True))
    return Trend(
        last=float(x.max()),
        reach=reach,
        rate=np.repeat(rates, len(_LEVELS)),
        rise=rises.ravel(),
        level=levels.ravel(),
        weight=np.repeat(weight / weight.sum() / len(_LEVELS), len(_LEVELS)),
    )
