"""A deterministic subsample of a volume's chunks: statistics of any volume, whatever its size, from a bounded read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rescueseg.geometry import Box, partition, zyx
from rescueseg.randomness import random_generator


def sample_boxes(shape_zyx: Sequence[int], chunk_zyx: Sequence[int], voxels: int, *keys: int | str) -> list[Box]:
    """Choose chunks of a volume that hold about `voxels` in all, spread over its depth.

    Layers of chunks along z take turns, so that drift and dim planes are seen wherever they are; within a layer chunks
    are drawn at random.

    Parameters
    ----------
    shape_zyx : sequence of int
        Shape of the volume.
    chunk_zyx : sequence of int
        Shape of its chunks: what is read at a time.
    voxels : int
        Largest number of voxels of all boxes together; at least one box is chosen.
    *keys : int or str
        What the sample is for: the same keys, shape and chunks give the same boxes on every machine.

    Returns
    -------
    list of Box
        In z, y, x order; chunks at the far side of the volume are cut to it. All chunks where they are few.

    Examples
    --------
    A volume of 4 layers of 16 chunks; of 4 chunks that may be read, each lies in a layer of its own:

    >>> boxes = sample_boxes((64, 64, 64), (16, 16, 16), 4 * 16**3, "histogram")
    >>> [box.offset_zyx[0] for box in boxes]
    [0, 16, 32, 48]
    >>> boxes == sample_boxes((64, 64, 64), (16, 16, 16), 4 * 16**3, "histogram")
    True
    """
    boxes = partition(shape_zyx, zyx(chunk_zyx))
    count = max(1, voxels // min(math.prod(chunk_zyx), math.prod(shape_zyx)))
    if len(boxes) <= count:
        return boxes
    rng = random_generator("sample of chunks", *keys)
    layers: dict[int, list[Box]] = {}
    for box in boxes:
        layers.setdefault(box.offset_zyx[0], []).append(box)
    turns = [
        (turn, place, box)
        for place, layer in zip(rng.permutation(len(layers)).tolist(), layers.values(), strict=True)
        for turn, box in enumerate(layer[i] for i in rng.permutation(len(layer)))
    ]
    return sorted(box for _, _, box in sorted(turns, key=lambda t: t[:2])[:count])
