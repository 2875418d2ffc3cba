"""Uncertainty measures against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from rescueseg.inference.uncertainty import MemberStatistics, entropy

SPATIAL = (2, 3, 4)


def random_members(symmetries: int, samples: int, channels: int, seed: int = 0) -> np.ndarray:
    """Return (S, M, K + 1, z, y, x) class probabilities."""
    rng = np.random.default_rng(seed)
    members = rng.gamma(0.7, size=(symmetries, samples, channels, *SPATIAL)) + 1e-9
    return (members / members.sum(axis=2, keepdims=True)).astype(np.float64)


def add(statistics: MemberStatistics, symmetry: int, probabilities: np.ndarray, network: int = 0) -> None:
    """Add a member of one window."""
    statistics.add(symmetry, torch.from_numpy(probabilities.astype(np.float32))[None], network)


def result_of(statistics: MemberStatistics) -> dict[str, np.ndarray]:
    """Return the statistics of one window."""
    return {quantity: values[0].numpy() for quantity, values in statistics.result().items()}


def entropy_of(probabilities: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the entropy in float64, by SciPy."""
    return special.entr(probabilities).sum(axis=axis)


def stream(members: np.ndarray) -> dict[str, np.ndarray]:
    statistics = MemberStatistics()
    for symmetry, samples in enumerate(members):
        for probabilities in samples:
            add(statistics, symmetry, probabilities)
    return result_of(statistics)


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


def test_disagreement_of_networks_is_ensemble_variance_alone() -> None:
    statistics = MemberStatistics()
    for network, symmetry, _ in np.ndindex(2, 2, 3):
        certain = np.zeros((2, *SPATIAL))
        certain[network] = 1
        add(statistics, symmetry, certain, network)
    result = result_of(statistics)
    np.testing.assert_allclose(result["ensemble_variance"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(result["tta_variance"], 0, atol=1e-12)
    np.testing.assert_allclose(result["mc_variance"], 0, atol=1e-12)


def test_certain_prediction_has_zero_entropy_without_a_nan() -> None:
    certain = np.zeros((3, *SPATIAL), np.float32)
    certain[1] = 1
    assert np.array_equal(entropy(torch.from_numpy(certain), axis=0), np.zeros(SPATIAL))


@pytest.mark.parametrize(("networks", "symmetries", "samples"), [(1, 1, 1), (1, 1, 4), (1, 4, 1), (3, 1, 1), (2, 3, 4)])
def test_streaming_agrees_with_all_members_at_once(networks: int, symmetries: int, samples: int) -> None:
    members = random_members(networks * symmetries, samples, 4)
    members = members.reshape(networks, symmetries, *members.shape[1:])
    flat = members.reshape(-1, *members.shape[3:])
    statistics = MemberStatistics()
    for network, symmetry, sample in np.ndindex(members.shape[:3]):
        add(statistics, symmetry, members[network, symmetry, sample], network)
    result = result_of(statistics)
    predictive, expected_entropy = entropy_of(flat.mean(axis=0)), entropy_of(flat, axis=1).mean(axis=0)
    expected = {
        "probability": flat.mean(axis=0),
        "predictive_entropy": predictive,
        "expected_entropy": expected_entropy,
        "mutual_information": predictive - expected_entropy,
        "mc_variance": members.var(axis=2).mean(axis=(0, 1, 2)),
        "tta_variance": members.mean(axis=2).var(axis=1).mean(axis=(0, 1)),
        "ensemble_variance": members.mean(axis=(1, 2)).var(axis=0).mean(axis=0),
    }
    assert set(result) == set(expected)
    for quantity, values in expected.items():
        np.testing.assert_allclose(result[quantity], values, atol=2e-6, err_msg=quantity)
        assert result[quantity].dtype == np.float32


@given(
    counts=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_the_variances_add_up_to_the_total_one(counts: list[list[int]], seed: int) -> None:
    """The law of total variance; it holds for unequal numbers of symmetries and samples as well."""
    members = iter(random_members(1, sum(map(sum, counts)), 3, seed)[0])
    statistics, used = MemberStatistics(), []
    for network, symmetries in enumerate(counts):
        for symmetry, samples in enumerate(symmetries):
            for _ in range(samples):
                used.append(next(members))
                add(statistics, symmetry, used[-1], network)
    result = result_of(statistics)
    total = np.stack(used).var(axis=0).mean(axis=0)
    parts = [result[f"{kind}_variance"] for kind in ("mc", "tta", "ensemble")]
    np.testing.assert_allclose(sum(parts), total, atol=2e-6)
    assert (counts[1:] != []) or not parts[2].any()


@given(seed=st.integers(0, 99), channels=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_every_measure_stays_within_its_bounds(seed: int, channels: int) -> None:
    result = stream(random_members(2, 2, channels, seed))
    assert np.all(result["predictive_entropy"] <= math.log(channels) + 1e-5)
    assert np.all(result["mutual_information"] <= result["predictive_entropy"] + 1e-6)
    for quantity in ("predictive_entropy", "expected_entropy", "mutual_information", "mc_variance", "tta_variance"):
        assert np.all(result[quantity] >= 0)
    assert np.all(result["mc_variance"] + result["tta_variance"] <= 0.25 + 1e-6)


def test_members_are_not_changed() -> None:
    first, second = torch.full((1, 2, *SPATIAL), 0.5), torch.full((1, 2, *SPATIAL), 0.25)
    statistics = MemberStatistics()
    for member in (first, second, first):
        statistics.add(0, member)
    np.testing.assert_allclose(statistics.result()["probability"], 1.25 / 3, rtol=1e-6)
    assert torch.all(first == 0.5)
    assert torch.all(second == 0.25)


def test_windows_of_a_batch_are_independent() -> None:
    members = random_members(2, 3, 3, seed=1), random_members(2, 3, 3, seed=2)
    statistics = MemberStatistics()
    for symmetry, sample in np.ndindex(2, 3):
        batch = np.stack([of_window[symmetry, sample] for of_window in members]).astype(np.float32)
        statistics.add(symmetry, torch.from_numpy(batch))
    for quantity, values in statistics.result().items():
        for window, of_window in zip(values, members, strict=True):
            np.testing.assert_allclose(window, stream(of_window)[quantity], atol=1e-6, err_msg=quantity)


def test_members_of_one_symmetry_and_of_one_network_must_follow_one_another() -> None:
    statistics = MemberStatistics()
    member = torch.full((1, 2, *SPATIAL), 0.5)
    statistics.add(0, member)
    statistics.add(1, member)
    with pytest.raises(ValueError, match="symmetry 0"):
        statistics.add(0, member)
    statistics = MemberStatistics()
    statistics.add(0, member)
    statistics.add(0, member, 1)
    with pytest.raises(ValueError, match="network 0"):
        statistics.add(1, member, 0)


def test_no_members_is_an_error() -> None:
    with pytest.raises(ValueError, match="no members"):
        MemberStatistics().result()
