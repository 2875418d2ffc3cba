"""How much to annotate: the curve is found again, and nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.evaluation import learning_curve
from tests.evaluated_campaign import make_campaign, write_generation
from tests.triage_summaries import triaged

PATCHES = (4, 8, 12, 16, 24)


@settings(deadline=None)
@given(ceiling=st.floats(0.5, 1), share=st.floats(0.2, 1), rate=st.floats(0.1, 0.6), points=st.integers(3, 5))
def test_a_curve_is_found_again(ceiling: float, share: float, rate: float, points: int) -> None:
    known = learning_curve.Curve(ceiling, share * ceiling, rate, 4)
    x = PATCHES[:points]
    found = learning_curve.fit_curve(x, [known.at(n) for n in x])
    if rate * (x[-1] - 4) < 0.95:
        assert found == "the learning curve has not bent yet: more patches still pay"
    elif rate * (x[-1] - 4) > 1.05:
        assert isinstance(found, learning_curve.Curve)
        assert found.ceiling == pytest.approx(ceiling, abs=0.01)
        assert found.at(found.patches_within(0.01)) == pytest.approx(found.ceiling - 0.01)


@pytest.mark.parametrize(
    ("dice", "why"),
    [
        ([0.5, 0.6], "2 of 3"),
        ([0.7, 0.6, 0.5], "does not rise"),
        ([0.5, 0.5, 0.5], "does not rise"),
        ([0.5, 0.6, 0.7, 0.8], "not bent"),
        ([0.2, 0.7, 0.1, 0.6, 0.3], "scatter"),
    ],
)
def test_nonsense_is_refused(dice: list[float], why: str) -> None:
    assert why in str(learning_curve.fit_curve(PATCHES[: len(dice)], dice))
    assert learning_curve.curve_advice(PATCHES[: len(dice)], dice, 0.01).startswith(
        "no forecast from the learning curve: "
    )


def test_the_forecast_says_how_many_more() -> None:
    known = learning_curve.Curve(0.9, 0.4, 0.2, 4)
    needed = int(np.ceil(4 + np.log(0.4 / 0.01) / 0.2))
    said = learning_curve.curve_advice((4, 8, 12), [known.at(n) for n in (4, 8, 12)], 0.01)
    assert said.startswith(f"about {needed} annotated patches, {needed - 12} more")
    assert "Dice 0.900" in said
    done = learning_curve.curve_advice((4, 8, 40), [known.at(n) for n in (4, 8, 40)], 0.01)
    assert "within 0.01 of its ceiling" in done


def test_the_rule_of_thumb_goes_by_complexity(campaign: Campaign) -> None:
    assert learning_curve.advise(campaign) == ""
    campaign.records.write(TRIAGE_SUMMARY, triaged())
    assert learning_curve.advise(campaign) == ""
    for complexity, size in learning_curve.SIZES.items():
        campaign.records.write(TRIAGE_SUMMARY, triaged(complexity=complexity))
        assert learning_curve.advise(campaign) == f"{size} for data of this complexity ({complexity})"


def test_three_evaluated_generations_replace_it(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    campaign.records.write(TRIAGE_SUMMARY, triaged(complexity="moderate"))
    for generation, noise in enumerate((6.0, 3.0, 2.4)):
        assert "5–10 volumes" in learning_curve.advise(campaign)
        write_generation(campaign, generation, noise)
    assert "learning curve" in learning_curve.advise(campaign)
