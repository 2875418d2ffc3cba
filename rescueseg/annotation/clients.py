"""Opens a campaign for an annotator: in a folder, in object storage, or at an annotation server."""

from __future__ import annotations

import os

from rescueseg.annotation.client import AnnotationClient
from rescueseg.annotation.local_client import LocalClient
from rescueseg.annotation.remote_client import RemoteClient
from rescueseg.campaign import Campaign
from rescueseg.queue.store import open_queue
from rescueseg.volumes.comparison import ensure_compared

TOKEN_VARIABLE = "RESCUESEG_TOKEN"


def open_client(address: str, annotator: str, token: str = "") -> AnnotationClient:
    """Return an annotator's client of a campaign.

    Parameters
    ----------
    address : str
        Folder or URL of the campaign, or the ``http(s)://`` address of its annotation server.
    annotator : str
        Name of the annotator; with a token, the server knows it.
    token : str
        Of the annotator, for a server; the environment's ``RESCUESEG_TOKEN`` when empty.

    Raises
    ------
    CampaignError
        If there is no campaign.
    ConfigError
        If the address cannot be used.
    """
    if address.startswith(("http://", "https://")):
        token = token or os.environ.get(TOKEN_VARIABLE, "")
        return RemoteClient(address, token, annotator="" if token else annotator)

    campaign = Campaign.open(address)
    ensure_compared(campaign.volumes)
    return LocalClient(campaign, open_queue(campaign), annotator)
