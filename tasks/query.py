"""The patches to ask for next, and their tickets."""

from __future__ import annotations

from prefect import task

from rescueseg.records import QueriedPatch
from rescueseg.stages import tickets
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="query-g{generation}", **STAGE)
def query(campaign_url: str, generation: int) -> list[QueriedPatch]:
    """Return the chosen patches; see `rescueseg.stages.tickets.query`."""
    campaign, store = open_campaign(campaign_url)
    with tracked(campaign, generation, "query"):
        return list(tickets.query(campaign, generation, store).patches)


@task(task_run_name="tickets-g{generation}", **STAGE)
def enqueue(campaign_url: str, generation: int) -> list[str]:
    """Return the ids of the tickets made; see `rescueseg.stages.tickets.enqueue`."""
    campaign, store = open_campaign(campaign_url)
    return list(tickets.enqueue(campaign, generation, store).tickets)
