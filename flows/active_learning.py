"""The whole loop with a simulated annotator: annotate, run a generation, annotate what it asks for, and so on."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.generation import generation, scheduler_of
from tasks.annotation import annotate
from tasks.ingest.sampling import prepare
from tasks.options import open_campaign


@flow(name="active-learning", persist_result=True, result_serializer="json")
def active_learning(campaign_url: str, generations: int, annotator: dict[str, Any] | None = None) -> list[Any]:
    """Run a campaign whose volumes came with truth up to a number of generations; a rerun goes on.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    generations : int
        How many in all, those of earlier runs included.
    annotator : dict, optional
        Options of the simulated annotator; see `rescueseg.simulation.annotator.AnnotatorOptions`.

    Returns
    -------
    list of dict
        The rows of the table that this run added.
    """
    campaign, store = open_campaign(campaign_url)
    prepare(campaign_url)
    rows: list[Any] = []
    with scheduler_of(campaign) as reached:
        while True:
            last = store.last_generation()
            if last is not None and last.finished_at is not None and last.generation + 1 >= generations:
                return rows
            if last is None or last.finished_at is not None:
                handed_in = annotate(campaign_url, annotator or {})
                if last is not None and handed_in == 0 and store.accepted_since_last_generation() == 0:
                    get_run_logger().info("no patch is left to annotate")
                    return rows
            rows.append(generation(campaign_url, scheduler=reached.address, tls_folder=reached.tls_folder))
