"""Sits somebody down at a campaign, wherever it is."""

from __future__ import annotations

import os

from rescueseg.annotation.desk import Desk
from rescueseg.annotation.store import open_queue
from rescueseg.campaign import Campaign

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
        from rescueseg.annotation.remote_desk import RemoteDesk

        token = token or os.environ.get(TOKEN_VARIABLE, "")
        return RemoteDesk(place, token, annotator="" if token else annotator)
    from rescueseg.annotation.local_desk import LocalDesk

    campaign = Campaign.open(place)
    return LocalDesk(campaign, open_queue(campaign), annotator)
