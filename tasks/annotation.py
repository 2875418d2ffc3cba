"""The simulated annotator."""

from __future__ import annotations

from typing import Any

from prefect import task

from rescueseg.simulation.annotator import AnnotatorOptions, SimulatedAnnotator
from tasks.options import STAGE, open_campaign


@task(task_run_name="simulated-annotator", **STAGE)
def annotate(campaign_url: str, options: dict[str, Any]) -> int:
    """Return the number of tickets handed in; see `rescueseg.simulation.annotator`."""
    campaign, store = open_campaign(campaign_url)
    return SimulatedAnnotator(campaign, store, options=AnnotatorOptions(**options)).drain()
