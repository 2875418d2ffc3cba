"""Freeze the holdout and queue the first tickets."""

from __future__ import annotations

from prefect import task

from rescueseg.stages import tickets
from tasks.options import STAGE, open_campaign


@task(task_run_name="sampling", **STAGE)
def prepare(campaign_url: str) -> int:
    """Return the number of new tickets; see `rescueseg.stages.tickets.prepare`."""
    campaign, store = open_campaign(campaign_url)
    return tickets.prepare(campaign, store)
