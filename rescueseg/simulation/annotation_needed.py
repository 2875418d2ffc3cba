"""How much annotation a strategy needs for nearly the Dice of the whole pool, and what it gains, each with an interval.

Intervals are those of `rescueseg.simulation.draws`: of other seeds and other boxes, the same for all strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from rescueseg.errors import EvaluationError
from rescueseg.evaluation.intervals import Interval
from rescueseg.evaluation.metric_table import Booleans
from rescueseg.geometry import Floats
from rescueseg.simulation.draws import Draws
from rescueseg.simulation.settings import Axis, Setting
from rescueseg.simulation.statistics import seed_areas

SHARE = 0.95
"""Of the Dice of the whole pool, that counts as nearly it."""
_ENDS = (0.025, 0.975)

# how much is needed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needed:
    """How much annotation a strategy needs.

    Parameters
    ----------
    amount : float
        On the axis asked for; inf where it is not reached with all that was annotated, `largest`.
    largest : float
        Mean amount at the last loop: one that is not reached lies beyond.
    interval : (float, float) or None
        95 %; an end is inf where that end lies beyond `largest`. None with too few seeds or boxes.
    not_reached : float or None
        Share of the draws in which it is not reached; None without an interval.
    at_start : float or None
        Share of the draws in which the start is enough already, so that less might be; None without an interval.
    """

    amount: float
    largest: float
    interval: Interval | None = None
    not_reached: float | None = None
    at_start: float | None = None

    @property
    def is_reached(self) -> bool:
        """Tell whether it is reached with what was annotated."""
        return self.amount < inf


@dataclass(frozen=True)
class Ratio:
    """How much annotation a strategy needs, over what a reference needs.

    Parameters
    ----------
    value : float or None
        Below 1 the strategy needs less. 0 where only the reference does not reach it, inf where only the strategy does not.
        None where nothing can be said: neither reaches it, or the start is enough for both.
    interval : (float, float) or None
        95 %, of draws that seeds and boxes share. Draws that say nothing count as below the lower and above the upper end.
        None with too few seeds or boxes.
    not_reached, reference_not_reached : float or None
        Share of the draws in which the strategy, and the reference, do not reach it; None without an interval.
    undecided : float or None
        Share of the draws that say nothing; None without an interval.
    """

    value: float | None
    interval: Interval | None = None
    not_reached: float | None = None
    reference_not_reached: float | None = None
    undecided: float | None = None


def amounts_needed(
    setting: Setting, axis: Axis = "voxels_drawn", share: float = SHARE, draws: Draws | None = None
) -> dict[str, Needed]:
    """Return how much every strategy needs for a share of the Dice of all of the pool.

    The mean curve over seeds is made to rise (isotonic regression) and joined by straight lines; the amount is where it
    first is as high as `share` times the mean Dice of the trainings on all of the pool.

    Parameters
    ----------
    setting : Setting
        With a training on all of the pool.
    axis : str
        One of `rescueseg.simulation.settings.AXES`.
    share : float
        Above 0.
    draws : Draws, optional
        Of `rescueseg.simulation.draws.draws_of`, for intervals. Where all seeds share a training on all of the pool, how much
        another one would differ is not in them.

    Raises
    ------
    EvaluationError
        If there is no training on all of the pool.

    Examples
    --------
    Two strategies, one seed, three loops, and one box, of which the whole pool gives a Dice of 0.8. For 0.75 of that,
    0.6, the first needs what it had at its second loop and the other is half way to its third.

    >>> from rescueseg.simulation.settings import SeedRuns
    >>> hits = np.array([[50.0, 60, 70], [40, 50, 70]])
    >>> counts = np.stack([hits, 100 - hits, 100 - hits], axis=-1)[..., None, None, :]
    >>> runs = (SeedRuns(0, ("box",), counts, np.array([[[[80.0, 20, 20]]]])),)
    >>> voxels = np.array([[[1000.0, 2000, 3000]]] * 2)
    >>> setting = Setting("puncta", "low", ("bald", "random"), runs, {"voxels_drawn": voxels})
    >>> {name: round(needed.amount) for name, needed in amounts_needed(setting, share=0.75).items()}
    {'bald': 2000, 'random': 2500}
    >>> round(needed_ratio(setting, "bald", "random", share=0.75).value, 3)
    0.8
    """
    values, _ = _amounts(setting, axis, share)
    largest = setting.amounts[axis].mean(axis=1)[:, -1]
    found = {name: Needed(float(values[i]), float(largest[i])) for i, name in enumerate(setting.strategies)}
    if draws is None:
        return found
    drawn, at_start = _amounts(setting, axis, share, draws)
    return {
        name: Needed(
            needed.amount,
            needed.largest,
            (_quantile(drawn[:, i], _ENDS[0]), _quantile(drawn[:, i], _ENDS[1])),
            float(np.isinf(drawn[:, i]).mean()),
            float(at_start[:, i].mean()),
        )
        for i, (name, needed) in enumerate(found.items())
    }


def needed_ratio(
    setting: Setting,
    strategy: str,
    reference: str,
    axis: Axis = "voxels_drawn",
    share: float = SHARE,
    draws: Draws | None = None,
) -> Ratio:
    """Return how much a strategy needs over what a reference needs; see `amounts_needed`.

    Parameters
    ----------
    setting : Setting
        With a training on all of the pool.
    strategy, reference : str
        Names of strategies that were run.
    axis, share, draws
        As for `amounts_needed`.

    Raises
    ------
    EvaluationError
        If one of them was not run, or there is no training on all of the pool.
    """
    pair = [setting.index(strategy), setting.index(reference)]
    value, says_nothing = _ratio(*_amounts(setting, axis, share), pair)
    found = Ratio(None if says_nothing else float(value))
    if draws is None:
        return found
    amounts, at_start = _amounts(setting, axis, share, draws)
    ratio, undecided = _ratio(amounts, at_start, pair)
    low, high = (_quantile(np.where(undecided, end, ratio), level) for end, level in zip((0, inf), _ENDS, strict=True))
    one, other = np.isinf(amounts[:, pair]).mean(axis=0).tolist()
    return Ratio(found.value, (low, high), one, other, float(undecided.mean()))


def _ratio(amounts: Floats, at_start: Booleans, pair: Sequence[int]) -> tuple[Floats, Booleans]:
    """Return the ratio of the amounts of a pair of strategies, and whether it says nothing; (…) from (…, strategies)."""
    one, other = (amounts[..., index] for index in pair)
    says_nothing = at_start[..., pair].all(axis=-1) | (np.isinf(one) & np.isinf(other))
    with np.errstate(invalid="ignore"):
        return np.asarray(one / other), np.asarray(says_nothing)


def _quantile(values: Floats, level: float) -> float:
    """Return a quantile of values some of which may be inf: one of the values, the outer one of two."""
    return float(np.quantile(values, level, method="lower" if level < 0.5 else "higher"))


def _amounts(setting: Setting, axis: Axis, share: float, draws: Draws | None = None) -> tuple[Floats, Booleans]:
    """Return what is needed, and whether the start is enough: (strategies,), or (draws, strategies)."""
    if setting.full_dice is None:
        raise EvaluationError(
            "without a training on all of the pool for each seed nobody knows what Dice to reach",
            where=f"{setting.dataset}, {setting.regime}",
            todo="Run the strategy full_data too",
        )
    of_seeds, target = setting.amounts[axis], np.array(share * setting.full_dice.mean())
    if draws is None:
        x, mean = of_seeds.mean(axis=1), setting.dice.mean(axis=1)
    else:
        x = rising(np.maximum(0.0, draws.mean(of_seeds[None])))  # few seeds that differ much may draw amounts that fall
        mean, target = draws.mean(draws.dice), share * draws.full_dice[:, None]
    return first_reached(x, mean, target), rising(mean)[..., 0] >= target


def first_reached(x: Floats, y: Floats, target: Floats) -> Floats:
    """Return where a curve, made to rise and joined by straight lines, first reaches a target.

    Parameters
    ----------
    x, y : ndarray, (…, loops)
        The curve; x never falls.
    target : ndarray, (…)
        Value to reach.

    Returns
    -------
    ndarray, (…)
        The first x where the curve starts there or higher, inf where it ends below.

    Examples
    --------
    >>> x, y = np.array([[10.0, 20, 30, 40]] * 3), np.array([[0.4, 0.7, 0.6, 0.8]] * 3)
    >>> first_reached(x, y, np.array([0.3, 0.725, 0.9])).round(6).tolist()
    [10.0, 35.0, inf]
    """
    fit = rising(y)
    reached = fit >= target[..., None]
    after = np.argmax(reached, axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    x0, x1 = (np.take_along_axis(x, i, axis=-1)[..., 0] for i in (before, after))
    y0, y1 = (np.take_along_axis(fit, i, axis=-1)[..., 0] for i in (before, after))
    rise = np.where(y1 > y0, y1 - y0, 1.0)
    between = np.where(after[..., 0] > 0, x0 + (target - y0) / rise * (x1 - x0), x1)
    return np.where(reached.any(axis=-1), between, inf)


def rising(y: Floats) -> Floats:
    """Return the curve that never falls and is closest to another in its squares (isotonic regression).

    At loop i it is the largest over first loops j ≤ i, of the smallest over last loops k ≥ i, of the mean of y from j to k.

    Parameters
    ----------
    y : ndarray, (…, loops)

    Examples
    --------
    >>> rising(np.array([0.4, 0.7, 0.6, 0.8])).round(3).tolist()
    [0.4, 0.65, 0.65, 0.8]
    """
    loops = y.shape[-1]
    sums = np.concatenate([np.zeros((*y.shape[:-1], 1)), np.cumsum(y, axis=-1)], axis=-1)
    j, k = np.indices((loops, loops))
    means = np.where(k >= j, (sums[..., 1:][..., k] - sums[..., :-1][..., j]) / np.maximum(k - j + 1, 1), inf)
    smallest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray(np.where(k >= j, smallest, -inf).max(axis=-2))


# gain of one strategy over another ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """By how much the AUBC of one strategy is above that of another.

    Parameters
    ----------
    value : float
        Difference of the means over seeds.
    interval : (float, float) or None
        95 %; None with too few seeds or boxes.
    """

    value: float
    interval: Interval | None

    @property
    def is_sure(self) -> bool:
        """Tell whether the interval lies above 0."""
        return self.interval is not None and self.interval[0] > 0


def area_gain(setting: Setting, strategy: str, reference: str, draws: Draws | None = None) -> Gain:
    """Return by how much the AUBC of a strategy is above that of a reference; `draws` as for `amounts_needed`."""
    one, other = setting.index(strategy), setting.index(reference)
    value = np.subtract(*seed_areas(setting)[[one, other]].mean(axis=1))
    if draws is None:
        return Gain(float(value), None)
    areas = draws.mean(seed_areas(setting, draws.dice)[..., None])[..., 0]
    low, high = np.quantile(areas[:, one] - areas[:, other], _ENDS)
    return Gain(float(value), (float(low), float(high)))


def ceiling(setting: Setting, oracle: str, random: str = "random", draws: Draws | None = None) -> Gain:
    """Return what a strategy that knows the true errors gains over patches drawn at random, in AUBC.

    Where that is not sure, the setting has no room for any strategy to be better, and says nothing about them.

    Parameters
    ----------
    setting : Setting
        With both strategies.
    oracle, random : str
        Names of the strategies that rank patches by their true error, and that draw them at random.
    draws : Draws, optional
        Of `rescueseg.simulation.draws.draws_of`; without them nothing is sure.

    Raises
    ------
    EvaluationError
        If one of them was not run.
    """
    return area_gain(setting, oracle, random, draws)
