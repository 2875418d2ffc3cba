"""How good a generation is on the holdout."""

from __future__ import annotations

from prefect import task

from rescueseg.stages import evaluate as stage
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="evaluation-g{generation}", **STAGE)
def evaluate(campaign_url: str, generation: int) -> int:
    """Return the champion's generation; see `rescueseg.stages.evaluate.evaluate`."""
    campaign, _ = open_campaign(campaign_url)
    with tracked(campaign, generation, "evaluation"):
        return stage.evaluate(campaign, generation).champion
