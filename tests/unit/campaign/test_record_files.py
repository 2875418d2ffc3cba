"""What the files of a generation hold: read as records, refused by name, not read where it only counts that they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.outside_trainings import RESULT, read_losses
from rescueseg.campaign.record_file import RecordFile, seconds_file
from rescueseg.campaign.route import TRIAGE_SUMMARY, current_choice, freeze_choice
from rescueseg.campaign.stage_results import (
    CHOICE,
    EFFORT,
    INFERENCE,
    LOSSES,
    PROGRESS,
    QUERY,
    SNAPSHOT,
    TICKETS,
    TRAINING,
    GenerationEffort,
    TicketsResult,
    TrainingResult,
)
from rescueseg.cli.flows import finished_stages, running_stage
from rescueseg.cli.main import app
from rescueseg.errors import CampaignError, StorageError
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.stored_scores import SCORES
from rescueseg.evaluation.training_scores import TRAINING_EVALUATION
from rescueseg.records import MapReference, ModelReference
from rescueseg.reports.generation_table import REPORT
from rescueseg.triage.records import TRIAGE
from rescueseg.volumes.consistency import CONSISTENCY

OF_A_GENERATION: list[RecordFile[Any]] = [
    SNAPSHOT, EFFORT, CHOICE, TRAINING, LOSSES, INFERENCE, EVALUATION, SCORES, CALIBRATION, QUERY, TICKETS, REPORT,
    PROGRESS, TRAINING.seconds,
]  # fmt: skip
MODEL = ModelReference(generation=0, trainer="monai_unet", path="generations/0000/model", digest="d")
MAPS = MapReference(generation=0, volume_id="v", model_digest="d", quantities=("probability",), blocks=2, digest="m")
LOSS = [{"step": 1.0, "loss": 0.7, "learning_rate": 0.01}, {"step": 2.0, "loss": 0.5, "learning_rate": 0.01}]


def put(campaign: Campaign, file: RecordFile[Any], content: str, folder: str = "generations/0000") -> str:
    """Write something into a file, and return its full path."""
    campaign.storage.write_bytes(file.path(folder), content.encode())
    return campaign.storage.path(file.path(folder))


@pytest.mark.parametrize("file", OF_A_GENERATION, ids=lambda file: file.name)
@pytest.mark.parametrize("content", ['{"format": 1, "rec', '{"format": 1, "record": {"of": "another tool"}}', '"x"'])
def test_a_damaged_or_foreign_file_is_one_error_that_names_it(
    campaign: Campaign, file: RecordFile[Any], content: str
) -> None:
    path = put(campaign, file, content)
    generation = campaign.generation(0)
    for read in (generation.read, generation.require):
        with pytest.raises(StorageError) as caught:
            read(file)
        assert str(caught.value).startswith(f"{path}: the file "), "the path holds the campaign's"
        assert "\n" not in str(caught.value)
        assert "pydantic" not in str(caught.value)
    assert campaign.generation(0).has(file)


def test_scores_of_a_later_version_are_refused_by_the_name_of_their_file(campaign: Campaign) -> None:
    path = put(campaign, SCORES, '{"format": 99}')
    with pytest.raises(StorageError, match="a later version of rescueseg wrote this file") as caught:
        campaign.generation(0).read(SCORES)
    assert caught.value.where == path


@pytest.mark.parametrize("file", [TRIAGE, TRIAGE_SUMMARY, CONSISTENCY], ids=lambda file: type(file).__name__)
def test_so_is_one_at_the_root(campaign: Campaign, file: RecordFile[Any]) -> None:
    path = put(campaign, file, "{}", folder="")
    with pytest.raises(StorageError, match="does not hold what it should") as caught:
        campaign.records.read(file)
    assert caught.value.where == path


def test_so_is_one_of_a_training_outside_the_loop(campaign: Campaign) -> None:
    put(campaign, TRAINING, "{}", "trainings/unet")
    put(campaign, TRAINING_EVALUATION, "[]", "trainings/unet")
    with pytest.raises(
        StorageError, match=r"training\.json: the file is damaged: it does not hold what it should: at model"
    ):
        campaign.training("unet").read(RESULT)
    with pytest.raises(StorageError, match=r"evaluation\.json"):
        campaign.training("unet").read(TRAINING_EVALUATION)


def test_the_command_line_says_it_in_one_line(campaign: Campaign) -> None:
    put(campaign, TICKETS, '{"tickets": [], "stop": ""}')
    path = put(campaign, EVALUATION, '{"champion": "none"}')
    shown = CliRunner().invoke(app, ["status", campaign.url])
    assert shown.exit_code == 1
    assert "it does not hold what it should" in shown.stderr
    assert Path(path).name in shown.stderr
    assert "Traceback" not in shown.stderr


def test_what_is_not_there_is_none_or_refused_by_the_name_of_its_stage(campaign: Campaign) -> None:
    assert campaign.generation(0).read(TRAINING) is None
    assert not campaign.generation(0).has(TRAINING)
    with pytest.raises(CampaignError, match="the stage 'training' of generation 0 has not finished"):
        campaign.generation(0).require(TRAINING)


def test_what_is_written_is_what_older_versions_wrote(campaign: Campaign) -> None:
    effort = {"voxels_corrected": 5, "annotation_seconds": 2.5}
    patches = {"t": {"annotator": "anna", **effort}}
    campaign.generation(0).write(
        EFFORT, GenerationEffort.model_validate({**effort, "annotators": {"anna": effort}, "patches": patches})
    )
    campaign.generation(0).write(INFERENCE, (MAPS,))
    campaign.generation(0).write(TICKETS, TicketsResult(tickets=("t",), stop=""))
    campaign.generation(0).write(TRAINING, TrainingResult(model=MODEL, iterations=2, warnings=("few",)))
    campaign.generation(0).write(TRAINING.seconds, 1.5)
    campaign.generation(0).note_progress("training step", 1, 0)
    freeze_choice(campaign, 0)
    written = {name: campaign.storage.read_json(f"generations/0000/{name}") for name in names(campaign)}
    assert written == {
        "choice.json": {"trainer": current_choice(campaign).trainer, "strategy": current_choice(campaign).strategy},
        "effort.json": {**effort, "annotators": {"anna": effort}, "patches": patches, "left_out": []},
        "inference.json": [MAPS.to_json()],
        "progress.json": ["training step", 1, 0],
        "tickets.json": {"tickets": ["t"], "stop": ""},
        "training.json": {"model": MODEL.to_json(), "iterations": 2, "warnings": ["few"]},
        "training.seconds.json": 1.5,
    }
    assert campaign.generation(0).require(INFERENCE) == (MAPS,)
    assert campaign.generation(0).require(PROGRESS) == ("training step", 1, 0)
    assert campaign.generation(0).model() == MODEL


def names(campaign: Campaign) -> list[str]:
    """Return the files of generation 0."""
    return campaign.storage.list("generations/0000")


def test_losses_of_older_trainings_are_found_in_their_result(campaign: Campaign) -> None:
    assert read_losses(campaign.generation(0)) == ()
    older = {"model": MODEL.to_json(), "iterations": 2, "warnings": [], "losses": LOSS, "a later key": 1}
    put(campaign, TRAINING, json.dumps(older))
    assert campaign.generation(0).require(TRAINING) == TrainingResult(model=MODEL, iterations=2)
    assert read_losses(campaign.generation(0)) == tuple(LOSS)
    campaign.generation(0).write(LOSSES, tuple(LOSS[:1]))
    assert read_losses(campaign.generation(0)) == tuple(LOSS[:1])


def test_the_progress_view_reads_no_result(campaign: Campaign) -> None:
    for stage in STAGES[:2]:
        put(campaign, RecordFile(stage, int), "what is no JSON would be refused")
        campaign.generation(0).write(seconds_file(stage), 1.0)
    campaign.generation(0).note_progress("v: block", 3, 8)
    assert campaign.generation(0).finished_stages() == list(STAGES[:2])
    assert list(finished_stages(campaign.generations())) == [(0, stage) for stage in STAGES[:2]]
    assert running_stage(campaign.generations()) == ", generation 0: v: block 3 of 8"
    put(campaign, RecordFile("report", int), "")
    assert running_stage(campaign.generations()) == "", "nothing runs"
