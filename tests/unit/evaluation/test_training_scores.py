"""A model from `rescueseg train` is judged on the holdout as one of a generation is, without maps of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rescueseg.campaign import Campaign, outside_trainings
from rescueseg.campaign.stage_results import SNAPSHOT, TRAINING, TrainingResult
from rescueseg.cli.main import app
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.errors import EvaluationError, LeakError
from rescueseg.evaluation.calibration import Calibration
from rescueseg.evaluation.holdout_scores import check_evaluation
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.stored_scores import store_scores
from rescueseg.evaluation.training_scores import check_training, current_training_evaluation, evaluate_training
from rescueseg.geometry import Box
from rescueseg.inference.engine import infer_volume
from rescueseg.models.trainer import ignore_progress
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.stages import train_outside
from tests.training_rig import BOXES, make_campaign, make_snapshot

HELD = (
    HoldoutBox(volume_id="v0", box=Box((14, 2, 2), (8, 40, 40)), part="validation", stratum="dense"),
    HoldoutBox(volume_id="v0", box=Box((2, 4, 54), (8, 36, 36)), part="validation", stratum="sparse"),
    HoldoutBox(volume_id="v0", box=Box((14, 60, 60), (8, 30, 30)), part="test", stratum="dense"),
    HoldoutBox(volume_id="v0", box=Box((2, 60, 60), (8, 30, 30)), part="test", stratum="sparse"),
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    made = make_campaign(tmp_path_factory.mktemp("outside"), iterations=12, numbered=True)
    made.freeze_holdout(Holdout(boxes=HELD, guard_zyx=(1, 4, 4)))
    made.generation(0).write(SNAPSHOT, make_snapshot(made, BOXES))
    return made


@pytest.fixture(scope="module")
def name(campaign: Campaign) -> str:
    planned = train_outside.plan(campaign, open_queue(campaign), generation=0)
    train_outside.run(campaign, planned, ignore_progress)
    return planned.name


@pytest.fixture
def request_file(campaign: Campaign, name: str) -> Iterator[str]:
    """Return the path of what was trained on; whatever is written there goes again."""
    path = campaign.training(name).path("request.json")
    kept = campaign.storage.read_json(path)
    yield path
    campaign.storage.write_json(path, kept)


def command(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


def files(campaign: Campaign) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in Path(campaign.url).rglob("*") if p.is_file() and "campaign.db" not in p.name
    }


def test_its_scores_are_those_of_a_generation_with_the_same_model(campaign: Campaign, name: str) -> None:
    shown = command("evaluate", campaign.url, "--training", name, "--json", f"{campaign.url}/scores.json")
    assert f"Training {name}: 2 validation, 2 test boxes" in shown
    path = campaign.training(name).path("evaluation.json")
    kept = Evaluation.model_validate(campaign.storage.read_json(path))
    assert campaign.storage.url_of(path) in shown
    written = json.loads(Path(campaign.url, "scores.json").read_text())
    assert (written["training"], written["model"]) == (name, "monai_unet")
    assert {group["part"] for group in written["groups"]} == {"validation", "test"}

    result = campaign.training(name).read(outside_trainings.RESULT)
    assert result is not None
    model = result.model
    campaign.generation(0).write(TRAINING, TrainingResult(model=model, iterations=1))
    infer_volume(campaign, model, "v0")
    evaluation, fitted = store_scores(campaign, check_evaluation(campaign, 0), choose_scored_objects)
    assert evaluation == kept
    objects = [box.details[0].instances for box in kept.boxes]
    assert sum(o.true for o in objects if o is not None) >= 2, (
        "objects are among the scores: the guard band is read too"
    )
    calibration = Calibration.model_validate(
        campaign.storage.read_json(campaign.training(name).path("calibration.json"))
    )
    assert fitted == calibration
    assert calibration.sentence() in shown

    compared = command("compare", campaign.url, "0", name, "--json", f"{campaign.url}/differences.json")
    assert f"training {name} (monai_unet) cannot be told from generation 0 (monai_unet)" in compared
    assert "Page" not in compared
    differences = json.loads(Path(campaign.url, "differences.json").read_text())
    assert differences["generations"] == [0, name]
    assert differences["groups"][0]["differences"]["dice"]["difference"] == 0


def test_a_dry_run_changes_nothing(campaign: Campaign, name: str) -> None:
    before = files(campaign)
    assert "no training has read any of them" in command("evaluate", campaign.url, "--training", name, "--dry-run")
    assert files(campaign) == before


def test_what_was_kept_is_taken_while_model_and_truth_are_the_same(campaign: Campaign, name: str) -> None:
    found, _ = evaluate_training(campaign, name, choose_scored_objects)
    assert (
        current_training_evaluation(campaign, name, choose_scored_objects, lambda *_: pytest.fail("predicted again"))
        == found
    )
    path = campaign.training(name).path("evaluation.json")
    campaign.storage.write_json(path, found.model_copy(update={"model_digest": "another"}).to_json())
    assert current_training_evaluation(campaign, name, choose_scored_objects) == found


def test_what_it_has_read_is_refused(campaign: Campaign, name: str, request_file: str) -> None:
    data = campaign.storage.read_json(request_file)
    data["snapshot"]["items"][0] |= {"box": HELD[2].box.to_dict(), "read_box": HELD[2].box.to_dict()}
    campaign.storage.write_json(request_file, data)
    with pytest.raises(LeakError, match=f"training {name} would be evaluated on its own snapshot"):
        check_training(campaign, name)
    refused = CliRunner().invoke(app, ["evaluate", campaign.url, "--training", name])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1


def test_what_a_generation_before_it_has_read_counts(campaign: Campaign, name: str, request_file: str) -> None:
    data = campaign.storage.read_json(request_file)
    data["snapshot"]["generation"] = 1
    campaign.storage.write_json(request_file, data)
    check_training(campaign, name)
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    item = snapshot.items[0].model_copy(update={"read_box": Box((0, 0, 0), (24, 96, 96))})
    campaign.generation(0).write(SNAPSHOT, snapshot.model_copy(update={"items": (item,)}))
    with pytest.raises(LeakError, match="the training of generation 0 has read"):
        check_training(campaign, name)
    campaign.generation(0).write(SNAPSHOT, snapshot)


def test_a_missing_truth_is_refused(campaign: Campaign, name: str) -> None:
    record = campaign.volumes.record("v0")
    campaign.volumes.save(record.model_copy(update={"truth": None}))
    with pytest.raises(EvaluationError, match="no truth for 4 of 4 holdout boxes"):
        evaluate_training(campaign, name, choose_scored_objects)
    campaign.volumes.save(record)


def test_a_training_that_is_not_there_or_not_finished_is_refused(campaign: Campaign, name: str) -> None:
    with pytest.raises(EvaluationError, match=f"no training 'mine'.*known: {name}"):
        check_training(campaign, "mine")
    campaign.storage.write_json(campaign.training("begun").path("request.json"), {})
    with pytest.raises(EvaluationError, match="'begun' has not finished"):
        check_training(campaign, "begun")
    both = CliRunner().invoke(app, ["evaluate", campaign.url, "--training", name, "--generation", "0"])
    assert both.exit_code == 1
    assert "Name one of them" in both.stderr
