"""Uncertainty measures against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg import uncertainty
from rescueseg.uncertainty import MemberStatistics

SPATIAL = (2, 3, 4)


def random_members(symmetries: int, samples: int, channels: int, seed: int = 0) -> np.ndarray:
    """Return (S, M, K + 1, z, y, x) class probabilities."""
    rng = np.random.default_rng(seed)
    members = rng.gamma(0.7, size=(symmetries, samples, channels, *SPATIAL)) + 1e-9
    return (members / members.sum(axis=2, keepdims=True)).astype(np.float64)


def stream(members: np.ndarray) -> dict[str, np.ndarray]:
    statistics = MemberStatistics()
    for symmetry, samples in enumerate(members):
        for probabilities in samples:
            statistics.add(symmetry, probabilities)
    return statistics.result()


@pytest.mark.parametrize("n_classes", [1, 3, 10])
def test_uniform_members_have_the_greatest_entropy_and_no_disagreement(n_classes: int) -> None:
    result = stream(np.full((2, 3, n_classes + 1, *SPATIAL), 1 / (n_classes + 1)))
    np.testing.assert_allclose(result["predictive_entropy"], math.log(n_classes + 1), rtol=1e-6)
    np.testing.assert_allclose(result["expected_entropy"], math.log(n_classes + 1), rtol=1e-6)
    for quantity in ("mutual_information", "mc_variance", "tta_variance"):
        np.testing.assert_allclose(result[quantity], 0, atol=1e-6)


def test_two_certain_members_that_disagree_have_a_mutual_information_of_ln_2() -> None:
    members = np.zeros((1, 2, 2, *SPATIAL))
    members[0, 0, 0] = members[0, 1, 1] = 1
    result = stream(members)
    np.testing.assert_allclose(result["mutual_information"], math.log(2), rtol=1e-6)
    np.testing.assert_allclose(result["expected_entropy"], 0, atol=1e-12)
    np.testing.assert_allclose(result["mc_variance"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(result["tta_variance"], 0, atol=1e-12)


def test_disagreement_of_symmetries_is_test_time_variance_alone() -> None:
    members = np.zeros((2, 3, 2, *SPATIAL))
    members[0, :, 0] = members[1, :, 1] = 1
    result = stream(members)
    np.testing.assert_allclose(result["tta_variance"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(result["mc_variance"], 0, atol=1e-12)
    np.testing.assert_allclose(result["mutual_information"], math.log(2), rtol=1e-6)


def test_certain_prediction_has_zero_entropy_without_a_nan() -> None:
    certain = np.zeros((3, *SPATIAL), np.float32)
    certain[1] = 1
    assert np.array_equal(uncertainty.entropy(certain), np.zeros(SPATIAL))


@pytest.mark.parametrize(("symmetries", "samples"), [(1, 1), (1, 4), (4, 1), (3, 4)])
def test_streaming_agrees_with_all_members_at_once(symmetries: int, samples: int) -> None:
    members = random_members(symmetries, samples, 4)
    flat = members.reshape(-1, *members.shape[2:])
    result = stream(members)
    expected = {
        "probability": flat.mean(axis=0),
        "predictive_entropy": uncertainty.predictive_entropy(flat),
        "expected_entropy": uncertainty.expected_entropy(flat),
        "mutual_information": uncertainty.mutual_information(flat),
        "mc_variance": uncertainty.mc_variance(members),
        "tta_variance": uncertainty.tta_variance(members),
    }
    assert set(result) == set(expected)
    for quantity, values in expected.items():
        np.testing.assert_allclose(result[quantity], values, atol=2e-6, err_msg=quantity)
        assert result[quantity].dtype == np.float32


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_two_variances_add_up_to_the_total_one(counts: list[int], seed: int) -> None:
    """The law of total variance; it holds for unequal numbers of samples as well."""
    members = random_members(len(counts), max(counts), 3, seed)
    statistics, used = MemberStatistics(), []
    for symmetry, count in enumerate(counts):
        for probabilities in members[symmetry, :count]:
            statistics.add(symmetry, probabilities)
            used.append(probabilities)
    result = statistics.result()
    total = np.stack(used).var(axis=0).mean(axis=0)
    np.testing.assert_allclose(result["mc_variance"] + result["tta_variance"], total, atol=2e-6)


@given(seed=st.integers(0, 99), channels=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_every_measure_stays_within_its_bounds(seed: int, channels: int) -> None:
    result = stream(random_members(2, 2, channels, seed))
    assert np.all(result["predictive_entropy"] <= math.log(channels) + 1e-5)
    assert np.all(result["mutual_information"] <= result["predictive_entropy"] + 1e-6)
    for quantity in ("predictive_entropy", "expected_entropy", "mutual_information", "mc_variance", "tta_variance"):
        assert np.all(result[quantity] >= 0)
    assert np.all(result["mc_variance"] + result["tta_variance"] <= 0.25 + 1e-6)


def test_members_are_not_changed_and_not_kept() -> None:
    member = np.full((2, *SPATIAL), 0.5, np.float32)
    statistics = MemberStatistics()
    statistics.add(0, member)
    member[:] = 7
    statistics.add(0, np.full((2, *SPATIAL), 0.5, np.float32))
    np.testing.assert_allclose(statistics.result()["probability"], 0.5)
    assert np.all(member == 7)


def test_members_of_one_symmetry_must_follow_one_another() -> None:
    statistics = MemberStatistics()
    member = np.full((2, *SPATIAL), 0.5, np.float32)
    statistics.add(0, member)
    statistics.add(1, member)
    with pytest.raises(ValueError, match="symmetry 0"):
        statistics.add(0, member)


def test_no_members_is_an_error() -> None:
    with pytest.raises(ValueError, match="no members"):
        MemberStatistics().result()
