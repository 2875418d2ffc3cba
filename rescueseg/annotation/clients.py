"""Sits somebody down at a campaign, wherever it is."""

from __future__ import annotations

import os

from rescueseg.annotation.client import Desk
from rescueseg.annotation.local_client import LocalDesk
from rescueseg.annotation.remote_client import RemoteDesk
from rescueseg.campaign import Campaign
from rescueseg.queue.store import open_queue

TOKEN_VARIABLE = "RESCUESEG_TOKEN"


def desk_for(place: str, annotator: str, token: str = "") -> Desk:
    """Return somebody's desk at a campaign.

    Parameters
    ----------
    place : str
        Folder or URL of the campaign, or the ``http(s)://`` address of its annotation server.
    annotator : str
        Who sits there, where no token says it.
    token : str
        Says a server who one is; the environment's ``RESCUESEG_TOKEN`` when empty.

    Raises
    ------
    CampaignError
        If there is no campaign.
    ConfigError
        If the address cannot be used.
    """
    if place.startswith(("http://", "https://")):
        token = token or os.environ.get(TOKEN_VARIABLE, "")
        return RemoteDesk(place, token, annotator="" if token else annotator)

    campaign = Campaign.open(place)
    return LocalDesk(campaign, open_queue(campaign), annotator)
