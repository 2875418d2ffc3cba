"""The delivery of volumes: one task prepares it, one delivers each volume, one closes it."""

from __future__ import annotations

from prefect import get_run_logger, task

from rescueseg.config import ClusterConfig
from rescueseg.delivery.records import DeliveredVolume, Delivery
from rescueseg.delivery.request import SegmentRequest
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.stages import segment as stage
from tasks.options import STAGE, open_campaign


@task(task_run_name="prepare", **STAGE)
def prepare(campaign_url: str, request: SegmentRequest) -> stage.Targets:
    """Return what is to be delivered, new files imported; see `rescueseg.stages.segment.prepare`."""
    campaign, _ = open_campaign(campaign_url)
    log = get_run_logger()
    targets = stage.prepare(campaign, request, lambda what, done, total: log.info("%s: %d of %d", what, done, total))
    for path, reason in targets.failures.items():
        log.error("%s: %s", path, reason)
    return targets


@task(task_run_name="segment-{volume_id}", **STAGE)
def segment_volume(
    campaign_url: str, request: SegmentRequest, volume_id: str, scheduler: str, tls_folder: str
) -> DeliveredVolume:
    """Deliver one volume; see `rescueseg.stages.segment.deliver`. The scheduler's credentials stay in files."""
    campaign, store = open_campaign(campaign_url)
    log = get_run_logger()

    def progress(what: str, done: int, total: int) -> None:
        log.info("%s: block %d of %d", what, done, total)

    with open_cluster(ClusterConfig(kind="address", address=scheduler, tls_folder=tls_folder)) as client:
        return stage.deliver(campaign, store, request, volume_id, client, progress)


@task(task_run_name="finish", **STAGE)
def finish(campaign_url: str, request: SegmentRequest) -> Delivery:
    """Join the tables, score the masks, queue places for review, draw the page; see `rescueseg.stages.segment.finish`."""
    campaign, store = open_campaign(campaign_url)
    log = get_run_logger()
    return stage.finish(campaign, store, request, lambda what, done, total: log.info("%s: %d of %d", what, done, total))
