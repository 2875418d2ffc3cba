"""Parts of a volume that a method is fitted to, or that intensities are measured on: the same ones in every run."""

from __future__ import annotations

from rescueseg import volumes
from rescueseg.campaign import Campaign
from rescueseg.records import VolumeRecord
from rescueseg.volumes.image_layout import choose_chunks
from rescueseg.volumes.normalise import normalise, read_box
from rescueseg.volumes.subsample import sample_boxes
from rescueseg.weak_labels.base import Float32

FIT_VOXELS = 1_000_000
"""Voxels of a volume that a method is fitted to."""


def sample_volume(campaign: Campaign, volume: VolumeRecord) -> list[Float32]:
    """Return parts of a volume, normalised czyx."""
    array = volumes.open_image(campaign.volumes, volume.volume_id)
    chunks, seed = choose_chunks(volume.shape_zyx)[0], campaign.config.seed
    boxes = sample_boxes(volume.shape_zyx, chunks, FIT_VOXELS, seed, volume.volume_id)
    return [normalise(read_box(array, box), volume.normalisation) for box in boxes]
