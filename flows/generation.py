"""One generation: snapshot, trial of trainers, training, inference, evaluation, query, tickets, report. Rerun after a crash, it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from prefect import flow, get_run_logger
from prefect.states import Completed
from pydantic import JsonValue

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import SERVICES
from rescueseg.campaign.private_folder import local_folder
from rescueseg.campaign.stage_results import INFERENCE
from rescueseg.config import ClusterConfig
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.ledger import Lock
from rescueseg.reports.generation_table import Row
from rescueseg.services.dask_address import check_address
from rescueseg.services.dask_cluster import open_cluster, reference
from rescueseg.services.prefect_api import wake
from rescueseg.stages.due import begin, count_due
from rescueseg.storage import Storage
from tasks.evaluation import evaluate
from tasks.inference import infer
from tasks.options import open_campaign
from tasks.query import enqueue, query
from tasks.report import report
from tasks.snapshot import make_snapshot
from tasks.training import train, try_trainers


@flow(name="generation", persist_result=True, result_serializer="json")
def generation(
    campaign_url: str, only_if_due: bool = False, scheduler: str = "", tls_folder: str = ""
) -> dict[str, JsonValue]:
    """Run one generation, or go on with the unfinished one.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    only_if_due : bool
        Do nothing unless a recount under the campaign's lock finds enough newly accepted patches: for runs that a
        schedule or an event woke.
    scheduler : str
        Address of a Dask scheduler to use, ``tls://`` unless it runs on this machine; one is started as the campaign's
        settings say when empty.
    tls_folder : str
        Folder of that scheduler's credentials; the campaign's ``cluster.tls_folder`` when empty.

    Returns
    -------
    dict
        The generation's row of the table, or for a generation that is not due the reason.
    """
    campaign, store = open_campaign(campaign_url)
    cluster = _cluster(campaign.config.cluster, scheduler, tls_folder)
    with campaign_lock(campaign.config, store, refuse=not only_if_due) as lock:
        if lock is None:
            return _nothing("another run is at work on this campaign")
        due = count_due(campaign, store)
        if only_if_due and not due.due:
            return _nothing(due.reason)
        number = begin(campaign, store)
        row = _run_stages(campaign, number, cluster, lock)
        store.ledger.finish_generation(number)
    if only_if_due:
        wake(campaign, store)
    return row.to_json()


def _nothing(reason: str) -> dict[str, JsonValue]:
    """Return the state of a run that did nothing: Prefect hands the data of it to whoever called the flow."""
    get_run_logger().info("nothing to do: %s", reason)
    data: dict[str, JsonValue] = {"generation": None, "reason": reason}
    return cast("dict[str, JsonValue]", Completed(name="NotDue", message=reason, data=data))


def _run_stages(campaign: Campaign, number: int, cluster: ClusterConfig, lock: Lock) -> Row:
    url = campaign.url
    make_snapshot(url, number)
    try_trainers(url, number)
    lock.check()
    train(url, number)
    lock.check()
    if not campaign.generation(number).has(INFERENCE):
        with scheduler_of(cluster, campaign.storage) as reached:
            infer(url, number, reached.address, reached.tls_folder)
    lock.check()
    evaluate(url, number)
    query(url, number)
    lock.check()
    enqueue(url, number)
    return report(url, number)


def _cluster(own: ClusterConfig, scheduler: str, tls_folder: str) -> ClusterConfig:
    """Return where the blocks are computed: at the scheduler that is named, which is checked, else as the campaign says."""
    if not scheduler:
        return own
    named = ClusterConfig(kind="address", address=scheduler, tls_folder=tls_folder or own.tls_folder)
    check_address(named)
    return named


@contextmanager
def scheduler_of(cluster: ClusterConfig, storage: Storage) -> Iterator[ClusterConfig]:
    """Yield how tasks reach a Dask scheduler: the one that has an address, or one that lives as long as the block."""
    if cluster.kind == "address":
        yield cluster
        return
    with open_cluster(cluster, local_folder(storage, SERVICES.path())) as client:
        yield reference(client)
