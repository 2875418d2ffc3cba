"""How much annotation is needed: planted ratios come back, and intervals hold the truth as often as they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import isotonic_regression

from rescueseg.errors import EvaluationError
from rescueseg.simulation.annotation_needed import (
    amounts_needed,
    area_gain,
    ceiling,
    first_reached,
    needed_ratio,
    rising,
)
from rescueseg.simulation.draws import Draws, draws_of
from rescueseg.simulation.rows import FULL_DATA
from rescueseg.simulation.settings import AXES, Setting, settings
from rescueseg.simulation.statistics import areas
from tests.benchmarks.strategy_coverage import Population, coverage
from tests.unit.simulation.benchmark_rows import benchmark, row_of

FINE = 1e-6
"""Rounding of Dice to counts."""


def setting_of(*args: object, **kwargs: object) -> Setting:
    (setting,) = settings(benchmark(*args, **kwargs))  # type: ignore[arg-type]
    return setting


def drawn(setting: Setting, draws: int = 400) -> Draws:
    found = draws_of(setting, draws)
    assert found is not None
    return found


def noisy(curve: Callable[[float], float], noise: float, key: int) -> Callable[[int, int], float]:
    return lambda s, n: curve(n) + np.random.default_rng((key, s, n)).normal(0, noise)


def line(loop: float) -> float:
    return 0.5 + 0.1 * loop


# where a curve reaches a target ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_the_rising_curve_is_the_isotonic_regression_of_scipy(y: list[float]) -> None:
    np.testing.assert_allclose(rising(np.array(y)), isotonic_regression(y).x, atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.floats(-0.2, 1.2), st.floats(0.01, 100))
def test_where_a_target_is_reached_scales_with_x_and_lies_on_the_rising_curve(
    y: list[float], target: float, scale: float
) -> None:
    x, values = np.cumsum(np.arange(1.0, len(y) + 1)), np.array(y)
    found = float(first_reached(x, values, np.array(target)))
    assert float(first_reached(scale * x, values, np.array(target))) == pytest.approx(scale * found)
    fit = isotonic_regression(values).x
    if target > max(fit) + 1e-9:
        assert found == math.inf
    elif target < min(fit) - 1e-9:
        assert found == x[0]
    elif found < math.inf:
        assert np.interp(found, x, fit) == pytest.approx(target, abs=1e-6) or found == x[0]
        assert (fit[x < found] < target + 1e-9).all()


def test_a_dip_is_levelled_before_the_target_is_looked_for() -> None:
    """0.6, 0.8, 0.7 and 0.9: the middle is 0.75 twice, so 0.8 is reached between the third and the fourth."""
    setting = setting_of({"a": lambda s, n: (0.6, 0.8, 0.7, 0.9)[n]}, loops=4, full=0.8)
    found = amounts_needed(setting, share=1.0)["a"]
    assert found.amount == pytest.approx(3000 + 1000 * 0.05 / 0.15, rel=1e-4)
    assert (found.largest, found.is_reached, found.interval) == (4000, True, None)


# planted answers ------------------------------------------------------------------------------------------------------


def test_a_planted_ratio_comes_back_from_curves_of_the_same_budgets() -> None:
    """The fast strategy's Dice at x is the slow one's at x / 0.3."""

    def slow(voxels: float) -> float:
        return 0.9 - 0.4 * math.exp(-voxels / 8000)

    dice = {"slow": lambda s, n: slow(1000 * (n + 1)), "fast": lambda s, n: slow(1000 * (n + 1) / 0.3)}
    setting = setting_of(dice, loops=30)
    assert amounts_needed(setting)["slow"].amount == pytest.approx(8000 * math.log(0.4 / 0.045), rel=0.005)
    assert needed_ratio(setting, "fast", "slow").value == pytest.approx(0.3, rel=0.01)
    assert needed_ratio(setting, "slow", "fast").value == pytest.approx(1 / 0.3, rel=0.01)


@pytest.mark.parametrize("axis", AXES[:4])
def test_a_planted_ratio_comes_back_from_curves_that_differ_in_their_amounts_alone(axis: str) -> None:
    dice = {name: noisy(line, 0.02, 1) for name in ("all", "third")}
    setting = setting_of(
        dice, step=lambda strategy, seed, loop: (300 if strategy == "third" else 1000) * (loop + 1), loops=6
    )
    found = needed_ratio(setting, "third", "all", axis, draws=drawn(setting))  # type: ignore[arg-type]
    assert found.value == pytest.approx(0.3)
    assert found.interval == pytest.approx((0.3, 0.3))


def test_two_strategies_that_are_the_same_have_the_ratio_1() -> None:
    setting = setting_of({name: noisy(line, 0.02, 1) for name in ("a", "b")}, loops=6)
    draws = drawn(setting)
    found = needed_ratio(setting, "a", "b", draws=draws)
    assert (found.value, found.not_reached, found.undecided) == (1, 0, 0)
    assert found.interval == (1, 1)
    assert area_gain(setting, "a", "b", draws).interval == (0, 0)


def test_two_strategies_that_are_alike_have_a_ratio_whose_interval_holds_1() -> None:
    setting = setting_of({"a": noisy(line, 0.02, 1), "b": noisy(line, 0.02, 2)}, loops=6)
    found = needed_ratio(setting, "a", "b", draws=drawn(setting))
    assert found.interval is not None
    assert 0.5 < found.interval[0] < 1 < found.interval[1] < 2
    assert found.interval[0] < found.value < found.interval[1]
    inverse = needed_ratio(setting, "b", "a", draws=drawn(setting))
    assert inverse.interval == pytest.approx((1 / found.interval[1], 1 / found.interval[0]))


# what is not reached --------------------------------------------------------------------------------------------------


def test_what_is_not_reached_is_told_and_not_guessed() -> None:
    dice = {"good": noisy(line, 0.005, 1), "poor": noisy(lambda n: 0.5 + 0.02 * n, 0.005, 2), "flat": lambda s, n: 0.5}
    setting = setting_of(dice, loops=6)
    draws = drawn(setting)
    found = amounts_needed(setting, draws=draws)
    for name in ("poor", "flat"):
        assert (found[name].amount, found[name].is_reached) == (math.inf, False)
        assert (found[name].largest, found[name].not_reached) == (6000, 1)
        assert found[name].interval == (math.inf, math.inf)
    assert (found["good"].not_reached, found["good"].at_start) == (0, 0)
    assert (needed_ratio(setting, "poor", "good").value, needed_ratio(setting, "good", "poor").value) == (math.inf, 0)
    better = needed_ratio(setting, "good", "poor", draws=draws)
    assert (better.interval, better.not_reached, better.reference_not_reached) == ((0, 0), 0, 1)
    neither = needed_ratio(setting, "poor", "flat", draws=draws)
    assert (neither.value, neither.interval, neither.undecided) == (None, (0, math.inf), 1)


def test_strategies_for_which_the_start_is_enough_are_not_called_alike() -> None:
    setting = setting_of({"a": lambda s, n: 0.88 + 0.001 * n, "b": lambda s, n: 0.88 + 0.004 * n}, loops=4)
    draws = drawn(setting)
    found = amounts_needed(setting, draws=draws)["a"]
    assert (found.amount, found.at_start, found.not_reached) == (1000, 1, 0)
    ratio = needed_ratio(setting, "a", "b", draws=draws)
    assert (ratio.value, ratio.interval, ratio.undecided) == (None, (0, math.inf), 1)


def test_a_target_that_is_just_reached_has_an_interval_without_upper_end() -> None:
    setting = setting_of({"a": noisy(lambda n: 0.6 + 0.05 * n, 0.03, 3)}, loops=6, full=0.9)
    found = amounts_needed(setting, draws=drawn(setting))["a"]
    assert found.interval is not None
    assert found.not_reached is not None
    assert 0.025 < found.not_reached < 1
    assert found.interval[0] < 6000
    assert found.interval[1] == math.inf


def test_without_a_training_on_all_of_the_pool_there_is_no_target() -> None:
    setting = setting_of({"a": lambda s, n: line(n)}, full=None)
    with pytest.raises(EvaluationError, match="Run the strategy full_data too"):
        amounts_needed(setting)
    assert area_gain(setting, "a", "a", drawn(setting)).value == 0


# gain and ceiling -----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_gain_is_that_of_the_t_test_where_boxes_are_alike() -> None:
    """Boxes of one Dice tell nothing when they are drawn anew; what is left is the scatter of the seeds."""
    setting = setting_of({"a": noisy(line, 0.02, 1), "b": noisy(lambda n: line(n) - 0.03, 0.02, 2)}, boxes=4, full=0.9)
    runs = [
        replace(run, counts=np.broadcast_to(run.counts.mean(axis=2, keepdims=True), run.counts.shape))
        for run in setting.runs
    ]
    alike = replace(setting, runs=tuple(runs))
    by_seed = [areas(alike)[name].by_seed for name in ("a", "b")]
    differences = np.array(list(by_seed[0].values())) - np.array(list(by_seed[1].values()))
    wanted = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = area_gain(alike, "a", "b", drawn(alike, 40_000))
    assert found.value == pytest.approx(differences.mean())
    assert found.interval == pytest.approx((wanted.low, wanted.high), abs=0.06 * (wanted.high - wanted.low))


def test_a_ceiling_is_sure_only_where_the_oracle_is_better() -> None:
    dice = {"random": noisy(line, 0.01, 1), "oracle": noisy(lambda n: line(n) + 0.05, 0.01, 2)}
    setting = setting_of(dice | {"no better": noisy(line, 0.01, 3)})
    draws = drawn(setting)
    found = ceiling(setting, "oracle", draws=draws)
    assert found.value == pytest.approx(0.05, abs=0.01)
    assert found.is_sure
    assert not ceiling(setting, "no better", draws=draws).is_sure
    assert not ceiling(setting, "random", "oracle", draws=draws).is_sure
    assert not ceiling(setting, "oracle").is_sure
    with pytest.raises(EvaluationError, match="'errors' was not run"):
        ceiling(setting, "errors")


# draws ----------------------------------------------------------------------------------------------------------------


def test_the_draws_of_a_setting_are_the_same_every_time_and_paired() -> None:
    curve = noisy(line, 0.02, 1)
    setting = setting_of({"a": curve, "b": curve, "c": noisy(line, 0.02, 2)})
    one, other = drawn(setting), drawn(setting)
    np.testing.assert_array_equal(one.dice, other.dice)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.dice[:, 0], one.dice[:, 1])
    np.testing.assert_allclose(one.weights.sum(axis=1), 1)
    assert np.isin(np.round((one.full_dice - 0.9) / 0.008 * 5), np.arange(-13, 14)).all()


def test_a_training_on_all_of_the_pool_is_drawn_with_its_seed() -> None:
    """The strategy has the Dice of all of the pool, seed by seed: so it has in every draw."""
    full = [row_of(FULL_DATA, seed=seed, dice=[0.7 + 0.05 * seed] * 6) for seed in range(4)]
    (setting,) = settings([*benchmark({"a": lambda s, n: 0.7 + 0.05 * s}, full=None), *full])
    found = drawn(setting)
    assert found.full_dice.std() > 0.02
    level = found.mean(found.dice)[:, 0, 0] - found.full_dice
    assert abs(level).max() < 0.02 + FINE  # boxes of the strategy are up to 0.02 harder or easier


def test_drawn_boxes_scatter_as_the_mean_of_few_boxes_does() -> None:
    """Boxes of one size whose false positives are as many as their false negatives: pooled Dice is the mean over boxes."""
    setting = setting_of({"a": lambda s, n: 0.6})
    wanted = np.linspace(-0.02, 0.02, 6).var(ddof=1) / 6
    assert drawn(setting, 20_000).dice[:, 0, 0, 0].var() == pytest.approx(wanted, rel=0.05)


def test_few_seeds_and_few_boxes_give_no_interval() -> None:
    curve = {"a": noisy(line, 0.02, 1)}
    assert draws_of(setting_of(curve, seeds=range(3), boxes=4), 10) is not None
    assert draws_of(setting_of(curve, seeds=range(2))) is None
    assert draws_of(setting_of(curve, boxes=3)) is None


def test_draws_hold_a_class_even_where_few_boxes_do() -> None:
    """Of 30 boxes four hold foreground: one draw in fifty or so would hold none."""
    setting = setting_of({"a": noisy(line, 0.02, 1)}, boxes=30)
    runs = []
    for run in setting.runs:
        counts, full = run.counts.copy(), run.full_counts.copy()
        counts[:, :, 4:], full[:, 4:] = 0, 0
        runs.append(replace(run, counts=counts, full_counts=full))
    found = drawn(replace(setting, runs=tuple(runs)), 2000)
    assert np.isfinite(found.dice).all()
    assert np.isfinite(found.full_dice).all()


def test_boxes_are_drawn_once_for_all_seeds_only_where_they_are_the_same() -> None:
    """All trainings are equal: with the same boxes drawn they all have one Dice, else those of a seed have."""
    setting = setting_of({"a": lambda s, n: 0.6, "b": lambda s, n: 0.6}, full=0.6)
    same = drawn(setting).dice
    assert np.ptp(same, axis=(1, 2, 3)).max() == 0
    assert np.ptp(same) > 0
    runs = [replace(run, boxes=tuple(f"{run.seed}, {name}" for name in run.boxes)) for run in setting.runs]
    own = drawn(replace(setting, runs=tuple(runs))).dice
    assert np.ptp(own, axis=(1, 3)).max() == 0
    assert np.median(np.ptp(own, axis=2)) > 0


@limits(max_examples=10, deadline=None)
@given(st.permutations(range(4)), st.integers(2, 50))
def test_neither_names_of_seeds_nor_the_unit_of_voxels_change_more_than_they_must(
    names: list[int], factor: int
) -> None:
    dice = {"a": noisy(line, 0.02, 1), "b": noisy(line, 0.02, 2)}
    rows = benchmark(dice, loops=6)
    (one,) = settings(rows)
    (renamed,) = settings(
        row.model_copy(update={"seed": 10 + names[row.seed]}) if row.strategy in dice else row for row in rows
    )
    (scaled,) = settings(row.model_copy(update={"voxels_drawn": factor * row.voxels_drawn}) for row in rows)
    (later,) = settings(
        row.model_copy(update={"seed": 10 + row.seed}) if row.strategy in dice else row for row in reversed(rows)
    )
    draws = drawn(one, 200)
    wanted, ratio = amounts_needed(one, draws=draws), needed_ratio(one, "a", "b", draws=draws)
    assert amounts_needed(later, draws=drawn(later, 200)) == wanted
    for name, needed in amounts_needed(scaled, draws=drawn(scaled, 200)).items():
        assert needed.amount == pytest.approx(factor * wanted[name].amount)
        assert needed.interval == pytest.approx([factor * end for end in wanted[name].interval or ()])
        assert amounts_needed(renamed)[name].amount == pytest.approx(wanted[name].amount)
    again = needed_ratio(scaled, "a", "b", draws=drawn(scaled, 200))
    assert (again.value, again.interval) == (pytest.approx(ratio.value), pytest.approx(ratio.interval))
    assert needed_ratio(renamed, "a", "b").value == pytest.approx(ratio.value)


@pytest.mark.parametrize("population", [Population(), Population(boxes=0.8, seeds=0.1, own_boxes=True)])
def test_intervals_hold_the_truth_of_a_known_population(population: Population) -> None:
    """0.91 is two standard errors below 0.95. Were seeds drawn with replacement, 0.85 of the ratios would be held."""
    held = coverage(population, seeds=4, boxes=8, repetitions=120, draws=400)
    assert (held > 0.9).all(), held
