"""The whole loop with a simulated annotator: annotate, run a generation, annotate what it asks for, and so on."""

from __future__ import annotations

from prefect import flow, get_run_logger
from pydantic import JsonValue

from flows.generation import generation, scheduler_of
from rescueseg.simulation.annotator import AnnotatorOptions
from tasks.annotation import annotate
from tasks.ingest.sampling import prepare
from tasks.options import open_campaign


@flow(name="active-learning", persist_result=True, result_serializer="json")
def active_learning(
    campaign_url: str, generations: int, annotator: AnnotatorOptions | None = None
) -> list[dict[str, JsonValue]]:
    """Run a campaign whose volumes came with truth up to a number of generations; a rerun goes on.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    generations : int
        How many in all, those of earlier runs included.
    annotator : AnnotatorOptions, optional
        How the simulated annotator errs.

    Returns
    -------
    list of dict
        The rows of the table that this run added.
    """
    campaign, store = open_campaign(campaign_url)
    prepare(campaign_url)
    rows: list[dict[str, JsonValue]] = []
    with scheduler_of(campaign.config.cluster, campaign.storage) as reached:
        while True:
            last = store.ledger.last_generation()
            if last is not None and last.finished_at is not None and last.generation + 1 >= generations:
                return rows
            if last is None or last.finished_at is not None:
                handed_in = annotate(campaign_url, annotator or AnnotatorOptions())
                if last is not None and handed_in == 0 and store.ledger.accepted_since_last_generation() == 0:
                    get_run_logger().info("no patch is left to annotate")
                    return rows
            rows.append(generation(campaign_url, scheduler=reached.address, tls_folder=reached.tls_folder))
