from __future__ import annotations

import numpy as np
import pytest

from rescueseg.active_learning.stopping import GenerationResult, advice, should_stop
from rescueseg.config import StoppingConfig


def history(*dice: float | None, left: int | None = None) -> list[GenerationResult]:
    return [
        GenerationResult(generation=g, annotated_patches=4 * (g + 1), validation_dice=d, candidates_left=left)
        for g, d in enumerate(dice)
    ]


CONFIG = StoppingConfig(max_generations=12, patience=2, min_gain=0.01, max_annotated_patches=44)
RISE = [0.5, 0.56, 0.59, 0.66, 0.69, 0.75, 0.78, 0.84]
FLAT = [0.7, 0.8, 0.81, 0.8, 0.81, 0.8, 0.805, 0.8]


@pytest.mark.parametrize(
    ("results", "stop", "reason"),
    [
        ([], False, "no generation"),
        (history(*RISE[:1]), False, "1 generation, 5 are needed"),
        (history(*FLAT[:4]), False, "4 generations, 5 are needed"),
        (history(*RISE), False, "another 4 patches would bring about +0.04"),
        (history(*FLAT), True, "another 4 patches would bring less than 0.01 Dice (95 % sure)"),
        (history(*FLAT)[::-1], True, "less than 0.01"),
        (history(*FLAT[:4], None, None, None), False, "4 generations, 5 are needed"),
        (history(*FLAT[:7], None, FLAT[7]), True, "would bring less than 0.01"),
        (history(*[0.01 * g for g in range(11)]), True, "44 patches are annotated, 44 are the limit"),
        (history(0.1, 0.2, left=0), True, "no patch is left"),
        (history(0.1, 0.2, left=1), False, "2 generations, 5 are needed"),
    ],
)
def test_the_rule(results: list[GenerationResult], stop: bool, reason: str) -> None:
    decision = should_stop(results, CONFIG)
    assert decision.stop is stop
    assert reason in decision.reason


def test_the_advice_says_the_same_and_what_another_batch_would_bring() -> None:
    early = advice(history(*FLAT[:4]), CONFIG)
    assert (early.go_on, early.gain) == (None, None)
    assert early.sentence.endswith("Go on")
    onwards = advice(history(*RISE), CONFIG)
    assert onwards.go_on is True
    assert onwards.gain is not None
    low, middle, high = onwards.gain
    assert 0.01 < low < middle < high < 0.1
    assert onwards.sentence == (
        f"Go on: another 4 patches would bring about {middle:+.3f} validation Dice (between {low:+.3f} and {high:+.3f})"
    )
    enough = advice(history(*FLAT), CONFIG)
    assert enough.go_on is False
    assert enough.gain is not None
    assert enough.gain[2] < 0.01
    full = advice(history(*RISE), CONFIG.model_copy(update={"max_generations": 8}))
    assert (full.go_on, full.sentence, full.gain) == (False, "Stop: all 8 generations are done", onwards.gain)


def test_it_stops_only_after_the_generations_of_its_patience() -> None:
    """The first generation that says so does not stop it, nor does any after which one says otherwise."""
    firsts = [n for n in range(5, len(FLAT) + 1) if should_stop(history(*FLAT[:n]), CONFIG).stop]
    once = [
        n
        for n in range(5, len(FLAT) + 1)
        if should_stop(history(*FLAT[:n]), CONFIG.model_copy(update={"patience": 1})).stop
    ]
    assert firsts == once[1:]
    assert "2 generations in a row must say so, not 1" in advice(history(*FLAT[: once[0]]), CONFIG).sentence
    again = should_stop(history(*FLAT, 0.9), CONFIG)
    assert not again.stop


def test_generations_of_as_many_patches_count_as_one_budget() -> None:
    same = [r.model_copy(update={"annotated_patches": 4}) for r in history(*FLAT)]
    assert "1 generation, 5 are needed" in should_stop(same, CONFIG).reason


def test_a_smallest_gain_of_nothing_never_stops() -> None:
    assert not should_stop(history(*[0.8] * 11), StoppingConfig(max_generations=12, min_gain=0.0, patience=1)).stop


@pytest.mark.parametrize(("scatter", "most"), [(0.005, 0), (0.03, 3)])
def test_a_rise_is_not_stopped_where_it_scatters(scatter: float, most: int) -> None:
    """Ten generations that gain 0.008 each, thirty campaigns: the rule before stopped half of them and more, early."""
    rng, config = np.random.default_rng(0), StoppingConfig(max_generations=100)
    stopped = 0
    for _ in range(30):
        dice = 0.6 + 0.008 * np.arange(10) + rng.normal(0, scatter, 10)
        stopped += any(should_stop(history(*dice[:n]), config).stop for n in range(7, 10))
    assert stopped <= most


def test_generations_run_out() -> None:
    decision = should_stop(history(0.1, 0.2, 0.3), StoppingConfig(max_generations=3))
    assert decision.stop
    assert "all 3 generations" in decision.reason
