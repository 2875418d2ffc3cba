"""Which ticket is next: a pure rule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.queue.next_ticket import NEARLY, Candidate, choose

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def candidate(name: str, score: float, stratum: str = "", rank: int = 0, age: int = 0, volume: str = "v") -> Candidate:
    return Candidate(name, (rank,), score, stratum, volume, T0 - timedelta(days=age))


def test_what_goes_before_the_score_goes_first() -> None:
    assert choose([candidate("a", 9.0, rank=1), candidate("b", 0.0, rank=0)], {}, {}).ticket_id == "b"


def test_the_higher_score_goes_first_then_the_older_ticket_then_the_id() -> None:
    assert choose([candidate("a", 1.0), candidate("b", 2.0)], {}, {}).ticket_id == "b"
    assert choose([candidate("a", 1.0), candidate("b", 1.0, age=1)], {}, {}).ticket_id == "b"
    assert choose([candidate("b", 1.0), candidate("a", 1.0)], {}, {}).ticket_id == "a"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_of_nearly_equal_scores_the_stratum_with_least_work_goes_first(scale: float) -> None:
    waiting = [
        candidate("best", 1.0 * scale, "dense"),
        candidate("near", 0.97 * scale, "sparse"),
        candidate("far", 0.9 * scale, "edge"),
        candidate("last", 0.0, "edge"),
    ]
    assert choose(waiting, {"dense": 1}, {}).ticket_id == "near"
    assert choose(waiting, {"dense": 1, "sparse": 1}, {}).ticket_id == "best"
    assert choose(waiting, {}, {}).ticket_id == "best"
    waiting[1] = candidate("near", 0.97 * scale, "dense", volume="w")
    assert choose(waiting, {}, {"v": 3}).ticket_id == "near"


scores = st.floats(-1e3, 1e3, allow_nan=False)
candidates = st.lists(st.tuples(scores, st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=12)


@given(candidates, st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)))
@settings(deadline=None)
def test_nobody_nearly_as_good_has_a_stratum_with_less_work(
    rows: list[tuple[float, str, int]], strata: dict[str, int]
) -> None:
    waiting = [candidate(str(i), score, stratum, rank) for i, (score, stratum, rank) in enumerate(rows)]
    chosen = choose(waiting, strata, {})
    tier = [c for c in waiting if c.rank == min(w.rank for w in waiting)]
    best, worst = max(c.score for c in tier), min(c.score for c in tier)
    assert chosen in tier
    assert chosen.score >= best - NEARLY * (best - worst)
    better = [c for c in tier if c.score > chosen.score]
    assert all(strata.get(c.stratum, 0) >= strata.get(chosen.stratum, 0) for c in better)
    assert choose(waiting[::-1], strata, {}) == chosen, "the order they come in does not matter"
