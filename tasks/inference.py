"""The maps of a generation: blocks go to the Dask scheduler that the flow opened."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task

from rescueseg.config import ClusterConfig
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.stages import infer as stage
from tasks.options import STAGE, open_campaign, tracked


@task(task_run_name="inference-g{generation}", **STAGE)
def infer(campaign_url: str, generation: int, scheduler: str, volumes: list[str] | None = None) -> list[Any]:
    """Return references to the maps; see `rescueseg.stages.infer.infer`."""
    campaign, _ = open_campaign(campaign_url)
    log = get_run_logger()

    def progress(volume: str, done: int, total: int) -> None:
        log.info("%s: block %d of %d", volume, done, total)

    with open_cluster(ClusterConfig(kind="address", address=scheduler)) as client:
        if volumes:
            return [stage.infer_volume(campaign, generation, volume, client, progress) for volume in volumes]
        with tracked(campaign, generation, "inference"):
            return list(stage.infer(campaign, generation, client, progress))
