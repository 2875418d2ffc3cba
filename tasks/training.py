"""The model of a generation."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import get_run_logger, task

from rescueseg import generation as stages
from rescueseg.tracking import Tracker
from rescueseg.trainings import OutsideTraining, run
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="training-g{generation}", **STAGE)
def train(campaign_url: str, generation: int) -> dict[str, Any]:
    """Return a reference to the model; see `rescueseg.generation.train`. The loss is seen live in MLflow."""
    campaign, _ = open_campaign(campaign_url)
    with tracked(campaign, generation, "training") as tracker:
        result = stages.train(campaign, generation, partial(tracker.live_metric, generation))
    for warning in result["warnings"]:
        get_run_logger().warning(warning)
    reference: dict[str, Any] = result["model"]
    return reference


@task(task_run_name="training-{training[name]}", **STAGE)
def train_outside(campaign_url: str, training: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to the model of a training outside the loop; see `rescueseg.trainings`."""
    campaign, _ = open_campaign(campaign_url)
    planned = OutsideTraining.model_validate(training)
    result = run(campaign, planned, partial(Tracker(campaign).live_training, planned.name))
    for warning in result["warnings"]:
        get_run_logger().warning(warning)
    reference: dict[str, Any] = result["model"]
    return reference
