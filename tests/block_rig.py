"""A small volume of noise for the block engine, and its maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.inference.maps import QUANTITIES, VolumeMaps
from rescueseg.records import ModelReference, Normalisation, VolumeRecord
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout

SHAPE = (20, 40, 200)
MODEL = ModelReference(generation=0, trainer="trivial", path="generations/0000/model", digest="a" * 64)


def make_campaign(folder: Path, shape: tuple[int, int, int] = SHAPE, **inference: Any) -> Campaign:
    settings: dict[str, Any] = {"mc_samples": 2, "map_dtype": "float32", "block_voxels": 10**9, **inference}
    config = check_config(
        {"name": "test", "classes": ["a", "b"], "cluster": {"workers": 1}, "inference": settings, "seed": 5}
    )
    campaign = Campaign.create(str(folder), config)
    image = np.random.default_rng(0).integers(0, 100, (1, *shape), dtype=np.uint8)
    image[0, -1, -1, -1] = 255
    spacing = (0.2, 0.1, 0.1)
    ome_zarr.create_image(
        campaign.volumes.image_url("v"), ImageLayout(image.shape, np.uint8, spacing, chunks=(16, 16, 16))
    )[:] = image
    campaign.volumes.save(
        VolumeRecord(
            volume_id="v",
            domain="d",
            shape_zyx=shape,
            spacing_um_zyx=spacing,
            channels=1,
            dtype="uint8",
            source="v.tif",
            digest="0" * 64,
            normalisation=Normalisation(low=0, high=255, mean=50, std=29),
        )
    )
    return campaign


def read_maps(campaign: Campaign) -> dict[str, np.ndarray]:
    return {quantity: np.asarray(VolumeMaps(campaign.generation(0), "v").open(quantity)[:]) for quantity in QUANTITIES}
