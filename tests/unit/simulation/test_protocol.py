"""Which trainings a benchmark takes: counted by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rescueseg.active_learning.strategies import Loop
from rescueseg.errors import ConfigError, EvaluationError
from rescueseg.evaluation.metrics import Counts
from rescueseg.simulation.protocol import (
    Arm,
    Regime,
    Setting,
    arms,
    check_rows,
    check_strategies,
    due,
    loops_of,
    needed_loops,
    seconds_each,
    shared_row,
    training_name,
)
from rescueseg.simulation.rows import BoxCounts, SimulationRow

STAGE = Setting(
    dataset="mitochondria",
    regimes=(Regime(name="low", patches=24),),
    loops=4,
    strategies=("random", "live_fg66", "clasp_entropy", "oracle_error"),
)


def row_of(arm: Arm, loop: int, **changes: object) -> SimulationRow:
    usual = {
        "dataset": arm.setting.dataset, "regime": arm.regime.name, "strategy": arm.strategy, "seed": arm.seed, "loop": loop,
        "trainer": "monai_unet", "patches": 6, "voxels_drawn": 100, "foreground_drawn": 10, "pool_foreground": 50,
        "voxels_corrected": 10, "seconds": 1.0, "iterations": 600, "cpu_seconds": 100.0,
        "boxes": (BoxCounts(name="a", counts=(Counts(tp=1),)),),
    }  # fmt: skip
    return SimulationRow.model_validate(usual | changes)


def nothing(arm: Arm, name: str) -> bool:
    return False


def everything(arm: Arm, name: str) -> bool:
    return True


def test_the_first_training_is_shared() -> None:
    todo = due(STAGE, [], nothing, nothing)
    assert len(todo) == 4 * (1 + 4 * 3)
    assert [loop for _, loop in todo].count(0) == 4


def test_all_data_is_trained_on_once_for_each_seed() -> None:
    regimes = (Regime(name="low", patches=24), Regime(name="medium", patches=48))
    setting = STAGE.model_copy(update={"regimes": regimes, "strategies": ("random", "full_data")})
    assert len(due(setting, [], nothing, nothing)) == 4 * (2 * (1 + 3) + 1)
    full = next(arm for arm in arms(setting) if arm.strategy == "full_data" and arm.regime.name == "medium")
    low = next(arm for arm in arms(setting) if arm.strategy == "full_data" and arm.regime.name == "low")
    assert shared_row([row_of(low, 0)], full, 0) == row_of(full, 0)
    assert shared_row([row_of(low, 0)], next(arms(setting)), 0) is None


def test_what_has_a_row_is_not_trained() -> None:
    rows = [row_of(arm, loop) for arm in arms(STAGE) for loop in loops_of(STAGE, arm.strategy)]
    assert due(STAGE, rows, nothing, nothing) == []
    without = [r for r in rows if (r.strategy, r.seed, r.loop) != ("random", 1, 3)]
    assert [(str(arm), loop) for arm, loop in due(STAGE, without, nothing, everything)] == [
        ("mitochondria, low, seed 1, random", 3)
    ]
    # where nobody knows what was chosen, all trainings of the strategy are run again
    assert [loop for _, loop in due(STAGE, without, nothing, nothing)] == [0, 1, 2, 3]


def test_only_loops_after_which_nothing_was_chosen_are_needed_again() -> None:
    arm = next(arms(STAGE))
    keys = {arm.key(0), arm.key(1)}
    known = {"random-01", "random-02"}
    assert needed_loops(arm, keys, lambda _, name: name in known) == [2, 3]
    assert needed_loops(arm, keys, lambda _, name: name == "random-01") == [1, 2, 3]


def test_a_start_takes_its_row_from_another_strategy_of_the_same_seed() -> None:
    first, second = list(arms(STAGE))[:2]
    assert shared_row([row_of(first, 0)], second, 0) == row_of(second, 0)
    assert shared_row([row_of(first, 0)], second, 1) is None
    assert shared_row([row_of(first, 0, seed=3)], second, 0) is None
    assert training_name(first.strategy, 0) == training_name(second.strategy, 0)


def test_rows_of_other_steps_or_another_trainer_are_refused() -> None:
    arm = next(arms(STAGE))
    assert check_rows(STAGE, [row_of(arm, 0)]) == 600
    assert check_rows(STAGE, []) is None
    for changes in ({"iterations": 500}, {"trainer": "nnunet"}):
        with pytest.raises(EvaluationError, match="other"):
            check_rows(STAGE, [row_of(arm, 0), row_of(arm, 1, **changes)])
    with pytest.raises(EvaluationError, match="other steps"):
        check_rows(STAGE.model_copy(update={"steps": 100}), [row_of(arm, 0)])


def test_time_is_that_of_the_trainings_there_are() -> None:
    arm = next(arms(STAGE))
    assert seconds_each(STAGE, []) == 120.0
    assert seconds_each(STAGE.model_copy(update={"steps": 600}), []) is None
    assert seconds_each(STAGE, [row_of(arm, 0), row_of(arm, 1, cpu_seconds=90), row_of(arm, 2, cpu_seconds=95)]) == 95


def test_noise_fades_as_in_nnactive() -> None:
    """Five trainings: the noise of the four queries is that of 1·100^(l/4)."""
    assert [Loop(loop, 5).beta for loop in range(4)] == pytest.approx([1, 3.1623, 10, 31.623], rel=1e-4)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown query strategy 'best'"):
        check_strategies(["random", "best"])
    for changes in (
        {"seeds": (1, 1)},
        {"loops": 1},
        {"dataset": "a/b"},
        {"regimes": (Regime(name="low", patches=8), Regime(name="low", patches=9))},
    ):
        with pytest.raises(ValidationError):
            Setting.model_validate(dict(STAGE) | changes)
