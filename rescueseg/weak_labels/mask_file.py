"""The files of a ticket's first mask: the mask, or the numbers of its objects, and the confidence."""

from __future__ import annotations

import numpy as np

from rescueseg import volumes
from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import WEAK_LABEL
from rescueseg.queue.records import TicketRecord
from rescueseg.records import VolumeRecord
from rescueseg.storage import Storage
from rescueseg.weak_labels.base import Labels, ObjectLabeller, WeakLabeller, label_box, label_box_objects


def mask_path(folder: str, ticket: TicketRecord) -> str:
    """Return where a ticket's first mask lies below the campaign, by the name of its method's folder."""
    return WEAK_LABEL.path(method=folder, file=f"{ticket.ticket_id}.npz")


def write_mask(
    campaign: Campaign, labeller: WeakLabeller, volume: VolumeRecord, ticket: TicketRecord, folder: str
) -> None:
    """Make a ticket's first mask, and write it after its confidence.

    Where the campaign numbers objects and the labeller does, the numbers are written (uint32), else the classes (uint8).
    """
    image = volumes.open_image(campaign.volumes, volume.volume_id)
    given = (image, ticket.box, volume.normalisation, volume.spacing_um_zyx)
    if campaign.config.annotation.labels == "instance" and isinstance(labeller, ObjectLabeller):
        weak, numbers = label_box_objects(labeller, *given)
        mask: np.ndarray = numbers
    else:
        weak = label_box(labeller, *given)
        mask = weak.labels
    confidence = WEAK_LABEL.path(method=folder, file=f"{ticket.ticket_id}.confidence.npz")
    campaign.storage.write_array(confidence, weak.confidence.astype(np.float16))
    campaign.storage.write_array(mask_path(folder, ticket), mask)


def read_mask(storage: Storage, path: str) -> Labels:
    """Return the classes of a first mask, uint8 zyx; objects are of class 1."""
    array = storage.read_array(path)
    return (array > 0).astype(np.uint8) if array.dtype == np.uint32 else array
