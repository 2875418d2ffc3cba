"""How much to annotate: forecasts of curves that are known, and what a campaign is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, inf
from pathlib import Path

import numpy as np
import pytest

from rescueseg.active_learning.stopping import advice
from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.evaluation import learning_curve
from rescueseg.evaluation.learning_curve import common_dice, forecast, generation_results
from rescueseg.evaluation.scores import BoxScore
from tests.evaluated_campaign import make_campaign, write_generation
from tests.triage_summaries import triaged
from tests.unit.evaluation.test_pooled import box_score, evaluation

PATCHES = (4, 8, 12, 16, 20, 24, 28, 32)


def curve(patches: Sequence[float], rate: float, scatter: float = 0.0, seed: int = 0) -> list[float]:
    """Return Dice from 0.5 at 4 patches towards 0.85."""
    noise = np.random.default_rng(seed).normal(0, scatter, len(patches)) if scatter else np.zeros(len(patches))
    return [float(0.85 - 0.35 * np.exp(-rate * (n - 4)) + e) for n, e in zip(patches, noise, strict=True)]


def needed(rate: float, distance: float) -> float:
    """Return the patches after which that curve is so close to 0.85."""
    return float(4 + np.log(0.35 / distance) / rate)


def test_five_budgets_give_no_forecast_whatever_they_say() -> None:
    assert forecast(PATCHES[:5], curve(PATCHES[:5], 0.2), 0.01) is None
    assert forecast((4, 8, 12, 16, 20, 20, 20), [0.8] * 7, 0.01) is None


@pytest.mark.parametrize("rate", [0.1, 0.12])
def test_a_curve_that_bends_is_forecast_with_its_interval(rate: float) -> None:
    found = forecast(PATCHES, curve(PATCHES, rate), 0.01)
    assert found is not None
    low, middle, high = found.patches
    assert low <= needed(rate, 0.01) <= high <= 96
    assert middle == pytest.approx(needed(rate, 0.01), rel=0.15)
    assert found.ceiling[0] <= 0.85 <= found.ceiling[2]
    assert f"({ceil(low)} to {ceil(high)})" in found.sentence() or middle <= 32


def test_a_line_is_told_from_no_curve_and_has_no_end() -> None:
    found = forecast(PATCHES, [0.3 + 0.01 * n for n in PATCHES], 0.01)
    assert found is not None
    assert found.patches[2] == inf
    assert found.sentence().startswith(f"At least {ceil(found.patches[0])} annotated patches to come within 0.01")
    assert found.sentence().endswith("how many more cannot be told yet")


def test_scatter_is_no_forecast() -> None:
    found = forecast(PATCHES, [0.7, 0.5, 0.8, 0.6, 0.75, 0.5, 0.8, 0.6], 0.01)
    assert found is not None
    assert "cannot be told yet" in found.sentence()


def test_where_the_ceiling_is_reached_no_more_is_asked() -> None:
    patches = [4.0 * n for n in range(1, 21)]
    found = forecast(patches, curve(patches, 0.15, 0.003), 0.01)
    assert found is not None
    assert found.sentence().startswith("80 annotated patches (at most")
    assert "are enough to come within 0.01 of the learning curve's ceiling, Dice 0.85" in found.sentence()


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 6 to 10 generations on curves that are known, at a scatter of 0.015 and of 0.03; the mean of 120 forecasts."""
    held = []
    for n, rate in product((6, 8, 10), (0.05, 0.1)):
        patches = [4.0 * (i + 1) for i in range(n)]
        truth = max(patches[-1], needed(rate, 0.005))
        for seed, scatter in product(range(10), (0.015, 0.03)):
            found = forecast(patches, curve(patches, rate, scatter, seed), 0.005)
            assert found is not None
            held.append(found.patches[0] <= truth <= found.patches[2])
    assert np.mean(held) >= 0.95 - 1.64 * np.sqrt(0.95 * 0.05 / len(held))


def test_the_rule_of_thumb_goes_by_complexity(campaign: Campaign) -> None:
    assert learning_curve.advise(campaign) == ""
    campaign.records.write(TRIAGE_SUMMARY, triaged())
    assert learning_curve.advise(campaign) == ""
    for complexity, size in learning_curve.SIZES.items():
        campaign.records.write(TRIAGE_SUMMARY, triaged(complexity=complexity))
        assert learning_curve.advise(campaign) == f"{size} for data of this complexity ({complexity})"


def test_evaluated_generations_give_their_advice(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    assert learning_curve.advise(campaign) == ""
    campaign.records.write(TRIAGE_SUMMARY, triaged(complexity="moderate"))
    write_generation(campaign, 0, 6.0)
    thumb = "5–10 volumes for data of this complexity (moderate)"
    early = (
        "Too early to tell what another batch would bring: 1 generation, 5 are needed, each with a "
        "Dice and more patches. Go on"
    )
    assert learning_curve.advise(campaign) == f"{thumb}. {early}"
    for generation, noise in enumerate((4.0, 3.0, 2.4, 2.0), start=1):
        write_generation(campaign, generation, noise)
    said = advice(generation_results(campaign.generations()), campaign.config.stopping)
    assert said.go_on is True
    assert learning_curve.advise(campaign) == said.sentence
    write_generation(campaign, 5, 1.8)
    said = advice(generation_results(campaign.generations()), campaign.config.stopping)
    assert learning_curve.advise(campaign).startswith(f"{said.sentence}. ")
    assert "of the learning curve's ceiling" in learning_curve.advise(campaign)


def of_validation(index: int, counts: tuple[int, int, int]) -> BoxScore:
    return box_score(index, [counts]).model_copy(update={"part": "validation"})


def test_a_holdout_that_grows_does_not_bend_the_trend() -> None:
    """New boxes on which all generations are worse are left out: the Dice is that of the boxes that all share."""
    old = [[(60 + 2 * g, 20, 20)] * 4 for g in range(5)]
    new = [(10, 50, 50)] * 4
    grown = [
        evaluation([of_validation(i, c) for i, c in enumerate([*boxes, *(new if g > 2 else [])])], g)
        for g, boxes in enumerate(old)
    ]
    assert common_dice(grown) == pytest.approx([(60 + 2 * g) / (80 + 2 * g) for g in range(5)])
    assert common_dice([*grown[:2], evaluation([of_validation(9, (50, 5, 5))], 2)]) == [
        None,
        None,
        pytest.approx(100 / 110),
    ]


def test_a_falling_dice_has_no_forecast() -> None:
    assert forecast([4 * g for g in range(1, 21)], [0.8 - 0.3 * g / 19 for g in range(20)], 0.005) is None
