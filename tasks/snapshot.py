"""The training set of a generation."""

from __future__ import annotations

from prefect import get_run_logger, task

from rescueseg.campaign.stage_results import EFFORT
from rescueseg.stages import snapshot as stage
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="snapshot-g{generation}", **STAGE)
def make_snapshot(campaign_url: str, generation: int) -> str:
    """Return the digest of the snapshot; see `rescueseg.stages.snapshot.make_snapshot`."""
    campaign, store = open_campaign(campaign_url)
    with tracked(campaign, generation, "snapshot"):
        snapshot = stage.make_snapshot(campaign, generation, store)
    for ticket in campaign.generation(generation).require(EFFORT).left_out:
        get_run_logger().warning(
            f"left out of training: {ticket} lies in a holdout box of another volume that shows the same"
        )
    return snapshot.digest
