"""First masks for the queued tickets."""

from __future__ import annotations

from prefect import task

from rescueseg.weak_labels.choice import Result
from rescueseg.weak_labels.prefill import weak_label
from tasks.options import STAGE, open_campaign


@task(task_run_name="weak-labels", **STAGE)
def label(campaign_url: str, method: str = "auto") -> Result:
    """Return method, reason and numbers of tickets; see `rescueseg.weak_labels.prefill.weak_label`."""
    campaign, store = open_campaign(campaign_url)
    return weak_label(campaign, store, method)
