"""Inference on demand: one volume with the champion."""

from __future__ import annotations

from prefect import flow
from pydantic import JsonValue

from flows.generation import scheduler_of
from rescueseg.errors import InferenceError
from rescueseg.evaluation.champion import champion
from rescueseg.queue.due import campaign_lock
from tasks.inference import infer
from tasks.options import open_campaign


@flow(name="infer-volume", flow_run_name="infer-{volume_id}", persist_result=True, result_serializer="json")
def infer_volume(campaign_url: str, volume_id: str, generation: int | None = None) -> dict[str, JsonValue]:
    """Predict one volume of the campaign; blocks that are done already are not done again.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    volume_id : str
        The volume.
    generation : int, optional
        Generation whose model predicts; the champion when omitted.

    Returns
    -------
    dict
        Reference to the maps.

    Raises
    ------
    InferenceError
        If no generation was evaluated yet.
    """
    campaign, store = open_campaign(campaign_url)
    campaign.volumes.record(volume_id)
    number = champion(campaign.generations()) if generation is None else generation
    if number is None:
        raise InferenceError("there is no champion yet", where=campaign.url, todo="Run a generation first")
    with (
        campaign_lock(campaign.config, store, name=f"infer-{volume_id}"),
        scheduler_of(campaign.config.cluster, campaign.storage) as reached,
    ):
        return infer(campaign.url, number, reached.address, reached.tls_folder, [volume_id])[0].to_json()
