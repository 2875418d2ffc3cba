"""Curves and settings of a benchmark: what they hold, and which trainings may not be compared."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescueseg.errors import EvaluationError
from rescueseg.simulation.rows import FULL_DATA, SimulationRow
from rescueseg.simulation.settings import AXES, Axis, curves, finished, settings
from tests.unit.simulation.benchmark_rows import benchmark, boxes_with, row_of

DICE = {"random": lambda s, n: 0.5 + 0.05 * n + 0.01 * s, "entropy": lambda s, n: 0.5 + 0.08 * n + 0.01 * s}
ROWS = benchmark(DICE, loops=3)


def expected(axis: Axis, loop: int) -> float:
    """Return the amounts of `ROWS` from their definition."""
    voxels = 1000 * (loop + 1)
    return {
        "voxels_drawn": voxels,
        "foreground_share": voxels / 10 / 100_000,
        "voxels_corrected": voxels / 10,
        "seconds": voxels / 100,
        "patches": 4 * (loop + 1),
    }[axis]


@pytest.mark.parametrize("axis", AXES)
def test_a_curve_holds_what_was_annotated_and_the_dice_of_its_loops(axis: Axis) -> None:
    found = curves(ROWS, axis)
    assert [(c.strategy, c.seed) for c in found] == [
        (name, seed) for name in ("entropy", "random") for seed in range(4)
    ]
    for curve in found:
        np.testing.assert_allclose(curve.x, [expected(axis, loop) for loop in range(3)])
        np.testing.assert_allclose(curve.dice, [DICE[curve.strategy](curve.seed, n) for n in range(3)], atol=1e-6)


@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rng: random.Random) -> None:
    shuffled = list(ROWS)
    rng.shuffle(shuffled)
    for one, other in zip(curves(shuffled, "seconds"), curves(ROWS, "seconds"), strict=True):
        assert (one.strategy, one.seed, one.dice.tolist()) == (other.strategy, other.seed, other.dice.tolist())
    (one,), (other,) = settings(shuffled), settings(ROWS)
    assert (one.strategies, one.seeds) == (other.strategies, other.seeds)
    for mine, its in zip(one.runs, other.runs, strict=True):
        np.testing.assert_array_equal(mine.counts, its.counts)
        np.testing.assert_array_equal(mine.full_counts, its.full_counts)


def test_a_setting_holds_all_trainings_by_strategy_seed_and_loop() -> None:
    (setting,) = settings(ROWS)
    assert (setting.dataset, setting.regime, setting.loops) == ("puncta", "low", 3)
    for i, name in enumerate(setting.strategies):
        wanted = [[DICE[name](seed, loop) for loop in range(3)] for seed in range(4)]
        np.testing.assert_allclose(setting.dice[i], wanted, atol=1e-6)
    assert setting.full_dice == pytest.approx([0.9] * 4, abs=1e-6)
    assert setting.have_same_boxes
    assert setting.index("random") == 1
    with pytest.raises(EvaluationError, match="'oracle' was not run: there are entropy, random"):
        setting.index("oracle")


def own_boxes(rows: list[SimulationRow]) -> list[SimulationRow]:
    """Return rows whose boxes have other names for each seed."""
    return [
        row.model_copy(
            update={"boxes": tuple(box.model_copy(update={"name": f"{row.seed}, {box.name}"}) for box in row.boxes)}
        )
        for row in rows
    ]


def test_for_a_seed_counts_its_own_training_on_all_of_the_pool_of_whichever_regime() -> None:
    whole = [row_of(FULL_DATA, seed=s, regime=g, dice=[d] * 6) for s, g, d in ((0, "low", 0.8), (1, "high", 0.7))]
    whole.append(row_of(FULL_DATA, dataset="nuclei", dice=[0.1] * 6))
    rows = [*benchmark(DICE, full=None), *benchmark(DICE, full=None, regime="high")]
    for setting in settings(
        [*rows, *whole]
    ):  # seeds without one have that of all others that are judged by the same boxes
        assert setting.full_dice == pytest.approx([0.8, 0.7, 0.75, 0.75])
    assert [setting.full_dice for setting in settings(rows)] == [None, None]


def test_boxes_may_differ_between_seeds_and_then_each_needs_its_own_training_on_all_of_the_pool() -> None:
    runs = benchmark(DICE, full=None)
    whole = [row_of(FULL_DATA, seed=seed, dice=[0.7 + 0.05 * seed] * 6) for seed in range(4)]
    (setting,) = settings(own_boxes([*runs, *whole]))
    assert not setting.have_same_boxes
    assert setting.runs[2].boxes[0] == "2, box 0"
    assert setting.full_dice == pytest.approx([0.7, 0.75, 0.8, 0.85])
    (lacking,) = settings(own_boxes([*runs, *whole[1:]]))
    assert lacking.full_dice is None


def test_seeds_may_differ_in_the_number_of_their_boxes() -> None:
    rows = [*benchmark(DICE, seeds=[0], boxes=5), *benchmark(DICE, seeds=[1], boxes=7, full=None)]
    (setting,) = settings(rows)
    assert [run.counts.shape for run in setting.runs] == [(2, 5, 5, 1, 3), (2, 5, 7, 1, 3)]
    assert setting.dice.shape == (2, 2, 5)


def changed(index: int, **fields: Any) -> list[SimulationRow]:
    return [row.model_copy(update=fields) if i == index else row for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:5] + ROWS[6:], "low, random, seed 1: loop 2 is missing"),
        (ROWS[:3] + ROWS[4:], "low, random, seed 1: loop 0 is missing"),
        ([*ROWS, ROWS[0]], "two rows"),
        (changed(4, trainer="nnunet"), "trained by nnunet, others by unet"),
        (changed(4, pool_foreground=50_000), "its pool is another"),
        (changed(4, boxes=boxes_with([0.5] * 5)), "its test boxes are not those of the others"),
        (changed(4, boxes=ROWS[4].boxes[::-1]), "its test boxes are not those of the others"),
        (changed(len(ROWS) - 1, boxes=boxes_with([0.5] * 5)), "full_data, seed 0: its test boxes are not those"),
        (changed(len(ROWS) - 1, trainer="nnunet"), "full_data, seed 0: it was trained by nnunet"),
        (changed(4, voxels_drawn=500), "seed 1: voxels_drawn falls at loop 1"),
        ([row.model_copy(update={"boxes": ()}) for row in ROWS], "hold no class"),
    ],
)
def test_trainings_that_cannot_be_compared_are_refused(rows: list[SimulationRow], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        settings(rows)


def test_a_curve_that_ends_early_is_one_and_a_curve_with_a_gap_is_not() -> None:
    assert [len(curve.x) for curve in curves(ROWS[:2], "patches")] == [2]
    with pytest.raises(EvaluationError, match="loop 1 is missing"):
        curves([ROWS[0], ROWS[2]], "patches")
    with pytest.raises(EvaluationError, match="two rows are of loop 0"):
        curves([ROWS[0], ROWS[0]], "patches")
    with pytest.raises(EvaluationError, match="hold no class"):
        curves([ROWS[0].model_copy(update={"boxes": ()})], "patches")


def test_of_a_benchmark_that_runs_the_finished_seeds_are_kept() -> None:
    other = benchmark(DICE, loops=2, regime="high")
    cut = [row for row in ROWS if row.key[2:] not in {("random", 1, 2), *(("entropy", 3, n) for n in range(3))}]
    kept = finished([*cut, *other])
    assert {row.seed for row in kept if row.regime == "low"} == {0, 2}
    assert [row for row in kept if row.regime == "high"] == other
    assert [setting.seeds for setting in settings(kept)] == [(0, 1, 2, 3), (0, 2)]
    assert sum(row.strategy == FULL_DATA for row in kept) == 2
