"""A delivery: finished masks, objects and tables of whole volumes. Rerun after a crash, it goes on."""

from __future__ import annotations

from prefect import flow, get_run_logger
from pydantic import JsonValue

from flows.generation import scheduler_of
from rescueseg.delivery.request import SegmentRequest
from rescueseg.errors import InferenceError, RescuesegError
from rescueseg.queue.due import campaign_lock
from rescueseg.storage import Storage, digest_json
from tasks.delivery import finish, prepare, segment_volume
from tasks.options import open_campaign


@flow(name="segment", persist_result=True, result_serializer="json")
def segment(campaign_url: str, request: SegmentRequest) -> dict[str, JsonValue]:
    """Deliver volumes of the campaign, or files that never were in it; what is done is not done again.

    A volume that fails does not keep the others back: they are delivered, and the failures are named in the end.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    request : SegmentRequest
        What is to be delivered, with which model, and where to.

    Returns
    -------
    dict
        The delivery as a whole.

    Raises
    ------
    InferenceError
        If a volume could not be delivered; all the others are.
    """
    campaign, store = open_campaign(campaign_url)
    name = f"segment-{digest_json(Storage(request.out).url)[:12]}"
    with campaign_lock(campaign.config, store, name=name):
        targets = prepare(campaign.url, request)
        request, failures = targets.request, dict(targets.failures)
        with scheduler_of(campaign.config.cluster, campaign.storage) as reached:
            for volume_id in targets.volumes:
                try:
                    segment_volume(campaign.url, request, volume_id, reached.address, reached.tls_folder)
                except RescuesegError as error:
                    get_run_logger().error("%s: %s", volume_id, error)
                    failures[volume_id] = str(error)
        try:
            delivery = finish(campaign.url, request)
        except RescuesegError as error:
            if not failures:
                raise
            failures["what closes the delivery"] = str(error)
    if failures:
        raise InferenceError(
            "not delivered: " + "; ".join(f"{name}: {reason}" for name, reason in failures.items()),
            where=request.out,
            todo="All others are; mend the causes and give the command again",
        )
    return delivery.to_json()
