"""First masks for the queued tickets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import task

from rescueseg.weak_labels.prefill import weak_label
from tasks.options import STAGE, open_campaign


@task(task_run_name="weak-labels", **STAGE)
def label(campaign_url: str, method: str = "auto") -> dict[str, Any]:
    """Return method, reason and numbers of tickets; see `rescueseg.weak_labels.prefill.weak_label`."""
    campaign, store = open_campaign(campaign_url)
    return asdict(weak_label(campaign, store, method))
