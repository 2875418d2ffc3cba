"""The simulated annotator."""

from __future__ import annotations

from prefect import task

from rescueseg.simulation.annotator import AnnotatorOptions, SimulatedAnnotator
from tasks.options import STAGE, open_campaign


@task(task_run_name="simulated-annotator", **STAGE)
def annotate(campaign_url: str, options: AnnotatorOptions) -> int:
    """Return the number of tickets handed in; see `rescueseg.simulation.annotator`."""
    campaign, store = open_campaign(campaign_url)
    return SimulatedAnnotator(campaign, store, options=options).drain()
