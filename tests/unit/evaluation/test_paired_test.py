"""The exact paired test against another library and by hand, and the error that a campaign's comparisons share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from rescueseg.evaluation.paired_test import (
    CAMPAIGN_LEVEL,
    EXACT_UNITS,
    Decided,
    PairedTest,
    level_of,
    paired_test,
    steps,
)
from tests.benchmarks.champion_errors import Boxes, after, shares


def dice(counts: np.ndarray) -> float:
    """Return the mean Dice of pooled counts (K, 3), 1 where a class has none."""
    sums = [(2 * tp, 2 * tp + fp + fn) for tp, fp, fn in counts]
    return float(np.mean([a / b if b else 1.0 for a, b in sums]))


def by_scipy(first: np.ndarray, second: np.ndarray, alternative: str) -> float:
    """Return the p value of scipy's permutation of paired samples; the samples are the rows' numbers."""
    rows = np.concatenate([first, second])

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return dice(rows[b.astype(int)].sum(axis=0)) - dice(rows[a.astype(int)].sum(axis=0))

    numbers = np.arange(len(rows))
    result = permutation_test(
        (numbers[: len(first)], numbers[len(first) :]),
        statistic,
        permutation_type="samples",
        vectorized=False,
        n_resamples=np.inf,
        alternative=alternative,
    )
    return float(result.pvalue)


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_the_permutation_test_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 40, (2, 3 + seed, 2, 3)).astype(float)
    first[0, 0] = second[0, 0] = 0
    result = paired_test(first, second)
    assert result.difference == pytest.approx(dice(second.sum(axis=0)) - dice(first.sum(axis=0)))
    assert result.better == pytest.approx(by_scipy(first, second, "greater"))
    assert result.worse == pytest.approx(by_scipy(first, second, "less"))


def test_turned_round_it_says_the_opposite() -> None:
    first, second = np.random.default_rng(0).integers(0, 40, (2, 20, 1, 3)).astype(float)
    one, other = paired_test(first, second), paired_test(second, first)
    assert (other.difference, other.better, other.worse) == (-one.difference, one.worse, one.better)


def test_boxes_on_which_both_say_the_same_tell_nothing() -> None:
    first, second = np.full((9, 1, 3), 5.0), np.full((9, 1, 3), 5.0)
    assert paired_test(first, second) == PairedTest(difference=0.0, better=1.0, worse=1.0, units=0)
    second[:5, 0, 0] += 2
    result = paired_test(first, second)
    assert (result.units, result.better, result.worse) == (5, 1 / 32, 1.0)


def test_equal_differences_count_as_extreme() -> None:
    """Two boxes speak for the second by as much as two for the first: 11 of 16 sums of ±1 are at least 0."""
    first = np.array([[[5.0, 5, 5]]] * 4)
    second = first.copy()
    second[:2, 0] = (6, 4, 4)
    second[2:, 0] = (4, 6, 6)
    assert paired_test(first, second).better == 11 / 16


def test_boxes_of_a_volume_change_places_together() -> None:
    first, second = np.random.default_rng(1).integers(1, 40, (2, 8, 1, 3)).astype(float)
    units = [3, 3, 1, 1, 0, 0, 2, 2]
    pooled = [np.stack([t[[u == n for u in units]].sum(axis=0) for n in range(4)]) for t in (first, second)]
    assert paired_test(first, second, units) == paired_test(pooled[0], pooled[1])
    assert paired_test(first, second, units).units == 4


def test_many_boxes_are_exchanged_at_random_and_nearly_as_exactly() -> None:
    """Of boxes of one size and as many wrong voxels Dice is a mean, whose exchanges can be counted by adding up."""
    rng = np.random.default_rng(2)
    gain = rng.integers(-3, 6, EXACT_UNITS + 6)
    first = np.array([[[20.0, 20, 20]]] * len(gain))
    second = first + gain[:, None, None] * np.array([1.0, -1, -1])
    sums = np.array([0])
    for g in gain:
        sums = np.concatenate([sums + g, sums - g])
    exact = float((sums >= gain.sum()).mean())
    found = paired_test(first, second).better
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / 2**EXACT_UNITS))
    assert found == paired_test(first, second).better
    assert paired_test(first, first + np.array([3.0, -3, -3])).better == 1 / steps(len(gain))


def test_a_class_that_truth_holds_nowhere_is_not_compared() -> None:
    """A single voxel of it would cost its inventor half of the Dice."""
    honest = np.array([[[10.0, 5, 5], [0, 0, 0]]] * 5)
    inventor = np.array([[[10.0, 5, 5], [0, 1, 0]]] * 5)
    assert paired_test(honest, inventor) == PairedTest(difference=0.0, better=1.0, worse=1.0, units=0)


def test_without_a_class_in_truth_there_is_no_difference() -> None:
    nothing, something = np.array([[[0.0, 0, 0]]] * 8), np.array([[[0.0, 9, 0]]] * 8)
    assert paired_test(something, nothing) == PairedTest(difference=None, better=1.0, worse=1.0, units=0)


def test_a_class_in_one_box_alone_keeps_its_place_among_the_classes() -> None:
    """Were the classes chosen anew in each exchange, the rare one would be missing from some of them."""
    first = np.array([[[60.0, 40, 40], [0, 0, 0]]] * 7 + [[[60, 40, 40], [3, 7, 7]]], dtype=float)
    second = first.copy()
    second[7, 1] = (8, 2, 2)
    result = paired_test(first, second)
    assert result.difference == pytest.approx(0.25)
    assert (result.units, result.better) == (1, 0.5)


earlier = st.lists(st.tuples(st.integers(4, 20), st.booleans()), max_size=30)


@given(earlier, st.integers(1, 12))
@settings(deadline=None)
def test_what_did_not_promote_never_spends_more_than_the_campaign_may(
    units: Sequence[tuple[int, bool]], comparisons: int
) -> None:
    history: list[Decided] = []
    for count, promoted in units:
        level = level_of(history, comparisons, count)
        assert level * steps(count) == pytest.approx(round(level * steps(count))), "a p value that they can give"
        history.append(Decided(level, promoted and level > 0))
        assert sum(c.level or 0 for c in history if not c.promoted) <= CAMPAIGN_LEVEL + 1e-9


def test_a_promotion_gives_its_level_back_and_older_comparisons_took_none() -> None:
    first = level_of([], 9, 16)
    assert level_of([Decided(first, True)], 9, 16) > level_of([Decided(first, False)], 9, 16)
    assert level_of([Decided(None, False)], 9, 16) == level_of([Decided(first, True)], 9, 16)


@pytest.mark.parametrize(("units", "decided"), [(4, 0), (5, 1), (6, 3), (7, 6), (8, 9)])
def test_few_boxes_decide_as_long_as_their_finest_level_is_left(units: int, decided: int) -> None:
    history: list[Decided] = []
    for _ in range(9):
        history.append(Decided(level_of(history, 9, units), False))
    assert sum(1 for c in history if c.level) == decided


@pytest.mark.parametrize(
    "boxes", [Boxes("equal", 8), Boxes("spread, heavy tails", 8, spread=1.0, heavy=True), Boxes("seven", 7)]
)
def test_equal_generations_rarely_move_the_champion(boxes: Boxes) -> None:
    """A hundred campaigns of ten: at most as many as 5 of 100 allow by 95 %."""
    assert shares(boxes, 0.0, after, 100)["any"] <= 5 + 164 * np.sqrt(0.05 * 0.95 / 100)


def test_a_gain_well_above_the_noise_is_seen() -> None:
    assert shares(Boxes("", 8, noise=0.03), 0.05, after, 40)["any"] >= 95
    assert shares(Boxes("", 16, noise=0.05), 0.05, after, 5)["any"] == 100
