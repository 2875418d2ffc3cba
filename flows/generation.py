"""One generation: snapshot, training, inference, evaluation, query, tickets, report. Rerun after a crash, it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from rescueseg.campaign import Campaign
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.ledger import Lock
from rescueseg.services import dask_cluster
from rescueseg.services.prefect_api import wake
from rescueseg.stages.due import begin, count_due
from tasks.evaluation import evaluate
from tasks.inference import infer
from tasks.options import open_campaign
from tasks.query import enqueue, query
from tasks.report import report
from tasks.snapshot import make_snapshot
from tasks.training import train


@flow(name="generation", persist_result=True, result_serializer="json")
def generation(campaign_url: str, only_if_due: bool = False, scheduler: str = "") -> Any:
    """Run one generation, or go on with the unfinished one.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    only_if_due : bool
        Do nothing unless a recount under the campaign's lock finds enough newly accepted patches: for runs that a
        schedule or an event woke.
    scheduler : str
        Address of a Dask scheduler to use; one is started as the campaign's settings say when empty.

    Returns
    -------
    dict
        The generation's row of the table, or for a generation that is not due the reason.
    """
    campaign, store = open_campaign(campaign_url)
    with campaign_lock(campaign, store, refuse=not only_if_due) as lock:
        if lock is None:
            return _nothing("another run is at work on this campaign")
        due = count_due(campaign, store)
        if only_if_due and not due.due:
            return _nothing(due.reason)
        number = begin(campaign, store)
        row = _run_stages(campaign, number, scheduler, lock)
        store.finish_generation(number)
    if only_if_due:
        wake(campaign, store)
    return row


def _nothing(reason: str) -> State[Any]:
    get_run_logger().info("nothing to do: %s", reason)
    return Completed(name="NotDue", message=reason, data={"generation": None, "reason": reason})


def _run_stages(campaign: Campaign, number: int, scheduler: str, lock: Lock) -> dict[str, Any]:
    url = campaign.url
    make_snapshot(url, number)
    train(url, number)
    lock.check()
    if campaign.stage_result(number, "inference") is None:
        with scheduler_address(campaign, scheduler) as address:
            infer(url, number, address)
    lock.check()
    evaluate(url, number)
    query(url, number)
    lock.check()
    enqueue(url, number)
    row: dict[str, Any] = report(url, number)
    return row


@contextmanager
def scheduler_address(campaign: Campaign, address: str = "") -> Iterator[str]:
    """Yield the address of a Dask scheduler: the one given, or one that lives as long as the block."""
    if address:
        yield address
        return
    with dask_cluster.open_cluster(campaign.config.cluster) as client:
        yield dask_cluster.scheduler_address(client)
