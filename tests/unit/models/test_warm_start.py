"""A training that starts from another model: what it takes over, what it says, and which files it trusts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT, TRAINING, TrainingResult
from rescueseg.config import TrainingConfig
from rescueseg.errors import InferenceError, TrainingError
from rescueseg.models.files import read_trained_model
from rescueseg.models.nnunet.plan import NnUNetPlan, warm_start_plan
from rescueseg.models.registry import load_predictor
from rescueseg.models.survey import Survey
from rescueseg.models.trainer import TrainedModel, model_digest
from rescueseg.records import Snapshot
from rescueseg.stages import train as stage
from tests.contracts.test_trainer import publish, train
from tests.training_rig import BOXES, SPACING, make_campaign, make_snapshot, with_tables
from tests.unit.models.test_nnunet import network

SURVEY = Survey(in_channels=1, spacing_um_zyx=SPACING, volume_zyx=(24, 96, 96), field_zyx=(12, 48, 48))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, Snapshot, TrainedModel]:
    """A campaign with a snapshot, and a U-Net trained on it."""
    root = tmp_path_factory.mktemp("before")
    campaign = make_campaign(root, iterations=2)
    snapshot = make_snapshot(campaign, BOXES)
    return campaign, snapshot, train(campaign, snapshot, root / "work")


def with_settings(campaign: Campaign, **training: Any) -> Campaign:
    """Return a campaign with other settings; those of a family's table leave the rest of it as it is."""
    before = campaign.config.training
    changed = TrainingConfig.model_validate(with_tables(before.model_dump(mode="json"), training))
    return Campaign(campaign.storage, campaign.config.model_copy(update={"training": changed}))


def copied(model: TrainedModel, root: Path) -> Path:
    return Path(shutil.copytree(model.path, root / "model"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"unet": {"channels": [8, 16, 24]}}, "training.unet.channels"),
        ({"unet": {"deep_supervision": True}}, "training.unet.deep_supervision"),
        ({"spacing_um_zyx": (0.2, 0.2, 0.2)}, "working spacing"),
        ({"window_zyx": (2, 32, 32)}, "training.window_zyx"),
        ({"n_classes": 2}, "number of classes"),
    ],
)
def test_a_unet_of_another_plan_is_no_start_and_the_model_says_so(
    before: tuple[Campaign, Snapshot, TrainedModel], tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    campaign, snapshot, model = before
    if "n_classes" in changed:
        snapshot = snapshot.model_copy(update=changed)
        campaign = Campaign(campaign.storage, campaign.config.model_copy(update={"classes": ("one", "two")}))
    else:
        campaign = with_settings(campaign, **changed)
    warm = train(campaign, snapshot, tmp_path / "warm", warm_start=model.path)
    cold = train(campaign, snapshot, tmp_path / "cold")
    reason = f"trained from scratch: the model to start from has another {named}"
    assert warm.warnings == (*cold.warnings, reason)
    assert warm.losses == cold.losses


def test_what_the_weights_do_not_depend_on_follows_the_settings(
    before: tuple[Campaign, Snapshot, TrainedModel], tmp_path: Path
) -> None:
    campaign = with_settings(before[0], batch_size=3, dropout=0.4, window_zyx=(8, 40, 40))
    warm = train(campaign, before[1], tmp_path / "warm", warm_start=before[2].path)
    assert warm.warnings == ()
    plan = json.loads((warm.path / "model.json").read_text())["plan"]
    assert (plan["batch_size"], plan["network"]["dropout"], plan["window_zyx"]) == (3, 0.4, [8, 40, 40])


def nnunet_plan(**changes: Any) -> NnUNetPlan:
    fields: dict[str, Any] = {
        "network": network(),
        "profile": "cpu",
        "planner": "default",
        "configuration": "3d_fullres",
        "spacing_um_zyx": SPACING,
        "axes": (0, 1, 2),
        "window_zyx": (8, 32, 32),
        "inference_window_zyx": (8, 32, 32),
        "batch_size": 2,
        "iterations": 10,
    }
    return NnUNetPlan(**fields | changes)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"profile": "gpu"}, "training.profile"),
        ({"planner": "resenc_m"}, "training.nnunet.planner"),
        ({"configuration": "3d_lowres"}, "training.nnunet.configuration"),
        ({"spacing_um_zyx": (0.2, 0.2, 0.2)}, "working spacing"),
        ({"network": network().model_copy(update={"features": (8, 16, 32, 64)})}, "training.nnunet.channels"),
        ({"network": network().model_copy(update={"in_channels": 2})}, "number of image channels"),
        ({"network": network().model_copy(update={"strides": ((1, 1, 1),) * 4})}, "training.window_zyx"),
    ],
)
def test_an_nnunet_of_another_plan_is_no_start(changed: dict[str, Any], named: str) -> None:
    config = TrainingConfig(window_zyx=(8, 32, 32))
    plan, reason = warm_start_plan(nnunet_plan(), nnunet_plan(**changed), config, SURVEY)
    assert plan == nnunet_plan(**changed)
    assert reason == f"trained from scratch: the model to start from has another {named}"


def test_an_nnunet_that_a_gpu_planned_for_other_images_is_kept_and_batch_and_windows_follow_the_settings() -> None:
    deeper = network().with_levels([*network().strides, (1, 2, 2)], [*network().kernels, (3, 3, 3)])
    earlier = nnunet_plan(profile="gpu", members=1)
    scratch = nnunet_plan(profile="gpu", network=deeper, batch_size=8, members=3, iterations=20, window_zyx=(9, 30, 30))
    plan, reason = warm_start_plan(earlier, scratch, TrainingConfig(profile="gpu", batch_size=8), SURVEY)
    assert reason == ""
    assert (plan.network, plan.batch_size, plan.members, plan.iterations) == (earlier.network, 8, 3, 20)
    assert plan.window_zyx == (10, 32, 32), "a multiple of the network's strides"
    assert plan.inference_window_zyx >= plan.window_zyx


@pytest.mark.parametrize("damage", ["other weights", "truncated weights", "truncated description"])
def test_a_generation_does_not_start_from_a_damaged_model(
    before: tuple[Campaign, Snapshot, TrainedModel], tmp_path: Path, damage: str
) -> None:
    campaign = with_settings(before[0], warm_start=True)
    reference = publish(campaign, before[2])
    campaign.generation(0).write(TRAINING, TrainingResult(model=reference, iterations=1))
    campaign.generation(1).write(SNAPSHOT, before[1].model_copy(update={"generation": 1}))
    weights, description = (campaign.storage.read_bytes(f"model/model.{kind}") for kind in ("safetensors", "json"))
    if damage == "other weights":
        numbers = {name: -values for name, values in safetensors.numpy.load(weights).items()}
        campaign.storage.write_bytes("model/model.safetensors", safetensors.numpy.save(numbers))
    elif damage == "truncated weights":
        campaign.storage.write_bytes("model/model.safetensors", weights[:100])
    else:
        campaign.storage.write_bytes("model/model.json", description[:100])
    with pytest.raises(InferenceError, match="not the one that was trained"):
        stage.train(campaign, 1, lambda *_: None)
    assert not campaign.generation(1).has(TRAINING)


@pytest.mark.parametrize(
    ("trainer", "name", "length"),
    [
        ("monai_unet", "model.json", 100),
        ("monai_unet", "model.safetensors", 100),
        ("nnunet", "model.json", 100),
        ("nnunet", "model.json", 0),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_clear_error(
    before: tuple[Campaign, Snapshot, TrainedModel], tmp_path: Path, trainer: str, name: str, length: int
) -> None:
    damaged = copied(before[2], tmp_path)
    (damaged / name).write_bytes((damaged / name).read_bytes()[:length])
    with pytest.raises(TrainingError, match=r"cannot be read .*backup"):
        train(with_settings(before[0], trainer=trainer), before[1], tmp_path / "warm", warm_start=damaged)


def test_a_model_of_an_unknown_format_is_one_clear_error(
    before: tuple[Campaign, Snapshot, TrainedModel], tmp_path: Path
) -> None:
    campaign, snapshot, model = before
    strange = copied(model, tmp_path)
    description = json.loads((strange / "model.json").read_text())
    description["plan"]["network"]["gates"] = 3
    (strange / "model.json").write_text(json.dumps(description))
    with pytest.raises(TrainingError, match="cannot be read"):
        train(campaign, snapshot, tmp_path / "warm", warm_start=strange)
    weights, text = ((strange / f"model.{kind}").read_bytes() for kind in ("safetensors", "json"))
    reference = publish(campaign, replace(model, path=strange, digest=model_digest(weights, text)))
    with pytest.raises(InferenceError, match="cannot be read"):
        load_predictor(campaign.storage, reference, campaign.config.inference, "cpu")


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/model.json", "losses.json"])
def test_a_finished_model_that_was_changed_is_trained_again(
    before: tuple[Campaign, Snapshot, TrainedModel], tmp_path: Path, name: str
) -> None:
    campaign, snapshot, first = before
    work = Path(shutil.copytree(first.path.parent, tmp_path / "work"))
    first = replace(first, path=work / "model")
    identity = json.loads((first.path / "model.json").read_text())["request"]
    assert read_trained_model(work, identity) == first
    (work / name).write_bytes((work / name).read_bytes()[:-9])
    assert read_trained_model(work, identity) is None
    steps: list[int] = []
    again = train(campaign, snapshot, work, lambda step, _: steps.append(step))
    assert steps == [1, 2]
    assert (again.digest, again.losses) == (first.digest, first.losses)
