"""The most uncertain places of whole volumes: where nobody knows the truth, this is where the model doubts itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import numpy as np

from rescueseg.acquisition import Floats, box_bounds, box_sums, touching
from rescueseg.campaign import Campaign
from rescueseg.geometry import Box, Patch
from rescueseg.patches import candidates, patch_shape
from rescueseg.records import BoxField, Holdout, Record, VolumeRecord
from rescueseg.scoring import map_pieces

Progress = Callable[[str, int, int], None]


class UncertainBox(Record):
    """A box without truth in which the model is uncertain."""

    volume_id: str
    box: BoxField
    entropy: float
    """Mean predictive entropy in nats."""
    typical: float
    """Median of the same over all boxes looked at."""


def most_uncertain(
    campaign: Campaign, generation: int, count: int, progress: Progress | None = None
) -> list[UncertainBox]:
    """Return the boxes with the highest mean predictive entropy among those that were never annotated.

    The entropy maps of all volumes are read once, block by block: memory depends on the block, not on the volume. Looked
    at are boxes of the patch's shape on a grid of half a patch, clear of the holdout and of every patch that was annotated.

    Parameters
    ----------
    campaign : Campaign
        With complete maps; a volume without is left out.
    generation : int
        Whose maps.
    count : int
        How many boxes at most; no two overlap.
    progress : callable, optional
        Told what is counted, how many are done and how many there are.
    """
    from rescueseg.inference.maps import map_reference

    holdout = campaign.holdout() or Holdout(boxes=(), guard_zyx=(0, 0, 0))
    annotated = _annotated(campaign)
    patches: list[Patch] = []
    means: list[float] = []
    for volume in campaign.volumes():
        if map_reference(campaign, generation, volume.volume_id) is None:
            continue
        known = [*holdout.of(volume.volume_id), *(p.box for p in annotated if p.volume_id == volume.volume_id)]
        boxes = list(candidates(volume, patch_shape(campaign.config, volume, holdout), known))
        if boxes:
            patches += [Patch(volume.volume_id, box) for box in boxes]
            means += _mean_entropy(campaign, generation, volume, boxes, progress).tolist()
    order = sorted(range(len(patches)), key=lambda i: (-means[i], patches[i]))
    typical = float(np.median(means)) if means else 0.0
    return [
        UncertainBox(volume_id=patches[i].volume_id, box=patches[i].box, entropy=means[i], typical=typical)
        for i in _apart(order, patches, count)
    ]


def _annotated(campaign: Campaign) -> AbstractSet[Patch]:
    """Return the annotated patches of all generations."""
    snapshots = (campaign.snapshot(g) for g in campaign.generations())
    return {Patch(item.volume_id, item.box) for s in snapshots if s is not None for item in s.items}


def _mean_entropy(
    campaign: Campaign, generation: int, volume: VolumeRecord, boxes: list[Box], progress: Progress | None
) -> Floats:
    from rescueseg.inference.maps import open_map

    entropy = open_map(campaign, generation, volume.volume_id, "predictive_entropy")
    starts, stops = box_bounds(boxes)
    sums = np.zeros(len(boxes))
    pieces = map_pieces(campaign, generation, volume.volume_id)
    for done, piece in enumerate(pieces, start=1):
        index = touching(piece, starts, stops)
        if len(index):
            block = np.asarray(entropy[piece.slices], np.float32)
            sums[index] += box_sums(block, piece.offset_zyx, starts[index], stops[index])
        if progress is not None:
            progress(f"{volume.volume_id}: uncertainty map", done, len(pieces))
    means: Floats = sums / np.prod(stops - starts, axis=1)
    return means


def _apart(order: Iterable[int], patches: list[Patch], count: int) -> list[int]:
    """Take the first indices whose boxes do not overlap."""
    taken: list[int] = []
    for i in order:
        if len(taken) == count:
            break
        mine = patches[i]
        if not any(patches[j].volume_id == mine.volume_id and patches[j].box.intersects(mine.box) for j in taken):
            taken.append(i)
    return taken
