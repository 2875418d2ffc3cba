"""A training outside the loop."""

from __future__ import annotations

from prefect import flow
from pydantic import JsonValue

from rescueseg.queue.due import campaign_lock
from rescueseg.stages.train_outside import plan
from tasks.options import open_campaign
from tasks.training import train_outside


@flow(name="train", persist_result=True, result_serializer="json")
def train(campaign_url: str, trainer: str = "", generation: int | None = None) -> dict[str, JsonValue]:
    """Train on accepted annotations beside the generations, or go on with it.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    trainer : str
        Name of the trainer; the campaign's own when empty.
    generation : int, optional
        Generation whose snapshot is trained on; all that is accepted now when omitted.

    Returns
    -------
    dict
        Reference to the model.
    """
    campaign, store = open_campaign(campaign_url)
    planned = plan(campaign, store, trainer, generation)
    with campaign_lock(campaign.config, store, name=planned.name):
        return train_outside(campaign.url, planned).to_json()
