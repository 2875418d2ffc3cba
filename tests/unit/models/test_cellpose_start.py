"""Trainings of Cellpose's network that start from a weights file: what they take over, what they say, and their identity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cellpose", reason="the extra 'cellpose' is not installed")

from rescueseg.campaign import Campaign
from rescueseg.errors import ConfigError, TrainingError
from rescueseg.models.cellpose import trainer
from rescueseg.models.cellpose.plan import outline
from rescueseg.models.cellpose.published import load_published
from rescueseg.models.cellpose.settings import CellposeSettings
from rescueseg.models.cellpose.starting_weights import with_channels
from rescueseg.models.cellpose.trainer import CellposeTrainer
from rescueseg.models.cellpose.weights_file import read_weights
from rescueseg.models.files import read_model
from rescueseg.models.trainer import TrainedModel, TrainingRequest, ignore_progress
from rescueseg.records import Snapshot
from rescueseg.storage import file_digest
from tests.cellpose_weights import save_random, save_without_diameter
from tests.training_rig import BOXES, make_campaign, make_snapshot

CHANNELS = (4, 8, 16)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, Snapshot]:
    campaign = make_campaign(tmp_path_factory.mktemp("rig"), trainer="cellpose", iterations=1)
    return campaign, make_snapshot(campaign, BOXES)


def request_of(rig: tuple[Campaign, Snapshot], work: Path, warm: Path | None = None, **own: Any) -> TrainingRequest:
    campaign, snapshot = rig
    table = {"learning_rate": 1e-7, "cellpose": {"diameter_um": 2.0, **own}}
    training = type(campaign.config.training).model_validate(campaign.config.training.model_dump(mode="json") | table)
    config = campaign.config.model_copy(update={"training": training})
    return TrainingRequest(
        config=config, volumes=campaign.volumes, holdout=None, snapshot=snapshot, work_dir=work, seed=0, warm_start=warm,
        device="cpu",
    )  # fmt: skip


def train(request: TrainingRequest) -> TrainedModel:
    return CellposeTrainer().train(request, ignore_progress)


def weights_of(model: TrainedModel) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(model.path / "model.safetensors")


def plan_of(model: TrainedModel) -> dict[str, Any]:
    found = read_model(model.path)
    assert found is not None
    plan: dict[str, Any] = found.description["plan"]
    return plan


def test_images_of_fewer_channels_say_what_they_said_with_zeros(tmp_path: Path) -> None:
    weights = read_weights(save_random(tmp_path / "w", CHANNELS))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 32, 32))).float()
    image[:, 1] = 0
    both, one = load_published(weights).eval(), load_published(with_channels(weights, 1)).eval()
    with torch.inference_mode():
        first, second = (n.cpnet.downsample.down[0](i) for n, i in ((both, image), (one, image[:, :1])))
    inner = (..., slice(4, -4), slice(4, -4))  # of four convolutions
    torch.testing.assert_close(first[inner], second[inner], atol=1e-4, rtol=1e-4)
    assert with_channels(weights, 2) is weights


def test_a_training_starts_there_at_the_scale_of_the_file(rig: tuple[Campaign, Snapshot], tmp_path: Path) -> None:
    path = save_random(tmp_path / "w", CHANNELS)
    request = request_of(rig, tmp_path / "work", weights=path)
    model = train(request)
    plan = plan_of(model)
    assert (tuple(plan["channels"]), plan["in_channels"]) == (CHANNELS, 1)
    finest = min(request.volumes.record(rig[1].items[0].volume_id).spacing_um_zyx)
    assert plan["spacing_um_zyx"][1] == pytest.approx(max(2.0 / 30, finest), rel=0.3)
    trained, given = weights_of(model), with_channels(read_weights(path), 1).tensors
    learned = [name for name in given if name.endswith(("weight", "bias"))]
    for name in learned:  # one step of a tiny rate
        torch.testing.assert_close(trained[f"cpnet.{name}"], given[name], atol=1e-5, rtol=1e-4)
    assert model.warnings == train(request_of(rig, tmp_path / "cold", channels=list(CHANNELS))).warnings
    said = outline(request.config, request.volumes, request.snapshot)
    assert said.window_zyx == (plan["side"],) * 3


def test_the_same_file_elsewhere_is_the_same_training(rig: tuple[Campaign, Snapshot], tmp_path: Path) -> None:
    path = save_random(tmp_path / "w", CHANNELS)
    copied = str(shutil.copy(path, tmp_path / "other"))
    first = train(request_of(rig, tmp_path / "a", weights=path))
    assert train(request_of(rig, tmp_path / "b", weights=copied)).digest == first.digest
    another = save_random(tmp_path / "another", CHANNELS, seed=1)
    assert train(request_of(rig, tmp_path / "c", weights=another)).digest != first.digest
    own = CellposeSettings(weights=path)
    assert own.identity() == CellposeSettings(weights=copied).identity() != CellposeSettings(weights=another).identity()
    assert CellposeSettings().identity() == {"cellpose": {"channels": None, "diameter_um": None}}, "as before"


def test_a_name_that_says_how_wide_objects_are_is_part_of_the_training(tmp_path: Path) -> None:
    own = save_random(tmp_path / "own", CHANNELS)
    cyto = save_without_diameter(tmp_path / "cyto", own)
    nuclei, other, named = (str(shutil.copy(cyto, tmp_path / name)) for name in ("nuclei", "cyto2", "mine"))
    renamed = str(shutil.copy(own, tmp_path / "nuclei_own"))
    identity = {path: CellposeSettings(weights=path).identity() for path in (cyto, nuclei, other, named, own, renamed)}
    assert identity[cyto] == identity[other] == identity[named] != identity[nuclei]
    assert identity[own] == identity[renamed], "the file itself says it"
    assert identity[own]["cellpose"]["weights"] == file_digest(own)
    assert set(identity[own]["cellpose"]) == {"channels", "diameter_um", "weights"}


def test_a_model_of_the_generation_before_comes_first(rig: tuple[Campaign, Snapshot], tmp_path: Path) -> None:
    path = save_random(tmp_path / "w", CHANNELS)
    before = train(request_of(rig, tmp_path / "before", channels=list(CHANNELS)))
    warm = train(request_of(rig, tmp_path / "warm", before.path, weights=path))
    assert plan_of(warm)["channels"] == list(CHANNELS)
    for name, value in weights_of(before).items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(weights_of(warm)[name], value, atol=1e-5, rtol=1e-4)
    other = train(request_of(rig, tmp_path / "other", channels=[4, 8]))
    unfit = train(request_of(rig, tmp_path / "unfit", other.path, weights=path))
    assert any(
        "trained from training.cellpose.weights: the model to start from has another" in w for w in unfit.warnings
    )
    given = with_channels(read_weights(path), 1).tensors["output.2.weight"]
    torch.testing.assert_close(weights_of(unfit)["cpnet.output.2.weight"], given, atol=1e-5, rtol=1e-4)


def test_weights_that_do_not_fit_are_refused(rig: tuple[Campaign, Snapshot], tmp_path: Path) -> None:
    path = save_random(tmp_path / "w", CHANNELS)
    with pytest.raises(TrainingError, match="asks for \\(4, 8\\)"):
        train(request_of(rig, tmp_path / "a", weights=path, channels=[4, 8]))
    with pytest.raises(TrainingError, match="no such file"):
        train(request_of(rig, tmp_path / "a", weights=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="whole path"):
        CellposeSettings.of(type(rig[0].config.training).model_validate({"cellpose": {"weights": "cyto3"}}))
    with pytest.raises(TrainingError, match="no such file"):
        CellposeSettings(weights=str(tmp_path / "none")).identity()
    assert json.dumps(CellposeSettings(weights=path).identity()).count(path) == 0
    assert trainer.CellposeTrainer.ignored == {}
