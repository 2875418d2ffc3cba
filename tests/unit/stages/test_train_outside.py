"""Trainings outside the loop, and what a generation's snapshot freezes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rescueseg.campaign import Campaign, outside_trainings
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.route import TRIAGE_SUMMARY, current_choice, frozen_choice
from rescueseg.campaign.stage_results import SNAPSHOT, TRAINING, TrainingResult
from rescueseg.cli.main import app
from rescueseg.errors import ConfigError, TrainingError
from rescueseg.geometry import Box
from rescueseg.models import checkpoints
from rescueseg.models.files import CHECKPOINT_FILE, member_folder
from rescueseg.models.registry import outline
from rescueseg.progress import StepProgress
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.records import Holdout, HoldoutBox, ModelReference
from rescueseg.stages import train_outside
from rescueseg.stages.train import train
from tests.training_rig import BOXES, make_campaign, make_snapshot
from tests.triage_summaries import triaged


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    made = make_campaign(tmp_path, iterations=12)
    held = HoldoutBox(volume_id="v0", box=Box((14, 60, 60), (8, 30, 30)), part="test", stratum="dense")
    made.freeze_holdout(Holdout(boxes=(held,), guard_zyx=(1, 4, 4)))
    made.generation(0).write(SNAPSHOT, make_snapshot(made, BOXES))
    return made


@pytest.fixture
def store(campaign: Campaign) -> QueueStore:
    return open_queue(campaign)


def test_it_trains_beside_the_generations_and_is_not_repeated(campaign: Campaign, store: QueueStore) -> None:
    planned = train_outside.plan(campaign, store, generation=0)
    steps: list[int] = []
    result = train_outside.run(campaign, planned, lambda step, _: steps.append(step))
    assert steps == list(range(1, 13))
    assert campaign.storage.list(result.model.path) == ["model.json", "model.safetensors"]
    assert outside_trainings.step_of(campaign.training(planned.name)) == ", training step 10 of 12"
    losses = outside_trainings.read_losses(campaign.training(planned.name))
    assert [entry["step"] for entry in losses] == list(range(1, 13))
    assert campaign.generation(0).model() is None, "no generation has it"
    again = train_outside.run(campaign, planned, lambda step, _: pytest.fail(f"step {step} taken again"))
    assert again == result == campaign.training(planned.name).read(outside_trainings.RESULT)


def test_its_name_follows_from_what_decides_the_model(campaign: Campaign, store: QueueStore) -> None:
    planned = train_outside.plan(campaign, store, generation=0)
    assert train_outside.plan(campaign, store, generation=0) == planned
    other = train_outside.plan(campaign, store, "nnunet", generation=0)
    assert other.name.startswith("nnunet-")
    longer = Campaign(campaign.storage, settings_of("rig", ["class1"], ["training.iterations=13"]))
    assert train_outside.plan(longer, store, "monai_unet", generation=0).name != planned.name


def test_a_generation_without_a_snapshot_is_refused(campaign: Campaign, store: QueueStore) -> None:
    with pytest.raises(TrainingError, match="no snapshot"):
        train_outside.plan(campaign, store, generation=3)


def test_the_dry_run_tells_patches_window_steps_folds_and_changes_nothing(
    campaign: Campaign, store: QueueStore
) -> None:
    """Nor is what it finds of volumes that were never compared written."""
    copy = campaign.volumes.records()[0].model_copy(
        update={"volume_id": "copy", "digest": "with another truth", "files": ""}
    )
    shutil.copytree(
        campaign.volumes.image_url(campaign.volumes.records()[0].volume_id), campaign.volumes.image_url("copy")
    )
    campaign.volumes.save(copy)
    campaign.storage.remove("relations.json")
    before = {str(path): path.read_bytes() for path in Path(campaign.url).rglob("*") if path.is_file()}
    shown = CliRunner().invoke(app, ["train", campaign.url, "--generation", "0", "--trainer", "nnunet", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "nnunet on 3 patches, window 8×32×32 voxels (zyx), 12 steps: expected time not known before" in shown.output
    assert {str(path): path.read_bytes() for path in Path(campaign.url).rglob("*") if path.is_file()} == before


def test_a_setting_that_the_trainer_would_not_heed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="monai_unet", iterations=10, unet={"betti_weight": 1.0})
    campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, BOXES))
    for extra in (["--dry-run"], []):
        shown = CliRunner().invoke(app, ["train", campaign.url, "--generation", "0", *extra])
        assert shown.exit_code == 1
        assert "training.unet.betti_weight: the trainer 'monai_unet' cannot" in shown.stderr
    assert not Path(campaign.url, "services").exists()


@pytest.mark.parametrize(
    ("trainer", "tables", "name"),
    [
        ("nnunet", {"nnunet": {"planner": "resenc_m"}, "learning_rate": 0.02}, "nnunet-9702fcd8bb54"),
        ("monai_unet", {"unet": {"ema": 0.5, "deep_supervision": True}}, "monai_unet-486c4ea13a80"),
        (
            "monai_unet_topology",
            {"unet": {"cldice_weight": 1, "betti_weight": 0.1}},
            "monai_unet_topology-6ada7dd025fc",
        ),
    ],
)
def test_trainings_are_named_as_they_were_before_families_had_tables(
    tmp_path: Path, store: QueueStore, trainer: str, tables: dict[str, Any], name: str
) -> None:
    campaign = make_campaign(tmp_path / "named", trainer=trainer, iterations=5, **tables)
    campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, BOXES))
    assert train_outside.plan(campaign, store, trainer, 0).name == name


def test_a_wrong_table_is_refused_before_a_training_outside_the_loop(tmp_path: Path, store: QueueStore) -> None:
    campaign = make_campaign(tmp_path / "wrong", nnunet={"planner": "resenc"})
    campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, BOXES))
    with pytest.raises(ConfigError, match=r"campaign\.toml: 'training\.nnunet\.planner': Input should be 'default'"):
        train_outside.plan(campaign, store, "monai_unet", 0)


def test_the_time_is_that_of_the_last_training_of_the_same_trainer(campaign: Campaign, store: QueueStore) -> None:
    model = ModelReference(generation=0, trainer="nnunet", path="m", digest="0")
    campaign.generation(0).write(TRAINING, TrainingResult(model=model, iterations=6))
    campaign.generation(0).write(TRAINING.seconds, 30.0)
    assert train_outside.estimate(campaign, train_outside.plan(campaign, store, "nnunet", 0))[1] == pytest.approx(60.0)
    assert train_outside.estimate(campaign, train_outside.plan(campaign, store, "monai_unet", 0))[1] is None


def test_the_outline_of_an_ensemble_says_how_its_networks_share_the_patches(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="nnunet", iterations=10, members=3)
    told = outline("nnunet", campaign.config, campaign.volumes, make_snapshot(campaign, BOXES))
    assert (told.steps, told.networks) == (30, 3)
    assert told.folds == "cross-validation: " + ", ".join(["2 train and 1 validate"] * 3)
    few = outline("nnunet", campaign.config, campaign.volumes, make_snapshot(campaign, BOXES, halo=(0, 8, 8)))
    assert "too few for 3 folds" in few.folds


def test_the_outline_imports_no_torch() -> None:
    code = "import sys; from rescueseg.models.registry import *; [find_entry(n) for n in trainer_names()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_triage_while_a_generation_runs_changes_the_next_one_only(campaign: Campaign) -> None:
    automatic = Campaign(campaign.storage, settings_of("rig", ["class1"]))
    from rescueseg.campaign.route import freeze_choice

    freeze_choice(automatic, 1)
    automatic.records.write(TRIAGE_SUMMARY, triaged())
    assert (frozen_choice(automatic, 1).trainer, frozen_choice(automatic, 1).strategy) == (
        "monai_unet",
        "clasp_entropy",
    )
    assert (current_choice(automatic).trainer, current_choice(automatic).strategy) == ("nnunet", "power_bald")
    assert (frozen_choice(automatic, 2).trainer, frozen_choice(automatic, 2).strategy) == ("nnunet", "power_bald"), (
        "not begun yet"
    )


def test_a_model_of_another_family_is_no_start_but_a_warning(campaign: Campaign) -> None:
    other = ModelReference(generation=0, trainer="nnunet", path="m", digest="0")
    campaign.generation(0).write(TRAINING, TrainingResult(model=other, iterations=1))
    warm = Campaign(
        campaign.storage,
        campaign.config.model_copy(
            update={"training": campaign.config.training.model_copy(update={"warm_start": True, "iterations": 2})}
        ),
    )
    following = make_snapshot(warm, BOXES).model_copy(update={"generation": 1})
    warm.generation(1).write(SNAPSHOT, following)
    result = train(warm, 1, lambda *_: None)
    assert result.warnings == ("trained from scratch: generation 0 was made by another trainer, nnunet",)


def resume_after_an_hour(campaign: Campaign, work: Path, train: Callable[[StepProgress], object]) -> None:
    """Break a training off behind its second checkpoint, and let it have taken an hour up to there."""

    def stop(step: int, _: Mapping[str, float]) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    import torch

    folder = member_folder(work, 0)
    state = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    assert state["step"] == 8
    checkpoints.save_checkpoint(folder, state | {"seconds": 3600.0})
    train(lambda *_: None)


def test_the_seconds_of_a_killed_training_count(campaign: Campaign, store: QueueStore) -> None:
    planned = train_outside.plan(campaign, store, generation=0)
    work = campaign.training(planned.name).work_folder()
    resume_after_an_hour(campaign, work, lambda progress: train_outside.run(campaign, planned, progress))
    done = campaign.training(planned.name).read(outside_trainings.RESULT)
    assert done is not None
    assert 3600 < done.seconds < 4000


def test_those_of_a_killed_generation_count_in_the_table_and_the_next_estimate(
    campaign: Campaign, store: QueueStore
) -> None:
    resume_after_an_hour(campaign, campaign.generation(0).work_folder(), lambda progress: train(campaign, 0, progress))
    assert 3600 < campaign.generation(0).require(TRAINING.seconds) < 4000
    written = campaign.storage.read_json("generations/0000/training.json")
    assert written.keys() == {"model", "iterations", "warnings"}, "no clock enters a result, and losses lie beside it"
    assert len(outside_trainings.read_losses(campaign.generation(0))) == written["iterations"] == 12
    estimate = train_outside.estimate(campaign, train_outside.plan(campaign, store, generation=0))[1]
    assert estimate == pytest.approx(campaign.generation(0).require(TRAINING.seconds))
