"""The training set of a generation."""

from __future__ import annotations

from prefect import task

from rescueseg import generation as stages
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="snapshot-g{generation}", **STAGE)
def make_snapshot(campaign_url: str, generation: int) -> str:
    """Return the digest of the snapshot; see `rescueseg.generation.make_snapshot`."""
    campaign, store = open_campaign(campaign_url)
    with tracked(campaign, generation, "snapshot"):
        return str(stages.make_snapshot(campaign, generation, store)["digest"])
