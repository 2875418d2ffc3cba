"""The tree: its order, the user's word, and evidence that is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescueseg.active_learning.strategies import STRATEGIES
from rescueseg.config import TriageConfig, check_config
from rescueseg.errors import ConfigError
from rescueseg.triage.tree import BLIND, QUESTIONS, ROUTES, STRUCTURES, UNKNOWN, Structure, decide, title_of

ROUND = {
    "snr": 8.0,
    "slenderness": 0.3,
    "length": 0.5,
    "connected": 0.1,
    "texture": 0.05,
    "puncta": 0.01,
    "star_convexity": 0.9,
    "sphericity": 0.9,
}
TREE = {**ROUND, "slenderness": 0.9, "length": 80.0, "connected": 1.0, "star_convexity": 0.2, "sphericity": 0.3}
NUMBERS = st.floats(0, 200, allow_nan=False)


def route(word: Structure | None = None, settings: TriageConfig | None = None, **changed: float) -> str:
    return decide({**ROUND, **changed}, settings or TriageConfig(), word)[0].name


def test_the_first_yes_decides() -> None:
    assert route() == "star_convex"
    assert route(**TREE) == "topology"
    assert route(**{**TREE, "snr": 1.5}) == "low_snr", "noise is asked for first"
    assert route(texture=0.4) == "texture", "before roundness"
    assert route(**{**TREE, "texture": 0.4}) == "topology", "after topology"
    assert route(puncta=0.6) == "puncta", "before roundness, which the larger ones alone have"
    assert route(star_convexity=0.6) == "blob"
    assert route(star_convexity=0.6, sphericity=0.4) == "custom"


def test_a_short_stretch_of_a_network_is_one() -> None:
    assert route(**{**TREE, "length": 6.0}) == "topology"
    assert route(**{**TREE, "connected": 0.3}) == "topology", "fibres: long, and many"
    assert route(**{**TREE, "length": 6.0, "connected": 0.3}) != "topology"
    assert route(length=80.0, connected=1.0) == "star_convex", "a clump is not slender"


@given(st.fixed_dictionaries(dict.fromkeys(ROUND, NUMBERS)))
def test_every_answer_follows_from_its_distance_and_the_path_from_the_answers(evidence: dict[str, float]) -> None:
    taken, steps = decide(evidence, TriageConfig())
    assert [step.question for step in steps] == [question.text for question in QUESTIONS]
    for step in steps:
        assert step.measured is not None
        assert step.answer == (step.measured >= 1)
        assert step.reason
    assert taken.name == next((step.route for step in steps if step.answer), "custom")


@given(st.sampled_from(sorted(ROUND)), st.fixed_dictionaries(dict.fromkeys(ROUND, NUMBERS)))
def test_missing_evidence_is_said_and_taken_for_no(missing: str, evidence: dict[str, float]) -> None:
    rest = {name: value for name, value in evidence.items() if name != missing}
    _, steps = decide(rest, TriageConfig())
    unknown = [step for step in steps if step.answer is None]
    if missing == "sphericity":  # where too few are whole, how little slender they are stands for it
        assert steps[-1].measured == pytest.approx((1 - rest["slenderness"]) / 0.4, abs=1e-4)
        assert unknown == []
    else:
        assert [step.detail for step in unknown] == ["not measured"]
    assert decide({}, TriageConfig())[0].name == "custom"


def test_what_the_patches_cut_is_not_known_to_be_short() -> None:
    stretch = {**TREE, "length": 6.0, "connected": 0.3}
    taken, steps = decide({**stretch, "length_most": 60.0}, TriageConfig())
    assert (taken.name, steps[1].answer, steps[1].measured) == ("custom", None, 0.375)
    assert "the patches cut it" in steps[1].detail
    assert decide({**stretch, "length_most": 20.0}, TriageConfig())[1][1].answer is False
    assert decide({**stretch, "length_most": 60.0, "slenderness": 0.3}, TriageConfig())[1][1].answer is False


def test_pieces_of_what_the_patches_cut_may_be_round_and_lines_seen_end_on_too() -> None:
    """A slice shows half of all lines as discs: while it may be a network, what it shows is not called round."""
    slices = {**ROUND, "slenderness_most": 0.8, "length_most": 1000.0}
    taken, steps = decide(slices, TriageConfig())
    assert (taken.name, title_of(taken, steps)) == ("custom", UNKNOWN)
    assert [step.answer for step in steps] == [False, None, False, False, None, None]
    assert "pieces of what is cut may be round" in steps[-1].detail
    assert decide({**slices, "slenderness_most": 0.5}, TriageConfig())[0].name == "star_convex", "no line among them"
    assert decide({**slices, "length_most": 20.0}, TriageConfig())[0].name == "star_convex", "too short for a network"
    assert decide(slices, TriageConfig(), "blob")[0].name == "blob", "the user knows"


def test_none_of_the_shapes_is_said_only_where_shape_was_answered() -> None:
    """Of a patch that is all structure nothing but the share of puncta is measured, which is no."""
    taken, steps = decide({"puncta": 0.0, "snr": 8.0}, TriageConfig())
    assert (taken.name, title_of(taken, steps)) == ("custom", UNKNOWN)
    shapeless = {**ROUND, "star_convexity": 0.5, "sphericity": 0.4}
    assert title_of(*decide(shapeless, TriageConfig())) == ROUTES["custom"].title
    for missing in ("slenderness", "length"):
        rest = {name: value for name, value in shapeless.items() if name != missing}
        assert title_of(*decide(rest, TriageConfig())) == UNKNOWN, f"the topology is open without {missing}"
    round_only = {name: shapeless[name] for name in ("slenderness", "length", "connected", "sphericity")}
    assert title_of(*decide(round_only, TriageConfig())) == ROUTES["custom"].title, "noise and texture are not shape"
    assert title_of(*decide({}, TriageConfig(), "other")) == ROUTES["custom"].title, "the user knows"


def test_an_answer_is_the_one_that_its_rounded_distance_shows() -> None:
    step = decide({**ROUND, "star_convexity": 0.75 * (1 - 1e-6)}, TriageConfig())[1][4]
    assert (step.measured, step.answer) == (1.0, True)


def test_a_threshold_does_not_tell_what_shape_the_structure_has() -> None:
    taken, steps = decide(TREE, TriageConfig(), is_blind=True)
    assert taken.name == "custom"
    assert [step.answer for step in steps] == [False, None, False, None, None, None]
    assert [BLIND in step.detail for step in steps] == [step.answer is None for step in steps], "and says why"
    said = decide(TREE, TriageConfig(), "network", is_blind=True)[1]
    assert not any(BLIND in step.detail for step in said)
    assert decide(TREE, TriageConfig(), "network", is_blind=True)[0].name == "topology", "the user knows"
    assert decide({**TREE, "snr": 1.0}, TriageConfig(), is_blind=True)[0].name == "low_snr", "noise is in the image"


@pytest.mark.parametrize("word", STRUCTURES)
def test_the_users_word_decides_about_shape_alone(word: Structure) -> None:
    expected = {"star-convex": "star_convex", "blob": "blob", "puncta": "puncta", "other": "custom"}.get(
        word, "topology"
    )
    assert route(word) == expected
    assert decide({}, TriageConfig(), word)[0].name == expected, "no mask is needed"
    assert route(word, snr=1.0) == "low_snr", "noise is measured"


def test_thresholds_are_the_campaigns() -> None:
    config = check_config({"name": "n", "classes": ["a"], "triage": {"snr": 10}}).triage
    assert route(settings=config) == "low_snr"
    with pytest.raises(ConfigError, match=r"Did you mean 'triage.texture'"):
        check_config({"name": "n", "classes": ["a"], "triage": {"textur": 1}})
    assert all(field.description for field in TriageConfig.model_fields.values()), "each with its reason"


def test_routes_name_strategies_that_there_are() -> None:
    assert {r.query for r in ROUTES.values()} <= set(STRATEGIES)
    assert {r.letter for r in ROUTES.values()} == set("ABCD")
    assert all(r.trainers[-1] == "monai_unet" for r in ROUTES.values()), "one that is always installed comes last"
