"""What the next generation would train on: how far an annotation's way is checked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.geometry import Box
from rescueseg.models.training_items import load_item
from rescueseg.queue.store import open_queue
from rescueseg.records import Holdout, HoldoutBox


def next_labels(campaign: Campaign, ticket_id: str, volume_id: str, box: Box) -> npt.NDArray[np.uint8]:
    """Return the labels of a ticket as the next training reads them, which must be of this box and nothing beside it.

    A campaign without a holdout gets one of a corner voxel: there is no snapshot without.
    """
    if campaign.holdout() is None:
        corner = HoldoutBox(volume_id=volume_id, box=Box((0, 0, 0), (1, 1, 1)), part="test", stratum="dense")
        campaign.freeze_holdout(Holdout(boxes=(corner,), guard_zyx=(1, 2, 2)))
    snapshot = make_snapshot(campaign, 0, open_queue(campaign).views.accepted())
    (item,) = (item for item in snapshot.items if item.ticket_id == ticket_id)
    assert (item.volume_id, item.box) == (volume_id, box)
    found = load_item(campaign.volumes, item, campaign.volumes.record(volume_id).spacing_um_zyx).labels
    inside = box.relative_to(item.read_box).slices
    labels = found[inside].copy()
    found[inside] = 255
    assert (found == 255).all(), "nobody annotated what lies around the patch"
    return labels
