"""Where to annotate a patch, so that the triage learns more: a place that shows structure beside what lies around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.geometry import ZYX, Box, Patch, partition, zyx
from rescueseg.queue.store import QueueStore

_RANK = 0.9
"""Rank of the place among all by its range of intensities: dull ones show no structure, the brightest may be debris."""
_MOST_VALUES = 20_000
"""Values of a place that its range is taken from."""


def ranges(box: Box, values: npt.NDArray[Any], shape_zyx: ZYX, full_zyx: ZYX) -> list[tuple[Box, float]]:
    """Return the patches that lie side by side in what was read, each with the range of its intensities.

    Parameters
    ----------
    box : Box
        What was read.
    values : ndarray, zyx
        Its intensities.
    shape_zyx : tuple of int
        Shape of a patch; where more than what was read, the patch lies around its middle.
    full_zyx : tuple of int
        Shape of the volume, in which the patches lie.

    Returns
    -------
    list of (Box, float)
        Places, and their intensities between the 2nd and the 98th percentile.

    Examples
    --------
    >>> values = np.concatenate([np.zeros((4, 4, 4)), np.arange(64).reshape(4, 4, 4)])
    >>> [(str(place), round(span)) for place, span in ranges(Box((8, 0, 0), (8, 4, 4)), values, (4, 4, 4), (16, 4, 4))]
    [('[8:12, 0:4, 0:4]', 0), ('[12:16, 0:4, 0:4]', 60)]
    """
    places = []
    for tile in partition(values.shape, shape_zyx):
        part = values[tile.slices]
        if any(n < min(s, m) for n, s, m in zip(part.shape, shape_zyx, values.shape, strict=True)):
            continue
        low, high = np.percentile(part.ravel()[:: 1 + part.size // _MOST_VALUES], (2, 98))
        middles = [b + o + n // 2 for b, o, n in zip(box.offset_zyx, tile.offset_zyx, tile.shape_zyx, strict=True)]
        shape = zyx(min(s, n) for s, n in zip(shape_zyx, full_zyx, strict=True))
        start = zyx(min(max(0, middle - s // 2), n - s) for middle, s, n in zip(middles, shape, full_zyx, strict=True))
        places.append((Box(start, shape), float(high - low)))
    return places


def suggested_patch(
    campaign: Campaign, store: QueueStore, places: Mapping[str, Sequence[tuple[Box, float]]]
) -> Patch | None:
    """Return a patch to annotate: of all places the one whose intensities span more than nine tenths of the others do.

    Parameters
    ----------
    campaign : Campaign
        Its frozen holdout is left alone.
    store : QueueStore
        Patches that it holds are not suggested again.
    places : mapping of str to sequence of (Box, float)
        By volume, see `ranges`.
    """
    spans = {
        name: max((span for _, span in found), default=0.0) or 1.0 for name, found in places.items()
    }  # volumes differ in brightness
    ranked = sorted((span / spans[name], name, box) for name, found in places.items() for box, span in found)
    best = round(_RANK * (len(ranked) - 1))
    shared, holdout = campaign.volumes.shared_places(), campaign.holdout()
    taken = [Patch(ticket.volume_id, ticket.box) for ticket in store.views.tickets()]
    taken += campaign.rough_patches()
    for index in sorted(range(len(ranked)), key=lambda i: (abs(i - best), -i)):
        _, name, box = ranked[index]
        blocked = [*shared.boxes_in(name, taken), *(holdout.guarded(name, shared) if holdout else [])]
        if not any(box.intersects(other) for other in blocked):
            return Patch(name, box)
    return None
