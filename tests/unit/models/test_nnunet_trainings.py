"""nnU-Net really trained with what it offers: residual presets, folds, starts from another model, the GPU's schedule."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from torch.multiprocessing.spawn import start_processes

from rescueseg.campaign import Campaign
from rescueseg.errors import TrainingError
from rescueseg.models.nnunet.ranks import watch
from rescueseg.models.registry import load_predictor
from rescueseg.models.trainer import TrainedModel
from tests.contracts.test_trainer import publish, train
from tests.training_rig import BOXES, make_campaign, make_snapshot
from tests.unit.models.test_warm_start import with_settings


def plan_of(model: TrainedModel) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((model.path / "model.json").read_text())["plan"]
    return plan


def test_a_residual_preset_trains_and_folds_of_the_default_start_from_scratch_and_say_so(tmp_path: Path) -> None:
    residual = make_campaign(tmp_path, trainer="nnunet", iterations=2, nnunet={"planner": "resenc_m"})
    snapshot = make_snapshot(residual, BOXES)
    first = train(residual, snapshot, tmp_path / "first")
    assert (plan_of(first)["planner"], plan_of(first)["network"]["architecture"]) == ("resenc_m", "residual")
    predictor = load_predictor(residual.storage, publish(residual, first), residual.config.inference, "cpu")
    assert predictor.networks == 1

    folded = with_settings(residual, nnunet={"planner": "default"}, members=3)
    second = train(folded, snapshot, tmp_path / "second", warm_start=first.path)
    assert second.warnings == ("trained from scratch: the model to start from has another training.nnunet.planner",)
    assert second.iterations == 6
    log = (tmp_path / "second/nnunet.log").read_text()
    assert log.count("This split has 2 training and 1 validation cases") == 3
    weights = safetensors.numpy.load_file(second.path / "model.safetensors")
    networks = [{n: w for n, w in weights.items() if n.startswith(f"member{i}.")} for i in range(3)]
    assert {len(network) for network in networks} == {len(weights) // 3}
    name = next(n for n, w in networks[0].items() if w.ndim == 5).removeprefix("member0.")
    assert len({weights[f"member{i}.{name}"].tobytes() for i in range(3)}) == 3
    predictor = load_predictor(folded.storage, publish(folded, second), folded.config.inference, "cpu")
    assert predictor.networks == 3


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, TrainedModel]:
    root = tmp_path_factory.mktemp("single")
    campaign = make_campaign(root, trainer="nnunet", iterations=30)
    return campaign, train(campaign, make_snapshot(campaign, BOXES), root / "work")


@pytest.mark.slow
def test_an_ensemble_starts_from_a_single_model_with_the_batch_and_dropout_that_are_asked_for(
    single: tuple[Campaign, TrainedModel], tmp_path: Path
) -> None:
    campaign = with_settings(single[0], members=2, iterations=3, batch_size=4, dropout=0.3)
    snapshot = make_snapshot(campaign, BOXES)
    warm = train(campaign, snapshot, tmp_path / "warm", warm_start=single[1].path)
    cold = train(campaign, snapshot, tmp_path / "cold")
    assert warm.warnings == ()
    plan = plan_of(warm)
    assert (plan["batch_size"], plan["members"], plan["network"]["dropout"]) == (4, 2, 0.3)
    for member in (slice(0, 3), slice(3, 6)):
        assert sum(e["loss"] for e in warm.losses[member]) < 0.8 * sum(e["loss"] for e in cold.losses[member])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"profile": "gpu"}, "training.profile"),
        ({"nnunet": {"channels": [8, 16, 24]}}, "training.nnunet.channels"),
        ({"spacing_um_zyx": (0.2, 0.2, 0.2)}, "working spacing"),
    ],
)
def test_an_incompatible_model_is_no_start_and_the_reason_is_told(
    single: tuple[Campaign, TrainedModel], tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    campaign = with_settings(single[0], iterations=2, **changed)
    model = train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work", warm_start=single[1].path)
    assert model.warnings == (f"trained from scratch: the model to start from has another {named}",)


@pytest.mark.slow
def test_truncated_weights_to_start_from_are_one_clear_error(
    single: tuple[Campaign, TrainedModel], tmp_path: Path
) -> None:
    campaign, model = single
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").write_bytes((model.path / "model.json").read_bytes())
    (tmp_path / "model/model.safetensors").write_bytes((model.path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"cannot be read .*backup"):
        train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work", warm_start=tmp_path / "model")


@pytest.mark.slow
def test_the_profile_of_a_gpu_has_the_epochs_of_nnunet(single: tuple[Campaign, TrainedModel], tmp_path: Path) -> None:
    campaign = with_settings(single[0], profile="gpu", iterations=260, checkpoint_every=4, batch_size=2)
    steps: list[int] = []
    model = train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work", lambda step, _: steps.append(step))
    assert steps == list(range(1, 261))
    assert [int(e["step"]) for e in model.losses if "pseudo_dice" in e] == [250, 260]
    rates = [e["learning_rate"] for e in model.losses]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[130] == pytest.approx(1e-2 * (1 - 130 / 260) ** 0.9, rel=0.02), "nnU-Net's polynomial decay"


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_says_that_it_waits_and_keeps_the_log(
    single: tuple[Campaign, TrainedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = with_settings(single[0], iterations=2)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/nnunet.log").write_text("of an earlier run\n")
    with (tmp_path / "work/.lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        training = pool.submit(train, campaign, make_snapshot(campaign, BOXES), tmp_path / "work")
        while not caplog.messages and not training.done():
            time.sleep(0.1)
        assert caplog.messages == [f"waiting for another training in {tmp_path / 'work'}"]
        assert not (tmp_path / "work/job.json").exists()
        assert (tmp_path / "work/nnunet.log").read_text() == "of an earlier run\n"
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert training.result().iterations == 2
    log = (tmp_path / "work/nnunet.log").read_text()
    identity = json.loads((tmp_path / "work/job.json").read_text())["identity"]
    assert log.startswith("of an earlier run\n=== ")
    assert f"training {identity}" in log.splitlines()[1]


def rank(index: int, ends: str) -> None:
    """Be a process of three: the last one ends as it is told, the others wait for it."""
    if index == 2 and ends == "raises":
        raise TrainingError("the loss is no longer a number at step 7")
    if index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [("raises", "the loss is no longer a number at step 7"), ("dies", "terminated with signal SIGKILL")],
)
def test_a_process_that_is_lost_ends_the_others_and_its_reason_is_told(ends: str, reason: str) -> None:
    messages: list[str] = []
    others = start_processes(rank, (ends,), 3, join=False, start_method="fork")
    watch(others, messages.append).join(timeout=120)
    assert len(messages) == 1
    assert reason in messages[0]
    assert not any(process.is_alive() for process in others.processes)
