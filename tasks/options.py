"""What all stage tasks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypedDict

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from rescueseg.campaign import Campaign
from rescueseg.errors import StorageError
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.tracking.tracker import Tracker
from rescueseg.volumes.comparison import ensure_compared


def is_storage_error(task: Task[..., object], run: TaskRun, state: State[object]) -> bool:  # noqa: ARG001
    """Tell whether a failed run may succeed when tried again: only storage errors pass."""
    return isinstance(state.result(raise_on_failure=False), StorageError)


class StageOptions(TypedDict):
    """Those options of a Prefect task that every stage sets."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Callable[[Task[..., object], TaskRun, State[object]], bool]
    persist_result: bool
    result_serializer: str
    cache_policy: CachePolicy


STAGE: StageOptions = {
    "retries": 2,
    "retry_delay_seconds": [2, 20],
    "retry_condition_fn": is_storage_error,
    "persist_result": True,
    "result_serializer": "json",
    "cache_policy": NO_CACHE,
}
"""Options of every stage task. A stage is idempotent by its commit file in the campaign, so nothing is cached."""


def open_campaign(campaign_url: str) -> tuple[Campaign, QueueStore]:
    """Open a campaign, whose volumes are then compared, and its queue."""
    campaign = Campaign.open(campaign_url)
    ensure_compared(campaign.volumes)
    return campaign, open_queue(campaign)


@contextmanager
def tracked(campaign: Campaign, generation: int, stage: str) -> Iterator[Tracker]:
    """Keep the stage's run in MLflow open during the block, unless the stage was done by an earlier run."""
    tracker = Tracker(campaign)
    if stage in campaign.generation(generation).finished_stages():
        yield tracker
        return
    with tracker.stage(generation, stage):
        yield tracker
