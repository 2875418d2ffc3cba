"""What the block engine relies on, for every implementation of `Predictor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import TrainingConfig
from rescueseg.inference.quick_objects import object_output
from rescueseg.models.predictor import Group, Predictor, class_probabilities
from rescueseg.models.registry import find_entry, get_trainer, load_predictor, trainer_names
from rescueseg.models.survey import Survey
from rescueseg.models.trainer import TrainingRequest, ignore_progress
from rescueseg.records import ModelReference
from tests.training_rig import BOXES, make_campaign, make_snapshot
from tests.trivial_predictors import Blur

SPACING = (0.2, 0.1, 0.1)


def make_unet(campaign: Campaign, _: Path, networks: int = 1, border_um: float | None = None) -> Predictor:
    from rescueseg.models.unet.network import build_network
    from rescueseg.models.unet.plan import make_plan
    from rescueseg.models.unet.predictor import UNetPredictor

    plan = make_plan(
        TrainingConfig.model_validate({"window_zyx": (8, 32, 32), "dropout": 0.3, "unet": {"channels": [4, 8, 16]}}),
        Survey(in_channels=1, spacing_um_zyx=SPACING, volume_zyx=(8, 32, 32), field_zyx=(8, 32, 32)),
        campaign.config.n_classes,
        border_um=border_um,
    )
    built = [build_network(plan.network, seed) for seed in range(networks)]
    return UNetPredictor(built, plan, campaign.config.inference, "cpu")


def make_ensemble(campaign: Campaign, folder: Path) -> Predictor:
    return make_unet(campaign, folder, networks=2)


def make_distances(campaign: Campaign, folder: Path) -> Predictor:
    return make_unet(campaign, folder, networks=2, border_um=0.5)


def make_blur(campaign: Campaign, _: Path) -> Predictor:
    return Blur(campaign.storage, campaign.config.inference)


def train_one(name: str) -> Callable[[Campaign, Path], Predictor]:
    """Return a function that trains a model of a trainer for two steps and loads it."""

    def make(campaign: Campaign, folder: Path) -> Predictor:
        rig = make_campaign(folder, trainer=name, iterations=2)
        request = TrainingRequest(rig.config, rig.volumes, rig.holdout(), make_snapshot(rig, BOXES), folder / "work", 3)
        model = get_trainer(name).train(request, ignore_progress)
        for file in sorted(model.path.iterdir()):
            rig.storage.write_bytes(f"model/{file.name}", file.read_bytes())
        reference = ModelReference(generation=0, trainer=name, path="model", digest=model.digest)
        predictor = load_predictor(rig.storage, reference, campaign.config.inference, "cpu")
        said = find_entry(name).settings.of(rig.config.training).tells_objects_apart
        assert said == (object_output(predictor.outputs) is not None), "as the family's settings say"
        return predictor

    return make


TRAINED = [
    pytest.param(
        train_one(name), id=name, marks=[pytest.mark.slow] if name in {"nnunet", "monai_unet_topology"} else []
    )
    for name in trainer_names()
]
"""Of every trainer that is installed; one of the slow ones starts a process, the other is the U-Net once more."""


@pytest.fixture(params=[make_blur, make_unet, make_ensemble, make_distances, *TRAINED])
def predictor(request: pytest.FixtureRequest, campaign: Campaign, tmp_path: Path) -> Predictor:
    make: Callable[[Campaign, Path], Predictor] = request.param
    return make(campaign, tmp_path / "rig")


def windows_of(predictor: Predictor, count: int) -> np.ndarray:
    shape = (count, predictor.in_channels, *predictor.window_zyx(SPACING))
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def members_of(predictor: Predictor, windows: np.ndarray, keys: list[int]) -> list[tuple[Group, dict[str, np.ndarray]]]:
    return [(group, {k: np.array(v) for k, v in member.items()}) for group, member in predictor.members(windows, keys)]


def test_members_hold_the_outputs_in_the_frame_of_the_windows(predictor: Predictor) -> None:
    assert isinstance(predictor, Predictor)
    assert predictor.outputs[0] == class_probabilities(predictor.n_classes)
    windows = windows_of(predictor, 2)
    for _, member in members_of(predictor, windows, [1, 2]):
        assert list(member) == [output.name for output in predictor.outputs]
        for output in predictor.outputs:
            assert member[output.name].shape == (2, output.channels, *windows.shape[2:])
            assert member[output.name].dtype == np.float32
            assert output.kind == "flow" or member[output.name].min() >= 0
        np.testing.assert_allclose(member["probability"].sum(axis=1), 1, atol=1e-4)


def test_there_is_a_member_per_network_symmetry_and_sample_in_order(predictor: Predictor, campaign: Campaign) -> None:
    config = campaign.config.inference
    members = members_of(predictor, windows_of(predictor, 1), [1])
    every = np.ndindex(predictor.networks, config.tta_symmetries, config.mc_samples)
    assert [group for group, _ in members] == [Group(n, s) for n, s, _ in every]
    first, last = (members[i][1]["probability"] for i in (0, -config.mc_samples * config.tta_symmetries))
    assert (predictor.networks == 1) == np.array_equal(first, last)


def test_what_is_not_sampled_is_the_same_in_all_samples(predictor: Predictor) -> None:
    members = members_of(predictor, windows_of(predictor, 1), [1])
    shared = [output.name for output in predictor.outputs if not output.sampled]
    first = dict[Group, dict[str, np.ndarray]]()
    for group, member in members:
        for name in shared:
            np.testing.assert_array_equal(member[name], first.setdefault(group, member)[name])


def test_members_depend_on_the_key_alone_not_on_the_batch(predictor: Predictor) -> None:
    windows, keys = windows_of(predictor, 3), [11, 2**62, 7]
    together = members_of(predictor, windows, keys)
    for index in (2, 0, 1):
        alone = members_of(predictor, windows[index : index + 1], [keys[index]])
        for (_, expected), (_, found) in zip(together, alone, strict=True):
            for name in expected:
                np.testing.assert_allclose(found[name][0], expected[name][index], atol=1e-5)


def test_another_key_gives_other_samples(predictor: Predictor) -> None:
    windows = windows_of(predictor, 1)
    first, second = (members_of(predictor, windows, [key]) for key in (1, 2))
    pairs = [(a["probability"], b["probability"]) for (_, a), (_, b) in zip(first, second, strict=True)]
    assert any(np.abs(a - b).max() > 1e-4 for a, b in pairs)


def test_the_windows_are_left_as_they_are(predictor: Predictor) -> None:
    windows = windows_of(predictor, 1)
    before = windows.copy()
    members_of(predictor, windows, [1])
    assert np.array_equal(windows, before)
