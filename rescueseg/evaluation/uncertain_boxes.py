"""The boxes of whole volumes in which the model is most uncertain; found without any truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.geometry import ZYX, Box, Floats, Integers, Patch, zyx
from rescueseg.inference.box_means import box_sums, map_pieces, touching
from rescueseg.inference.maps import VolumeMaps
from rescueseg.progress import Progress
from rescueseg.records import BoxField, Holdout, Record
from rescueseg.sampling.free_places import FreePlaces, choose_apart
from rescueseg.sampling.patches import grid_starts, half_stride, patch_shape
from rescueseg.shared_places import SharedPlaces


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

    The entropy maps of all volumes are read once, block by block: memory depends on the block, and by some 100 bytes a
    box on the grid, which has at most 100,000 in a volume. Looked at are boxes of the patch's shape on a grid of half a
    patch, clear of the holdout and of every patch that was annotated.

    Parameters
    ----------
    campaign : Campaign
        With complete maps; a volume without is left out.
    generation : int
        Whose maps.
    count : int
        How many boxes at most; no two overlap, in whichever volumes.
    progress : callable, optional
        Called with (what is counted, how many are done, how many there are).
    """
    holdout = campaign.holdout() or Holdout(boxes=(), guard_zyx=(0, 0, 0))
    shared, annotated = campaign.volumes.shared_places(), _annotated(campaign.generations())
    grids: list[tuple[str, Floats, Integers, ZYX]] = []
    for volume in campaign.volumes.records():
        maps = VolumeMaps(campaign.generation(generation), volume.volume_id)
        if maps.reference() is None:
            continue
        occupied = [*holdout.of(volume.volume_id, shared), *shared.boxes_in(volume.volume_id, annotated)]
        shape = patch_shape(campaign.config, volume, holdout)
        starts = grid_starts(volume.shape_zyx, shape, half_stride(shape), occupied)
        if len(starts):
            means = _mean_entropy(maps, starts, starts + np.array(shape), progress)
            grids.append((volume.volume_id, means, starts, shape))
    typical = float(np.median(np.concatenate([means for _, means, _, _ in grids]))) if grids else 0.0
    return [
        UncertainBox(volume_id=patch.volume_id, box=patch.box, entropy=entropy, typical=typical)
        for patch, entropy in most_apart(grids, count, shared).items()
    ]


def most_apart(
    grids: Sequence[tuple[str, Floats, Integers, ZYX]], count: int, places: SharedPlaces
) -> dict[Patch, float]:
    """Return the boxes with the highest values of which no two share a voxel, in whichever volumes, best first.

    Parameters
    ----------
    grids : sequence
        Of each volume its id, the value of each box, where each begins, and their shape.
    count : int
        How many at most; fewer are returned only where there are no more.
    places : SharedPlaces
        Which places of the volumes are the same.
    """
    of_each = count
    while True:
        best = [(grid, non_overlapping(grid[1], grid[2], grid[3], of_each)) for grid in grids]
        found = [
            (float(values[i]), Patch(name, Box(zyx(starts[i]), shape)))
            for (name, values, starts, shape), rows in best
            for i in rows
        ]
        values_of = {patch: value for value, patch in sorted(found, key=lambda one: (-one[0], one[1]))}
        chosen = choose_apart(values_of, count, places)
        # what one volume takes away from another makes room for lower values there
        if len(chosen) == count or all(len(rows) < of_each for _, rows in best):
            return {patch: values_of[patch] for patch in chosen}
        of_each *= 2


def _annotated(generations: Iterable[GenerationFolder]) -> AbstractSet[Patch]:
    """Return the annotated patches of all generations."""
    snapshots = (generation.snapshot() for generation in generations)
    return {Patch(item.volume_id, item.box) for s in snapshots if s is not None for item in s.items}


def _mean_entropy(maps: VolumeMaps, starts: Integers, stops: Integers, progress: Progress | None) -> Floats:
    entropy = maps.open("predictive_entropy")
    sums = np.zeros(len(starts))
    pieces = map_pieces(maps, zyx(entropy.chunks))
    for number, piece in enumerate(pieces, start=1):
        index = touching(piece, starts, stops)
        if len(index):
            block = np.asarray(entropy[piece.slices], np.float32)
            sums[index] += box_sums(block, piece.offset_zyx, starts[index], stops[index])
        if progress is not None:
            progress(f"{maps.volume_id}: uncertainty map", number, len(pieces))
    means: Floats = sums / np.prod(stops - starts, axis=1)
    return means


def non_overlapping(values: Floats, starts: Integers, shape_zyx: ZYX, count: int) -> list[int]:
    """Return the boxes with the highest values of which no two overlap, highest first, by index.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        Of equal ones the first counts as higher.
    starts : ndarray of int64, shape (n, 3)
        Where the boxes begin.
    shape_zyx : tuple of int
        Their shape.
    count : int
        How many at most.

    Examples
    --------
    Boxes of 4×4×4 voxels; the second overlaps the first, which has a higher value:

    >>> starts = np.array([[0, 0, 0], [0, 0, 2], [0, 0, 8]])
    >>> non_overlapping(np.array([0.9, 0.8, 0.1]), starts, (4, 4, 4), 2)
    [0, 2]
    """
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    grid = FreePlaces({"": (starts, starts + np.array(shape_zyx))})
    return [int(order[i]) for i in grid.take_first((("", row) for row in order), count)]
