"""The model of a generation."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import get_run_logger, task

from rescueseg import generation as stages
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
