"""Opening the volumes of a campaign: image and ground truth at full resolution."""

from __future__ import annotations

from typing import Any

import zarr

from rescueseg.campaign.campaign import Campaign
from rescueseg.errors import VolumeError
from rescueseg.volumes import ome_zarr


def open_image(campaign: Campaign, volume_id: str) -> zarr.Array[Any]:
    """Open a volume at full resolution, read-only.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    volume_id : str
        A volume of it.

    Returns
    -------
    zarr.Array
        Always ``czyx``.

    Raises
    ------
    CampaignError
        If the campaign has no such volume.
    """
    campaign.volume(volume_id)
    return ome_zarr.open_level(campaign.image_url(volume_id))


def open_truth(campaign: Campaign, volume_id: str, instances: bool = False) -> zarr.Array[Any]:
    """Open a volume's ground truth at full resolution, read-only.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    volume_id : str
        A volume of it.
    instances : bool
        The numbered objects (uint32) instead of the classes (uint8).

    Returns
    -------
    zarr.Array
        ``zyx``.

    Raises
    ------
    VolumeError
        If there is no such truth.
    """
    kind = campaign.volume(volume_id).truth
    if kind is None or (instances and kind != "instance"):
        raise VolumeError(
            f"the volume has no {'instance ' if instances else ''}ground truth",
            where=volume_id,
            todo="Import it with --truth",
        )
    name = "truth_instances" if instances else "truth"
    return ome_zarr.open_level(f"{campaign.image_url(volume_id)}/labels/{name}")
