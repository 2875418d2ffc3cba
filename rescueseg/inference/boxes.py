"""The maps of one box: the windows that touch it, the statistics of their members, blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.errors import InferenceError
from rescueseg.geometry import Box
from rescueseg.inference.maps import InferencePlan
from rescueseg.inference.uncertainty import MemberStatistics
from rescueseg.inference.windows import WindowGrid
from rescueseg.models.predictor import PROBABILITY, Predictor
from rescueseg.randomness import window_key
from rescueseg.records import VolumeRecord
from rescueseg.volumes.normalise import normalise, read_box

BATCH_VOXELS = 1_000_000
"""Voxels of the windows that go through the predictor together (at least one window)."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Part:
    """The part of a window inside a block."""

    index: int
    window: Box
    inside: Box
    weights: Float32

    @classmethod
    def of(cls, grid: WindowGrid, index: int, block: Box) -> _Part:
        window = grid.box(index)
        inside = window.intersection(block)
        assert inside is not None, "every window of a block touches it"
        first = [max(0, o) for o in window.offset_zyx]
        z, y, x = (
            weights[o - f : o - f + s]
            for weights, o, f, s in zip(grid.weights(index), inside.offset_zyx, first, inside.shape_zyx, strict=True)
        )
        return cls(index, window, inside, z[:, None, None] * y[None, :, None] * x[None, None, :])


def compute_box(
    image: zarr.Array[Any], plan: InferencePlan, volume: VolumeRecord, predictor: Predictor, block: Box
) -> dict[str, Float32]:
    """Return the maps of one box, float32 by quantity: the same values as in the maps of the whole volume.

    Parameters
    ----------
    image : zarr.Array, czyx
        The volume at full resolution.
    plan : InferencePlan
        What its maps are made with.
    volume : VolumeRecord
        Its normalisation counts.
    predictor : Predictor
        The model.
    block : Box
        Which box.
    """
    grid = plan.grid
    read = grid.read_box(block)
    raw = read_box(image, read)
    maps = {q: np.zeros(plan.map_shape(q, block.shape_zyx), np.float32) for q in plan.quantities}
    batch = max(1, BATCH_VOXELS // math.prod(plan.window_zyx))
    indices = grid.touching(block)
    while chunk := list(itertools.islice(indices, batch)):
        parts = [_Part.of(grid, index, block) for index in chunk]
        windows = np.stack(
            [normalise(raw[(..., *p.window.relative_to(read).slices)], volume.normalisation) for p in parts]
        )
        for part, statistics in zip(parts, _statistics(plan, predictor, windows, parts), strict=True):
            target = (..., *part.inside.relative_to(block).slices)
            for quantity in plan.quantities:
                values = statistics.pop(quantity)
                values *= part.weights
                maps[quantity][target] += values
    return maps


def _statistics(
    plan: InferencePlan, predictor: Predictor, windows: Float32, parts: Sequence[_Part]
) -> Iterator[dict[str, Float32]]:
    """Yield the statistics over all members, for each window its part inside the block; of other outputs the mean."""
    accumulators = [MemberStatistics() for _ in parts]
    others = [{o.name: np.zeros((), np.float32) for o in plan.outputs} for _ in parts]
    cuts = [(slice(None), *part.inside.relative_to(part.window).slices) for part in parts]
    keys = [window_key(plan.seed, plan.volume_id, part.index) for part in parts]
    for count, (group, member) in enumerate(predictor.members(windows, keys), start=1):
        _check_member(plan, member, parts)
        with np.errstate(invalid="ignore"):
            for i, cut in enumerate(cuts):
                accumulators[i].add(group.symmetry, member[PROBABILITY][i][cut], group.network)
                for name, mean in others[i].items():
                    others[i][name] = mean + (member[name][i][cut] - mean) / np.float32(count)
    for part, statistics, means in zip(parts, accumulators, others, strict=True):
        with np.errstate(invalid="ignore"):
            result = statistics.result() | means
            broken = [q for q in plan.channels if not np.isfinite(result[q].sum(dtype=np.float64))]
        if broken:
            what = "probabilities" if broken[0] == PROBABILITY else f"values of '{broken[0]}'"
            raise InferenceError(
                f"the model gave NaN or infinite {what}",
                where=f"volume {plan.volume_id}, window {part.index} at {part.window}",
                todo="Look at the training loss of this generation; retrain with a lower training.learning_rate",
            )
        yield result


def _check_member(plan: InferencePlan, member: Mapping[str, Float32], parts: Sequence[_Part]) -> None:
    """Refuse a member that does not hold what the predictor named."""
    for name, channels in plan.channels.items():
        expected = (len(parts), channels, *plan.window_zyx)
        shape = member[name].shape if name in member else None
        if shape != expected:
            raise InferenceError(
                f"the predictor gave an array of shape {shape}, not {expected}, as '{name}'",
                where=f"volume {plan.volume_id}, window {parts[0].index}",
                todo="Mend the predictor of this trainer",
            )
