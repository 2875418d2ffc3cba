"""Which voxels belong to which object of a delivery: numbered objects, or connected pieces of the mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.components import Lookup, find_components
from rescueseg.delivery.folder import MASK, OBJECTS
from rescueseg.delivery.label_readers import ZarrLabels
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import ZYX, Box, zyx

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ObjectNumbers:
    """Reads objects of a volume; it can be pickled, so blocks get it.

    Parameters
    ----------
    labels : ZarrLabels
        Numbered objects, or the mask.
    shape_zyx, block_zyx : tuple of int
        Of the volume, and of a block.
    lookup : Lookup, optional
        Which piece of the mask each voxel belongs to; 26 neighbours, so that neighbours of one class are of one piece.
        Omitted where the labels are objects.
    """

    labels: ZarrLabels
    shape_zyx: ZYX
    block_zyx: ZYX
    lookup: Lookup | None = None

    def of_block(self, box: Box) -> Int64:
        """Return the object of each voxel of a block, zyx, 0 for none."""
        if self.lookup is not None:
            return self.lookup.read(self.labels, box)
        return self.labels.read(box).astype(np.int64)

    def around(self, box: Box) -> npt.NDArray[np.integer]:
        """Return the labels of a block and one voxel on each side, 0 beyond the volume."""
        grown = box.expand((1, 1, 1))
        inner = grown.intersection(Box((0, 0, 0), self.shape_zyx))
        if inner is None:
            raise ValueError(f"the block {box} is not in the volume")
        pad = [
            (a - b, d - c)
            for a, b, c, d in zip(inner.offset_zyx, grown.offset_zyx, inner.stop_zyx, grown.stop_zyx, strict=True)
        ]
        return np.pad(self.labels.read(inner), pad)

    def blocks_of(self, box: Box) -> Iterator[Box]:
        """Yield the blocks that a box touches."""
        first = [a // b for a, b in zip(box.offset_zyx, self.block_zyx, strict=True)]
        last = [-(-a // b) for a, b in zip(box.stop_zyx, self.block_zyx, strict=True)]
        for place in np.ndindex(*(b - a for a, b in zip(first, last, strict=True))):
            start = [(f + p) * b for f, p, b in zip(first, place, self.block_zyx, strict=True)]
            stop = [min(s + b, n) for s, b, n in zip(start, self.block_zyx, self.shape_zyx, strict=True)]
            yield Box.from_bounds(start, stop)

    def mask_of(
        self, number: int, box: Box, factors: ZYX, of_block: Callable[[Box], Int64] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return one object in its bounding box, coarser by `factors`: a voxel is set where any that it covers is.

        So thin parts stay connected. Blocks are read one after the other, by `of_block` where that keeps them.
        """
        mask = np.zeros([math.ceil(n / f) for n, f in zip(box.shape_zyx, factors, strict=True)], np.bool_)
        for block in self.blocks_of(box):
            part = block.intersection(box)
            if part is None:
                continue
            within = Box(zyx(a - b for a, b in zip(part.offset_zyx, block.offset_zyx, strict=True)), part.shape_zyx)
            voxels = np.argwhere((of_block or self.of_block)(block)[within.slices] == number)
            place = (voxels + np.subtract(part.offset_zyx, box.offset_zyx)) // factors
            mask[tuple(place.T)] = True
        return mask


def object_numbers(target: TargetVolume, step: Step) -> ObjectNumbers:
    """Return what reads the objects of a delivered volume; where its rule makes none, connected pieces are found first."""
    if target.rule.objects is not None:
        labels = ZarrLabels(target.label_url(OBJECTS), "0")
        return ObjectNumbers(labels, target.shape_zyx, target.block_zyx)
    labels = ZarrLabels(target.label_url(MASK), "0")
    url = step.storage.url_of("pieces")
    shape, block = target.shape_zyx, target.block_zyx
    pieces = find_components(url, step.digest, labels, shape, block, 26, step.client, step.progress)
    return ObjectNumbers(labels, shape, block, pieces.lookup)
