"""What the block engine relies on, for every implementation of `Predictor`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import TrainingConfig
from rescueseg.models.predictor import Group, Predictor
from tests.trivial_predictors import Blur

SPACING = (0.2, 0.1, 0.1)


def make_unet(campaign: Campaign, networks: int = 1) -> Predictor:
    from rescueseg.models.unet.network import build_network
    from rescueseg.models.unet.plan import make_plan
    from rescueseg.models.unet.predictor import UNetPredictor

    plan = make_plan(
        TrainingConfig(window_zyx=(8, 32, 32), channels=(4, 8, 16), dropout=0.3),
        in_channels=1,
        n_classes=campaign.config.n_classes,
        spacing_um_zyx=SPACING,
        volume_zyx=(8, 32, 32),
        field_zyx=(8, 32, 32),
    )
    built = [build_network(plan.network, seed) for seed in range(networks)]
    return UNetPredictor(built, plan, campaign.config.inference, "cpu")


def make_ensemble(campaign: Campaign) -> Predictor:
    return make_unet(campaign, networks=2)


def make_blur(campaign: Campaign) -> Predictor:
    return Blur(campaign, campaign.config.inference)


@pytest.fixture(params=[make_blur, make_unet, make_ensemble])
def predictor(request: pytest.FixtureRequest, campaign: Campaign) -> Predictor:
    make: Callable[[Campaign], Predictor] = request.param
    return make(campaign)


def windows_of(predictor: Predictor, count: int) -> np.ndarray:
    shape = (count, predictor.in_channels, *predictor.window_zyx(SPACING))
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def members_of(predictor: Predictor, windows: np.ndarray, keys: list[int]) -> list[tuple[Group, np.ndarray]]:
    return [(group, probabilities.copy()) for group, probabilities in predictor.members(windows, keys)]


def test_members_are_probabilities_in_the_frame_of_the_windows(predictor: Predictor) -> None:
    assert isinstance(predictor, Predictor)
    windows = windows_of(predictor, 2)
    members = members_of(predictor, windows, [1, 2])
    for _, probabilities in members:
        assert probabilities.shape == (2, predictor.n_classes + 1, *windows.shape[2:])
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
        assert probabilities.min() >= 0


def test_there_is_a_member_per_network_symmetry_and_sample_in_order(predictor: Predictor, campaign: Campaign) -> None:
    config = campaign.config.inference
    members = members_of(predictor, windows_of(predictor, 1), [1])
    every = np.ndindex(predictor.networks, config.tta_symmetries, config.mc_samples)
    assert [group for group, _ in members] == [Group(n, s) for n, s, _ in every]
    first, last = members[0][1], members[-config.mc_samples * config.tta_symmetries][1]
    assert (predictor.networks == 1) == np.array_equal(first, last)


def test_members_depend_on_the_key_alone_not_on_the_batch(predictor: Predictor) -> None:
    windows, keys = windows_of(predictor, 3), [11, 2**62, 7]
    together = members_of(predictor, windows, keys)
    for index in (2, 0, 1):
        alone = members_of(predictor, windows[index : index + 1], [keys[index]])
        for (_, expected), (_, found) in zip(together, alone, strict=True):
            np.testing.assert_allclose(found[0], expected[index], atol=1e-5)


def test_another_key_gives_other_samples(predictor: Predictor) -> None:
    windows = windows_of(predictor, 1)
    first, second = (members_of(predictor, windows, [key]) for key in (1, 2))
    assert any(np.abs(a - b).max() > 1e-4 for (_, a), (_, b) in zip(first, second, strict=True))


def test_the_windows_are_left_as_they_are(predictor: Predictor) -> None:
    windows = windows_of(predictor, 1)
    before = windows.copy()
    members_of(predictor, windows, [1])
    assert np.array_equal(windows, before)
