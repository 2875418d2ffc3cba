"""The training set of a generation."""

from __future__ import annotations

from prefect import task

from rescueseg.stages import snapshot as stage
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="snapshot-g{generation}", **STAGE)
def make_snapshot(campaign_url: str, generation: int) -> str:
    """Return the digest of the snapshot; see `rescueseg.stages.snapshot.make_snapshot`."""
    campaign, store = open_campaign(campaign_url)
    with tracked(campaign, generation, "snapshot"):
        return stage.make_snapshot(campaign, generation, store).digest
