"""The model of a generation."""

from __future__ import annotations

from functools import partial

from prefect import get_run_logger, task

from rescueseg.campaign.outside_trainings import OutsideTraining
from rescueseg.campaign.route import frozen_choice
from rescueseg.models.files import checkpoints
from rescueseg.records import ModelReference
from rescueseg.stages import train as stage
from rescueseg.stages import trial as trials
from rescueseg.stages.publish import run_tracked
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="trial-g{generation}", **STAGE)
def try_trainers(campaign_url: str, generation: int) -> str:
    """Return the trainer of a generation, after a trial where one is due; see `rescueseg.stages.trial`."""
    campaign, store = open_campaign(campaign_url)
    trial = trials.try_trainers(campaign, store, generation)
    if trial is not None:
        get_run_logger().info("%s: %s", trial.occasion, trial.reason)
    return frozen_choice(campaign, generation).trainer


@task(task_run_name="training-g{generation}", **STAGE)
def train(campaign_url: str, generation: int) -> ModelReference:
    """Return a reference to the model; see `rescueseg.stages.train.train`. MLflow shows the loss live."""
    campaign, _ = open_campaign(campaign_url)
    with (
        tracked(campaign, generation, "training") as tracker,
        tracker.live(
            partial(tracker.runs.stage_run, generation, "training"),
            partial(checkpoints, campaign.generation(generation).work_folder()),
        ) as live,
    ):
        result = stage.train(campaign, generation, live)
    for warning in result.warnings:
        get_run_logger().warning(warning)
    return result.model


@task(task_run_name="training-{training.name}", **STAGE)
def train_outside(campaign_url: str, training: OutsideTraining) -> ModelReference:
    """Return a reference to the model of a training outside the loop; see `rescueseg.stages.train_outside`."""
    campaign, _ = open_campaign(campaign_url)
    result = run_tracked(campaign, training)
    for warning in result.warnings:
        get_run_logger().warning(warning)
    return result.model
