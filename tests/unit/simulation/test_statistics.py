"""Statistics of query strategies against what was planted, plain loops and values worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scipy import stats

from rescueseg.errors import EvaluationError
from rescueseg.simulation.penalties import holm, paired_p_values, penalties
from rescueseg.simulation.rows import FULL_DATA
from rescueseg.simulation.settings import Setting, settings
from rescueseg.simulation.statistics import (
    areas,
    aubc,
    efficiencies,
    stopping_cost,
)
from tests.unit.simulation.benchmark_rows import benchmark, row_of

FINE = 1e-6
"""Rounding of Dice to counts."""


def setting_of(*args: object, **kwargs: object) -> Setting:
    (setting,) = settings(benchmark(*args, **kwargs))  # type: ignore[arg-type]
    return setting


# area under the budget curve ------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.lists(st.floats(0.1, 100), min_size=2, max_size=8))
def test_the_area_of_a_constant_curve_is_its_value(value: float, steps: list[float]) -> None:
    assert aubc(np.cumsum(steps), np.full(len(steps), value)) == pytest.approx(value)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-50, 50))
def test_the_area_depends_neither_on_the_unit_nor_on_the_start_of_the_budgets(
    dice: list[float], scale: float, start: float
) -> None:
    budgets = np.arange(len(dice), dtype=float)
    area = float(aubc(budgets, np.array(dice)))
    assert float(aubc(start + scale * budgets, np.array(dice))) == pytest.approx(area)
    assert area == pytest.approx(np.trapezoid(dice, dx=1 / (len(dice) - 1)))


def test_areas_are_means_over_seeds_with_their_standard_deviation() -> None:
    setting = setting_of({"flat": lambda s, n: 0.5 + 0.1 * s, "line": lambda s, n: 0.4 + 0.1 * n}, loops=3)
    found = areas(setting)
    assert found["flat"].by_seed == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8}, abs=FINE)
    assert found["flat"].mean == pytest.approx(0.65, abs=FINE)
    assert found["flat"].sd == pytest.approx(math.sqrt(0.05 / 3), abs=FINE)
    assert (found["line"].mean, found["line"].sd) == (pytest.approx(0.5, abs=FINE), pytest.approx(0, abs=FINE))
    assert areas(setting_of({"flat": lambda s, n: 0.5}, seeds=[7]))["flat"].sd is None
    with pytest.raises(EvaluationError, match="two loops"):
        areas(setting_of({"flat": lambda s, n: 0.5}, loops=1))


# efficiency by foreground ---------------------------------------------------------------------------------------------


def planted(rate: float, noise: float = 0.0, repetition: int = 0) -> Callable[[int, int], float]:
    """Return a curve whose efficiency is known: `benchmark` adds 0.001 of the pool's foreground in each loop."""

    def curve(seed: int, loop: int) -> float:
        off = np.random.default_rng((seed, loop, repetition)).normal(0, noise) if loop else 0.0
        return float(0.9 - 0.5 * math.exp(-rate * 0.001 * loop) + off)

    return curve


@pytest.mark.parametrize("rate", [20.0, 300.0, 900.0])
def test_a_planted_efficiency_comes_back(rate: float) -> None:
    exact, noisy = efficiencies(setting_of({"exact": planted(rate), "noisy": planted(rate, 0.005)})).values()
    assert exact.rate == pytest.approx(rate, rel=1e-3)
    assert exact.error == pytest.approx(0, abs=1e-3 * rate)
    assert noisy.rate == pytest.approx(rate, rel=0.05)


def test_the_error_of_an_efficiency_is_how_much_other_seeds_change_it() -> None:
    many = [efficiencies(setting_of({"a": planted(300.0, 0.01, repetition)}))["a"] for repetition in range(60)]
    rates, errors = np.array([e.rate for e in many], float), np.array([e.error for e in many], float)
    assert rates.mean() == pytest.approx(300, rel=0.02)
    assert np.sqrt((errors**2).mean()) == pytest.approx(rates.std(), rel=0.25)


def test_an_efficiency_counts_the_foreground_added_to_each_seeds_own_start() -> None:
    """Seeds begin with more or less foreground, and each comes closer to the whole pool at one rate from there."""

    def step(strategy: str, seed: int, loop: int) -> int:
        return 1000 * (1 + seed) + 1000 * loop

    (found,) = efficiencies(setting_of({"a": planted(300.0)}, step=step)).values()
    assert found.rate == pytest.approx(300.0, rel=1e-3)


def test_the_error_of_an_efficiency_is_that_of_leaving_out_each_seed() -> None:
    rates = (200.0, 260.0, 330.0, 400.0)

    def mixed(seed: int, loop: int) -> float:
        return float(planted(rates[seed])(seed, loop))

    full = [row_of(FULL_DATA, seed=seed, dice=[0.88 + 0.01 * seed] * 6) for seed in range(4)]
    rows = [*benchmark({"a": mixed}, full=None), *full]
    (whole,) = efficiencies(settings(rows)[0]).values()
    without = [efficiencies(settings(r for r in rows if r.seed != left)[0])["a"].rate for left in range(4)]
    assert whole.error == pytest.approx(math.sqrt(3 * np.var(np.array(without, float))), rel=1e-6)
    assert 20 < whole.error < 80  # of the mean of four such rates: 43
    assert efficiencies(setting_of({"a": mixed}, seeds=[0, 1]))["a"].error is None


def test_an_efficiency_that_says_nothing_says_why() -> None:
    rising = planted(300.0)
    reasons = {
        "no training on all of the pool": setting_of({"a": rising}, full=None),
        "no better Dice than the start": setting_of({"a": rising}, full=0.4),
        "no foreground was added": setting_of({"a": rising}, step=lambda strategy, seed, loop: 1000),
        "as soon as foreground is added": setting_of({"a": lambda s, n: 0.9 if n else 0.4}),
    }
    for reason, setting in reasons.items():
        (found,) = efficiencies(setting).values()
        assert (found.rate, found.error) == (None, None)
        assert reason in found.reason
    (flat,) = efficiencies(setting_of({"a": lambda s, n: 0.4})).values()
    assert (flat.rate, flat.reason) == (pytest.approx(0, abs=0.1), "")


@pytest.mark.parametrize("factor", [2, 10])
def test_foreground_in_other_units_scales_the_efficiency(factor: int) -> None:
    few, many = (
        efficiencies(
            setting_of({"a": planted(300.0, 0.01)}, step=lambda strategy, seed, loop, f=f: 1000 * f * (loop + 1))
        )
        for f in (1, factor)
    )
    assert many["a"].rate == pytest.approx(few["a"].rate / factor, rel=1e-4)
    assert many["a"].error == pytest.approx(few["a"].error / factor, rel=1e-2)


# who beats whom -------------------------------------------------------------------------------------------------------


def wobble(seed: int, loop: int) -> float:
    return 0.02 * math.sin(5.3 * seed + 2.1 * loop)


DICE = {
    "same": lambda s, n: 0.5 + 0.05 * n + wobble(s, n),
    "twin": lambda s, n: 0.5 + 0.05 * n + wobble(s, n),
    "better": lambda s, n: 0.5 + 0.05 * n + wobble(s, n) + (0.04 + 0.002 * s if n > 1 else 0),
    "unsteady": lambda s, n: 0.55 + 0.05 * n + wobble(3 * s + 1, 2 * n),
}


def test_strategies_that_are_the_same_beat_each_other_nowhere() -> None:
    for corrected in (False, True):
        found = penalties([setting_of({name: DICE[name] for name in ("same", "twin")})], corrected=corrected)
        assert found.matrix.tolist() == [[0, 0], [0, 0]]
        assert found.beaten == {"same": 0, "twin": 0}


def test_a_penalty_is_the_share_of_budgets_at_which_one_is_beaten() -> None:
    found = penalties([setting_of({name: DICE[name] for name in ("same", "better")})])
    assert found.strategies == ("better", "same")
    np.testing.assert_allclose(found.matrix, [[0, 3 / 5], [0, 0]])
    assert found.beaten == {"better": 0, "same": pytest.approx(0.6)}


def test_the_matrix_is_that_of_plain_loops_over_settings_budgets_and_pairs() -> None:
    both = settings([*benchmark(DICE), *benchmark(DICE, loops=4, seeds=range(6), regime="high")])
    found = penalties(both)
    matrix = np.zeros((4, 4))
    for setting, (i, j) in itertools.product(both, itertools.permutations(range(4), 2)):
        for loop in range(setting.loops):
            one, other = setting.dice[i, :, loop], setting.dice[j, :, loop]
            if (one == other).all():
                continue
            test = stats.ttest_rel(one, other)
            matrix[i, j] += (test.pvalue < 0.05 and test.statistic > 0) / setting.loops
    np.testing.assert_allclose(found.matrix, matrix)
    assert found.settings == 2
    assert matrix.any()
    assert list(found.beaten.values()) == pytest.approx(matrix.sum(axis=0) / 3)


def test_the_correction_is_over_the_pairs_of_a_budget() -> None:
    """Of three strategies, two pairs differ with p = 0.03 each: alone both are seen, of three tests neither is."""
    p = 0.03
    unit = np.array([1.0, -1.0, 1.0, -1.0])
    t = stats.t.isf(p / 2, 3)
    differences = 0.01 + unit * 0.01 * 2 / (t * math.sqrt(4 / 3))
    assert paired_p_values(differences) == pytest.approx(p)
    alike = dict.fromkeys(("a", "b"), DICE["same"]) | {"c": lambda s, n: DICE["same"](s, n) + differences[s]}
    setting = setting_of(alike, loops=1)
    np.testing.assert_allclose(penalties([setting]).matrix, [[0, 0, 0], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(penalties([setting], corrected=True).matrix, np.zeros((3, 3)))


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 are 0.02, 0.03, 0.06 and 0.04, which is raised to 0.06."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.2])).tolist() == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    level, rejected = 0.05, set()
    for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - k) >= level:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(holm(np.array(p))) if value < level} == rejected


@limits(max_examples=10, deadline=None)
@given(st.permutations(range(4)))
def test_other_names_of_the_seeds_change_no_area_no_efficiency_and_no_penalty(names: list[int]) -> None:
    rows = benchmark(DICE, loops=3)
    (one,) = settings(rows)
    (other,) = settings(
        row.model_copy(update={"seed": 10 + names[row.seed]}) if row.strategy in DICE else row for row in rows
    )
    renamed, rates = areas(other), efficiencies(other)
    for name, area in areas(one).items():
        assert (renamed[name].mean, renamed[name].sd) == (pytest.approx(area.mean), pytest.approx(area.sd))
    for name, rate in efficiencies(one).items():
        assert rates[name].rate == pytest.approx(rate.rate, rel=1e-5)
        assert rates[name].error == pytest.approx(rate.error, rel=1e-3)
    np.testing.assert_allclose(penalties([other]).matrix, penalties([one]).matrix)


def test_penalties_of_settings_that_differ_are_refused() -> None:
    pair = setting_of({name: DICE[name] for name in ("same", "better")})
    for other in (setting_of(DICE), setting_of({name: DICE[name] for name in ("same", "better")}, seeds=[0])):
        with pytest.raises(EvaluationError, match="two seeds, and the same strategies"):
            penalties([pair, other])
    assert penalties([]).beaten == {}


# stopping rule --------------------------------------------------------------------------------------------------------

X, Y = np.array([10.0, 20, 30, 40, 50]), np.array([0.5, 0.7, 0.78, 0.8, 0.79])


@pytest.mark.parametrize(
    ("stop", "within", "best", "spent", "lost"),
    [
        (3, 0.0, 3, 0, 0.0),
        (4, 0.0, 3, 10, 0.01),
        (1, 0.0, 3, -20, 0.1),
        (3, 0.025, 2, 10, -0.02),
        (None, 0.025, 2, 20, -0.01),
    ],
)
def test_what_stopping_costs(stop: int | None, within: float, best: int, spent: float, lost: float) -> None:
    stops = [stop is not None and loop >= stop for loop in range(5)]
    cost = stopping_cost(X, Y, stops, within)
    assert (cost.stop, cost.best, cost.spent_beyond) == (4 if stop is None else stop, best, spent)
    assert cost.dice_lost == pytest.approx(lost)


def test_the_first_stop_counts() -> None:
    assert stopping_cost(X, Y, [False, True, False, False, True]).stop == 1
    with pytest.raises(EvaluationError, match="5 amounts and 5 values of Dice has 2 decisions"):
        stopping_cost(X, Y, [False, True])
