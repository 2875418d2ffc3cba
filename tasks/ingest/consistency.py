"""Check that the volumes fit together, and record their domains."""

from __future__ import annotations

from prefect import task

from rescueseg.queue.due import campaign_lock
from rescueseg.stages import tickets
from rescueseg.volumes import consistency
from tasks.options import STAGE, open_campaign


@task(task_run_name="consistency", **STAGE)
def check(campaign_url: str, apply: bool = False) -> dict[str, dict[str, str]]:
    """Return verdict, domain and reason by volume; see `rescueseg.volumes.consistency`."""
    campaign, store = open_campaign(campaign_url)
    if not apply:
        return consistency.summary(consistency.check(campaign))
    store.migrate()
    with campaign_lock(
        campaign.config, store
    ):  # no generation trains meanwhile on patches that are judged as untrained
        report = consistency.check(campaign)
        consistency.apply(campaign.volumes, report)
        tickets.withdraw_refused(campaign.volumes, store)
    return consistency.summary(report)
