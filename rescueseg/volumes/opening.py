"""Opening the volumes of a campaign: image and ground truth at full resolution."""

from __future__ import annotations

from typing import Any

import zarr

from rescueseg.campaign import VolumeFolder
from rescueseg.errors import VolumeError
from rescueseg.volumes import ome_zarr


def open_image(volumes: VolumeFolder, volume_id: str) -> zarr.Array[Any]:
    """Open a volume at full resolution, read-only.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's volumes.
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
    volumes.record(volume_id)
    return ome_zarr.open_level(volumes.image_url(volume_id))


def open_truth(volumes: VolumeFolder, volume_id: str, instances: bool = False) -> zarr.Array[Any]:
    """Open a volume's ground truth at full resolution, read-only.

    Parameters
    ----------
    volumes : VolumeFolder
        The campaign's volumes.
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
    kind = volumes.record(volume_id).truth
    if kind is None or (instances and kind != "instance"):
        raise VolumeError(
            f"the volume has no {'instance ' if instances else ''}ground truth",
            where=volume_id,
            todo="Import it with --truth",
        )
    name = "truth_instances" if instances else "truth"
    return ome_zarr.open_level(f"{volumes.image_url(volume_id)}/labels/{name}")
