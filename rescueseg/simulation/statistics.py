"""How well query strategies do in a benchmark: area under the curve, efficiency, the cost of a stopping rule.

The measures are those of nnActive [1]_, by which ClaSP PE [2]_ was judged too, so that figures can be compared; so is that of
`rescueseg.simulation.penalties`. Intervals, which say more with few seeds, and how much annotation is needed are in
`rescueseg.simulation.annotation_needed`.

References
----------
.. [1] nnActive, a framework for the evaluation of active learning in 3D biomedical segmentation, arXiv:2511.19183.
.. [2] ClaSP PE, a query strategy for active learning in 3D biomedical segmentation, arXiv:2601.13677.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit

from rescueseg.errors import EvaluationError
from rescueseg.evaluation.metric_table import Booleans
from rescueseg.geometry import Floats
from rescueseg.simulation.settings import Setting

LEAST_SEEDS = 3
"""Fewer seeds give no standard error and no interval."""
_RATES = np.geomspace(1e-3, 1e3, 121)
"""Where the fit of an efficiency begins: the best of these, for x scaled to end at 1. The last is its upper bound."""
_AT_ONCE = 0.01
"""Where no more than this of the missing Dice is left at the least foreground that was added, no efficiency can be told."""


def aubc(budgets: Floats, dice: Floats) -> Floats:
    """Return the area under a budget curve by trapezoids, over the length of the budgets: ∫ y dx / (x_last − x_first).

    A constant curve has its own value. With equal steps this is nnActive's AUBC.

    Parameters
    ----------
    budgets : ndarray, (…, loops)
        Rising from loop to loop, such as the patches.
    dice : ndarray, (…, loops)
        Two loops at least.

    Returns
    -------
    ndarray, (…)

    Examples
    --------
    >>> round(float(aubc(np.array([4, 8, 12]), np.array([0.5, 0.7, 0.7]))), 3)
    0.65
    """
    x = np.asarray(budgets, np.float64)
    return np.asarray(np.trapezoid(dice, x, axis=-1) / (x[..., -1] - x[..., 0]))


@dataclass(frozen=True)
class Area:
    """AUBC of a strategy.

    Parameters
    ----------
    mean : float
        Over seeds.
    sd : float or None
        Standard deviation over seeds, n − 1 in its denominator; None with one seed.
    by_seed : dict of int to float
        By seed.
    """

    mean: float
    sd: float | None
    by_seed: dict[int, float]


def areas(setting: Setting) -> dict[str, Area]:
    """Return the AUBC of every strategy over the annotated patches.

    Parameters
    ----------
    setting : Setting
        With two loops at least.
    """
    values = seed_areas(setting)
    return {
        name: Area(
            float(of_seeds.mean()),
            float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None,
            dict(zip(setting.seeds, of_seeds.tolist(), strict=True)),
        )
        for name, of_seeds in zip(setting.strategies, values, strict=True)
    }


def seed_areas(setting: Setting, dice: Floats | None = None) -> Floats:
    """Return the AUBC over the annotated patches, (…, strategies, seeds).

    Parameters
    ----------
    setting : Setting
        The runs.
    dice : ndarray, (…, strategies, seeds, loops), optional
        In place of the setting's own.

    Raises
    ------
    EvaluationError
        If a loop adds no patches, or there is one loop alone.
    """
    patches = setting.amounts["patches"]
    if setting.loops < 2 or (np.diff(patches) <= 0).any():
        raise EvaluationError(
            "an area needs two loops, each with more patches than the one before",
            where=f"{setting.dataset}, {setting.regime}",
            todo="Finish the benchmark, or leave this setting out",
        )
    return aubc(patches, setting.dice if dice is None else dice)


# efficiency by foreground ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Efficiency:
    """How fast a strategy comes close to what all of the pool gives, by the foreground that it had annotated.

    Parameters
    ----------
    rate : float or None
        β, per share of the pool's foreground: larger is better. None where it says nothing.
    error : float or None
        Its standard error over seeds; None with fewer than `LEAST_SEEDS`, or where it says nothing.
    reason : str
        Why it says nothing; else empty.
    """

    rate: float | None
    error: float | None = None
    reason: str = ""


def efficiencies(setting: Setting) -> dict[str, Efficiency]:
    """Return nnActive's foreground efficiency of every strategy: β of y = c − a·exp(−β (x − x0)).

    x is the annotated share of the pool's foreground, y the Dice, c that of all of the pool, x0 the share at the first loop of
    the seed, and a = c − the mean Dice of the first loop, over all strategies and seeds; β alone is fitted, to all seeds and
    loops of a strategy. nnActive takes as x0 the smallest share of all seeds, at which only one of them may begin: for the
    others β would then count foreground that was annotated at the start.

    The standard error is that of leaving out each seed, with everything that comes of it (jackknife): loops of one seed are
    alike, and the covariance of the fit, which takes them for independent, would be too small. Where all seeds share a
    training on all of the pool, what another one would give is not in it.

    Parameters
    ----------
    setting : Setting
        Its Dice is compared with that of the trainings on all of the pool.

    Returns
    -------
    dict of str to Efficiency
        No value without a training on all of the pool, where the start is as good, where no foreground was added,
        and where Dice is that of all of the pool from the least foreground on that was added, so that any large β fits.

    Examples
    --------
    Each percent of the foreground halves what is missing to a Dice of 0.9, so β is 100 ln 2:

    >>> from rescueseg.simulation.settings import SeedRuns
    >>> hits = np.array([[10.0, 50, 70]])
    >>> counts, full = np.stack([hits, 100 - hits, 100 - hits], axis=-1)[..., None, None, :], [[[[90.0, 10, 10]]]]
    >>> runs = (SeedRuns(0, ("box",), counts, np.array(full)),)
    >>> shares = np.array([[[0.0, 0.01, 0.02]]])
    >>> setting = Setting("puncta", "low", ("random",), runs, {"foreground_share": shares})
    >>> round(efficiencies(setting)["random"].rate, 2)
    69.31
    """
    every = np.ones(len(setting.seeds), np.bool_)
    found = {}
    for index, name in enumerate(setting.strategies):
        whole = _efficiency(setting, index, every)
        error = None
        if whole.rate is not None and len(every) >= LEAST_SEEDS:
            without = [
                _efficiency(setting, index, every & (np.arange(len(every)) != i)).rate for i in range(len(every))
            ]
            rates = np.array([rate for rate in without if rate is not None])
            if len(rates) == len(every):
                error = float(np.sqrt((len(rates) - 1) / len(rates) * ((rates - rates.mean()) ** 2).sum()))
        found[name] = Efficiency(whole.rate, error, whole.reason)
    return found


def _efficiency(setting: Setting, index: int, seeds: Booleans) -> Efficiency:
    if setting.full_dice is None:
        return Efficiency(None, reason="no training on all of the pool")
    shares, dice, c = (
        setting.amounts["foreground_share"][:, seeds],
        setting.dice[:, seeds],
        setting.full_dice[seeds].mean(),
    )
    a = c - float(dice[..., 0].mean())
    if a <= 0:
        return Efficiency(None, reason="all of the pool gives no better Dice than the start")
    added = (shares[index] - shares[..., 0].mean(axis=0)[:, None]).ravel()
    span = float(added.max())
    if span <= 0:
        return Efficiency(None, reason="no foreground was added to the start")
    x, y = added / span, dice[index].ravel()

    def model(x: Floats, rate: Floats) -> Floats:
        return np.asarray(c - a * np.exp(-rate * x))

    squares = ((model(x, _RATES[:, None]) - y) ** 2).sum(axis=1)
    fitted, _ = curve_fit(model, x, y, p0=[_RATES[int(squares.argmin())] / 1.01], bounds=(0, _RATES[-1]))
    if np.exp(-fitted[0] * x[x > 0].min()) < _AT_ONCE:
        return Efficiency(None, reason="Dice is that of all of the pool as soon as foreground is added")
    return Efficiency(float(fitted[0] / span))


# stopping rule --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoppingCost:
    """What a stopping rule costs against stopping at the best loop.

    Parameters
    ----------
    stop, best : int
        Loop at which the rule stops, or the last one, and the best one.
    spent_beyond : float
        Annotation at `stop` minus that at `best`; below 0 where the rule stops before.
    dice_lost : float
        Dice at `best` minus that at `stop`.
    """

    stop: int
    best: int
    spent_beyond: float
    dice_lost: float


def stopping_cost(x: Floats, dice: Floats, stops: Sequence[bool], within: float = 0.0) -> StoppingCost:
    """Return what a stopping rule costs on a curve.

    Parameters
    ----------
    x, dice : ndarray, (loops,)
        A curve.
    stops : sequence of bool
        Whether the rule stops after each loop. The first True counts; without one all loops are annotated.
    within : float
        Dice that may be missing: the best stopping point is the first loop with at most so much less than the highest Dice
        of the curve.

    Examples
    --------
    The rule stops one loop late, for a Dice that is 0.01 higher than at the first that is good enough:

    >>> cost = stopping_cost(np.array([10, 20, 30, 40]), np.array([0.5, 0.79, 0.8, 0.8]), [False, False, True, True], 0.02)
    >>> cost.stop, cost.best, cost.spent_beyond, round(cost.dice_lost, 3)
    (2, 1, 10.0, -0.01)
    """
    if not len(x) == len(dice) == len(stops) or not len(x):
        raise EvaluationError(
            f"a curve of {len(x)} amounts and {len(dice)} values of Dice has {len(stops)} decisions",
            where="stopping rule",
            todo="Give one of each for every loop",
        )
    stop = list(stops).index(True) if any(stops) else len(x) - 1
    best = int(np.argmax(np.asarray(dice) >= np.max(dice) - within))
    return StoppingCost(stop, best, float(x[stop] - x[best]), float(dice[best] - dice[stop]))
