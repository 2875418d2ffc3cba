from __future__ import annotations

import pytest

from rescueseg.active_learning.stopping import GenerationResult, should_stop
from rescueseg.config import StoppingConfig


def history(*dice: float | None, left: int | None = None) -> list[GenerationResult]:
    return [
        GenerationResult(generation=g, annotated_patches=4 * (g + 1), validation_dice=d, candidates_left=left)
        for g, d in enumerate(dice)
    ]


CONFIG = StoppingConfig(max_generations=8, patience=2, min_gain=0.01, max_annotated_patches=20)


@pytest.mark.parametrize(
    ("results", "stop", "reason"),
    [
        ([], False, "no generation"),
        (history(0.5, 0.6, 0.7), False, "0 of 2"),
        (history(0.5, 0.6, 0.605), False, "1 of 2"),
        (history(0.5, 0.6, 0.605, 0.609), True, "no gain of 0.01"),
        (history(0.5, 0.6, 0.605, 0.61), False, "0 of 2"),
        (history(0.6, 0.5, 0.7), False, "0 of 2"),
        (history(0.6, None, None), False, "0 of 2"),
        (history(0.1, 0.2, 0.3, 0.4, 0.5), True, "20 patches"),
        (history(0.1, 0.2, left=0), True, "no patch is left"),
        (history(0.1, 0.2, left=1), False, "0 of 2"),
        (history(0.5, 0.6, 0.605, 0.609)[::-1], True, "no gain"),
    ],
)
def test_the_rule(results: list[GenerationResult], stop: bool, reason: str) -> None:
    decision = should_stop(results, CONFIG)
    assert decision.stop is stop
    assert reason in decision.reason


def test_generations_run_out() -> None:
    decision = should_stop(history(0.1, 0.2, 0.3), StoppingConfig(max_generations=3))
    assert decision.stop
    assert "all 3 generations" in decision.reason
