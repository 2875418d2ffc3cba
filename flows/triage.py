"""Triage of a campaign; its evidence and picture become artifacts in Prefect and MLflow."""

from __future__ import annotations

from prefect import flow
from pydantic import JsonValue

from tasks.triage import triage as task


@flow(name="triage", persist_result=True, result_serializer="json")
def triage(campaign_url: str, structure: str = "", mask: str = "auto", channel: int = 0) -> dict[str, JsonValue]:
    """Say which problem a campaign has.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    structure : str
        The user's word for the structure; empty for none.
    mask : str
        Where a rough mask comes from.
    channel : int
        Of the image.

    Returns
    -------
    dict
        What `triage.json` holds.
    """
    return task(campaign_url, structure, mask, channel).to_json()
