"""The maps of a generation: blocks go to the Dask scheduler that the flow opened."""

from __future__ import annotations

from prefect import get_run_logger, task

from rescueseg.config import ClusterConfig
from rescueseg.records import MapReference
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.stages import infer as stage
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="inference-g{generation}", **STAGE)
def infer(
    campaign_url: str, generation: int, scheduler: str, tls_folder: str, volumes: list[str] | None = None
) -> list[MapReference]:
    """Return references to the maps; see `rescueseg.stages.infer.infer`.

    The credentials of the scheduler stay in files: what a task is given is kept by Prefect.
    """
    campaign, _ = open_campaign(campaign_url)
    log = get_run_logger()

    def progress(volume: str, done: int, total: int) -> None:
        log.info("%s: block %d of %d", volume, done, total)

    with open_cluster(ClusterConfig(kind="address", address=scheduler, tls_folder=tls_folder)) as client:
        if volumes:
            return [stage.infer_volume(campaign, generation, volume, client, progress) for volume in volumes]
        with tracked(campaign, generation, "inference"):
            return list(stage.infer(campaign, generation, client, progress))
