from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.active_learning.candidates import CandidateTable
from rescueseg.active_learning.strategies import STRATEGIES, Loop, choose_patches, find_strategy
from rescueseg.config import check_config
from rescueseg.errors import ConfigError
from rescueseg.geometry import Box
from rescueseg.inference.box_means import SCORES
from rescueseg.shared_places import IDENTITY, SharedPlaces

LAST = Loop(9, 10)
NAMES = (*SCORES, "object_disagreement")
"""Scores of the candidates of a model that tells objects apart."""


def make_table(n: int, n_classes: int = 1, **columns: object) -> CandidateTable:
    """Return candidates side by side along x in two volumes; all scores 0.5 unless given."""
    scores = {name: np.asarray(columns.get(name, np.full(n, 0.5)), dtype=float) for name in NAMES}
    return CandidateTable(
        volume_ids=tuple("ab"[i % 2] for i in range(n)),
        boxes=tuple(Box((0, 0, 10 * i), (10, 10, 10)) for i in range(n)),
        scores=scores,
        class_entropy=np.asarray(columns.get("class_entropy", np.full((n, n_classes), 0.1)), dtype=float),
        foreground=np.asarray(columns.get("foreground", np.full(n, 0.2)), dtype=float),
        places=SharedPlaces({}),
    )


def pick(strategy: str, table: CandidateTable, k: int, seed: int = 0, loop: Loop = LAST) -> list[int]:
    return [p.index for p in find_strategy(strategy)(table, k, np.random.default_rng(seed), loop)]


@pytest.mark.parametrize(
    ("strategy", "score"),
    [
        ("entropy", "predictive_entropy"),
        ("bald", "mutual_information"),
        ("mc_variance", "mc_variance"),
        ("tta_variance", "tta_variance"),
        ("object_disagreement", "object_disagreement"),
    ],
)
def test_plain_strategies_take_the_highest_mean(strategy: str, score: str) -> None:
    values = np.array([0.1, 0.9, 0.3, 0.8, 0.2])
    assert pick(strategy, make_table(5, **{score: values}), 3) == [1, 3, 2]


def test_overlapping_candidates_are_skipped_only_within_a_volume() -> None:
    boxes = [Box((0, 0, 0), (8, 8, 8)), Box((0, 0, 4), (8, 8, 8)), Box((0, 0, 4), (8, 8, 8)), Box((0, 0, 8), (8, 8, 8))]
    table = CandidateTable(
        ("a", "a", "b", "a"), tuple(boxes), {name: np.array([0.9, 0.8, 0.7, 0.1]) for name in SCORES},
        np.ones((4, 1)), np.ones(4), SharedPlaces({}),
    )  # fmt: skip
    assert pick("entropy", table, 3) == [0, 2, 3]
    assert pick("entropy", table, 9) == [0, 2, 3]
    copies = dataclasses.replace(table, places=SharedPlaces({"a": (8, 8, 16), "b": (8, 8, 16)}, [("a", "b", IDENTITY)]))
    assert pick("entropy", copies, 9) == [0, 3], "the place that b shows is in the batch already, as one of a"


def test_random_takes_every_candidate_alike() -> None:
    table = make_table(5, predictive_entropy=[0, 0, 0, 0, 1], foreground=[0, 0, 0, 0, 1])
    counts = np.bincount([pick("random", table, 1, seed)[0] for seed in range(1000)], minlength=5)
    assert counts.min() > 150


def test_foreground_random_follows_the_predicted_foreground() -> None:
    table = make_table(10, foreground=[0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0])
    for seed in range(20):
        picks = pick("foreground_random", table, 3, seed)
        assert set(picks[:2]) == {0, 1}
        assert len(set(picks)) == 3
    weighted = make_table(2, foreground=[0.75, 0.25])
    first = np.mean([pick("foreground_random", weighted, 1, seed)[0] == 0 for seed in range(1000)])
    assert first == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("strategy", "score"),
    [("power_bald", "mutual_information"), ("power_object_disagreement", "object_disagreement")],
)
def test_power_noise_samples_by_the_score(strategy: str, score: str) -> None:
    table = make_table(3, **{score: [0.6, 0.3, 0.1]})
    counts = np.bincount([pick(strategy, table, 1, seed)[0] for seed in range(1000)], minlength=3)
    np.testing.assert_allclose(counts / 1000, [0.6, 0.3, 0.1], atol=0.05)


def test_clasp_shares_the_batch_among_classes() -> None:
    """Ten patches: six for three classes, two each; four by entropy. Noise is next to nothing in the last loop."""
    per_class = np.full((20, 3), 1e-6)
    for column in range(3):
        per_class[[2 * column, 2 * column + 1], column] = 0.5
    entropy = np.where(np.arange(20) >= 16, 1.0, 1e-6)
    picks = pick("clasp_entropy", make_table(20, class_entropy=per_class, predictive_entropy=entropy), 10)
    assert set(picks[:6]) == {0, 1, 2, 3, 4, 5}
    assert set(picks[6:]) == {16, 17, 18, 19}


def test_clasp_gives_the_remainder_to_random_classes() -> None:
    """Four patches: int(0.66·4) = 2 for three classes, so each class goes without now and then."""
    per_class = np.full((12, 3), 1e-9)
    for column in range(3):
        per_class[column, column] = 0.5
    table = make_table(12, class_entropy=per_class)
    drawn = [frozenset(pick("clasp_entropy", table, 4, seed)[:2]) for seed in range(60)]
    assert set(drawn) == {frozenset({0, 1}), frozenset({0, 2}), frozenset({1, 2})}


def test_clasp_fills_up_where_a_class_has_nothing_left() -> None:
    table = make_table(3, class_entropy=np.zeros((3, 2)))
    assert sorted(pick("clasp_entropy", table, 4)) == [0, 1, 2]


def test_beta_grows_exponentially_from_1_to_100() -> None:
    betas = [Loop(i, 5).beta for i in range(5)]
    np.testing.assert_allclose(betas, 100 ** (np.arange(5) / 4))
    assert Loop(0, 1).beta == 1
    assert Loop(7, 5).beta == 100


def test_clasp_is_noisy_first_and_greedy_last() -> None:
    values = np.linspace(0.2, 0.5, 30)
    table = make_table(30, class_entropy=values[:, None], predictive_entropy=values)
    top = {26, 27, 28, 29}
    late = [len(top & set(pick("clasp_entropy", table, 4, seed, Loop(9, 10)))) for seed in range(30)]
    early = [len(top & set(pick("clasp_entropy", table, 4, seed, Loop(0, 10)))) for seed in range(30)]
    assert np.mean(late) > 3
    assert np.mean(early) < 2


def test_zero_scores_are_drawn_last_and_at_random() -> None:
    table = make_table(6, mutual_information=[0, 0, 0, 0, 0, 1e-9])
    assert {pick("bald", table, 1, seed)[0] for seed in range(10)} == {5}
    assert {pick("power_bald", table, 2, seed)[0] for seed in range(10)} == {5}
    assert len({pick("bald", table, 2, seed)[1] for seed in range(30)}) > 2


@settings(deadline=None)
@given(st.sampled_from(sorted(STRATEGIES)), st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_every_strategy_keeps_the_rules(strategy: str, n: int, k: int, seed: int) -> None:
    """As many as asked where they fit, none twice, none overlapping, the same for the same seed."""
    rng = np.random.default_rng(seed)
    boxes = tuple(Box(tuple(rng.integers(0, 12, 3)), tuple(rng.integers(1, 9, 3))) for _ in range(n))
    table = CandidateTable(
        tuple(str(v) for v in rng.choice(["a", "b"], n)), boxes, {name: rng.random(n) for name in NAMES},
        rng.random((n, 2)), rng.random(n), SharedPlaces({}),
    )  # fmt: skip
    picks = pick(strategy, table, k, seed)
    assert picks == pick(strategy, table, k, seed)
    assert len(set(picks)) == len(picks) <= k
    taken = [(table.volume_ids[i], boxes[i]) for i in picks]
    assert not any(v == w and a.intersects(b) for i, (v, a) in enumerate(taken) for w, b in taken[:i])
    if len(picks) < k:
        assert all(any(table.volume_ids[i] == v and boxes[i].intersects(b) for v, b in taken) for i in range(n))


def test_queried_patches_carry_plain_scores_and_reasons() -> None:
    config = check_config({"name": "n", "classes": ["o"], "sampling": {"query_patches": 3}})
    table = make_table(8, class_entropy=np.linspace(0.1, 0.8, 8)[:, None], predictive_entropy=np.full(8, 0.4))
    patches = choose_patches(config, "clasp_entropy", table, 8, np.random.default_rng(0))
    assert len(patches) == 3
    assert [patch.reason.split(":")[0] for patch in patches] == ["class 1", *["predictive_entropy, power noise"] * 2]
    assert patches[0].score in table.class_entropy[:, 0]
    assert {patch.score for patch in patches[1:]} == {0.4}
    assert choose_patches(config, "clasp_entropy", make_table(0), 8, np.random.default_rng(0)) == []


def test_an_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="clasp_entropy"):
        pick("entropie", make_table(3), 1)
