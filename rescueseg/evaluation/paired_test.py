"""Is one model better than another on the same boxes, or is it chance? An exact paired test, and its error over a campaign.

Were the two models equal, their tables of a box might as well be exchanged. So they are: in every choice of boxes the two
tables change places, the difference of the pooled Dice is computed anew, and the share of the choices that give at least the
difference at hand is the p value (Fisher, The Design of Experiments, 1935; Pitman 1937, doi:10.2307/2984124). It holds for
any number of boxes, of any size and spread, which a percentile bootstrap does not.
It speaks of these two models: two trainings on the same patches differ as well, and with enough boxes it sees that.

A campaign asks the question once for every generation, so its generations share one error between them (`level_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rescueseg.evaluation.metrics import dice_of
from rescueseg.geometry import Floats
from rescueseg.randomness import random_generator

CAMPAIGN_LEVEL = 0.05
"""Chance that a whole campaign of models that are no better ever moves its champion."""
SINGLE_LEVEL = 0.025
"""Level, on each side, of a comparison that is a question of its own."""
EXACT_UNITS = 14
"""Up to so many units all 2ⁿ exchanges are tried; beyond, 2¹⁴ random ones."""
LEAST_VOLUMES = 8
"""From so many volumes on, whole volumes change places, for boxes of one volume are alike. Fewer volumes could decide
nothing at the level of one generation (2⁻⁷ is above 0.05 / 9), so boxes do, and the answer holds for these volumes."""
_EQUAL = 1e-12
"""Differences of Dice that are one and the same, but for the order of the sums."""


@dataclass(frozen=True)
class PairedTest:
    """What an exchange of the tables says about the second model against the first.

    Parameters
    ----------
    difference : float or None
        Pooled Dice of the second minus that of the first; None where truth holds no class.
    better, worse : float
        One-sided p values: the share of exchanges with at least, and with at most, this difference.
    units : int
        Boxes, or volumes, whose tables differ: the others stay the same when exchanged and tell nothing.
    """

    difference: float | None
    better: float
    worse: float
    units: int


def paired_test(first: Floats, second: Floats, units: Sequence[int] | None = None) -> PairedTest:
    """Compare two models by exchanging their tables.

    Parameters
    ----------
    first, second : ndarray
        TP, FP and FN by box and class, (boxes, K, 3), of the same boxes in the same order.
    units : sequence of int, optional
        Which boxes change places together, a number per box; each by itself when omitted.

    Returns
    -------
    PairedTest
        Dice is the mean over the classes that truth holds in any of the boxes, in all exchanges the same ones: a voxel of
        another class, which truth holds nowhere, would move the mean by a whole class. Equal differences count as at
        least as extreme.

    Examples
    --------
    Better on each of five boxes: of the 32 exchanges none gives more.

    >>> weak, strong = np.array([[[6.0, 4, 4]]] * 5), np.array([[[8.0, 2, 2]]] * 5)
    >>> paired_test(weak, strong)
    PairedTest(difference=0.2, better=0.03125, worse=1.0, units=5)
    """
    is_true = (first[..., 0] + first[..., 2]).sum(axis=0) > 0 if len(first) else np.zeros(0, np.bool_)
    if not is_true.any():
        return PairedTest(difference=None, better=1.0, worse=1.0, units=0)
    places = np.unique(np.arange(len(first)) if units is None else np.asarray(units), return_inverse=True)[1]
    both = np.zeros((2, places.max() + 1, *first.shape[1:]))
    for side, table in zip(both, (first, second), strict=True):
        np.add.at(side, places, table)
    both = both[:, :, is_true]
    differs = (both[0] != both[1]).any(axis=(1, 2))
    moved, whole = both[:, differs], both.sum(axis=(0, 1))
    count = int(differs.sum())
    exchanges = _exchanges(count)
    kept = np.tensordot(1.0 - exchanges, moved[1], axes=1) + np.tensordot(exchanges, moved[0], axes=1)
    seconds = kept + both[1, ~differs].sum(axis=0)
    values = dice_of(seconds).mean(axis=-1) - dice_of(whole - seconds).mean(axis=-1)
    difference = float(np.diff(dice_of(both.sum(axis=1)).mean(axis=-1))[0])
    extra = 0 if count <= EXACT_UNITS else 1  # the exchange of nothing is not among the random ones
    better, worse = (
        (extra + int((side * (values - difference) >= -_EQUAL).sum())) / (extra + len(values)) for side in (1, -1)
    )
    return PairedTest(difference=round(difference, 12), better=better, worse=worse, units=count)


def _exchanges(count: int) -> Floats:
    """Return which units change places, (exchanges, units) of 0 and 1: all ways, or a seeded choice of them."""
    if count <= EXACT_UNITS:
        return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    rng = random_generator("paired test", count)
    return rng.integers(2, size=(2**EXACT_UNITS, count)).astype(np.float64)


def steps(units: int) -> int:
    """Return into how many steps p values of so many units fall: the finest is one of them.

    Examples
    --------
    >>> steps(8), steps(40)
    (256, 16385)
    """
    return 1 << units if units <= EXACT_UNITS else (1 << EXACT_UNITS) + 1


class Decided(NamedTuple):
    """An earlier comparison of the campaign: its level, None where it had none, and whether the champion moved."""

    level: float | None
    promoted: bool


def level_of(earlier: Sequence[Decided], comparisons: int, units: int) -> float:
    """Return at which p value the next comparison of a campaign decides.

    Each comparison gets an equal part of what is left of `CAMPAIGN_LEVEL` over the comparisons that remain (the last, and
    more than were planned, half of it, so that something is left should the campaign go on), but at least
    the finest p value that its boxes can give, as long as that much is left, rounded down to a p value they can give. What
    it cannot use is not spent, and one that moves the champion gives its level back (online fallback, Tian & Ramdas 2021,
    arXiv:1910.04900).

    The levels of comparisons that did not move the champion never sum to more than `CAMPAIGN_LEVEL`: up to the first
    false promotion those of the models that are no better are such levels, and the union bound over them holds.

    Parameters
    ----------
    earlier : sequence of Decided
        The comparisons before, in any order.
    comparisons : int
        Most that the campaign makes, one fewer than its generations; more are made from what is left.
    units : int
        Boxes or volumes whose tables differ.

    Returns
    -------
    float
        0 where nothing can be decided: too few units, or too little left.

    Examples
    --------
    Ten generations of eight boxes: one exchange of 256 may be as good, and more at the end, where fewer remain.

    >>> levels = []
    >>> for _ in range(9):
    ...     levels.append(level_of([Decided(level, False) for level in levels], 9, 8))
    >>> [round(256 * level) for level in levels], round(sum(levels), 3)
    ([1, 1, 1, 1, 1, 1, 2, 2, 1], 0.043)
    """
    left = CAMPAIGN_LEVEL - sum(c.level for c in earlier if c.level is not None and not c.promoted)
    share = left / max(2, comparisons - len(earlier))
    finest = 1 / steps(units)
    if finest > left:
        return 0.0
    return float(np.floor(max(share, finest) * steps(units) * (1 + _EQUAL))) / steps(units)
