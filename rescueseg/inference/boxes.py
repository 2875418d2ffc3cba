"""The maps of one box: the windows that touch it, the statistics of their members, blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.errors import InferenceError
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.inference.maps import InferencePlan
from rescueseg.inference.uncertainty import MemberStatistics
from rescueseg.inference.windows import WindowBlender, WindowGrid, WindowPart
from rescueseg.models.predictor import PROBABILITY, Predictor
from rescueseg.randomness import window_key
from rescueseg.records import VolumeRecord
from rescueseg.volumes.normalise import normalise, read_box

BATCH_VOXELS = 1_000_000
"""Voxels of the windows that go through the predictor together (at least one window)."""

Float32 = npt.NDArray[np.float32]


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
    maps = {q: WindowBlender(block, plan.channels.get(q)) for q in plan.quantities}
    batch = max(1, BATCH_VOXELS // math.prod(plan.window_zyx))
    all_parts = grid.parts(block)
    while parts := list(itertools.islice(all_parts, batch)):
        windows = np.stack(
            [normalise(raw[(..., *p.window.relative_to(read).slices)], volume.normalisation) for p in parts]
        )
        for part, statistics in zip(parts, _statistics(plan, predictor, windows, parts), strict=True):
            for quantity, blender in maps.items():
                blender.add(part, statistics.pop(quantity))
    return {quantity: blender.blended for quantity, blender in maps.items()}


def _statistics(
    plan: InferencePlan, predictor: Predictor, windows: Float32, parts: Sequence[WindowPart]
) -> Iterator[dict[str, Float32]]:
    """Yield the statistics over all members, for each window its part inside the block; of other outputs the mean."""
    accumulators = [MemberStatistics() for _ in parts]
    others = [{o.name: np.zeros((), np.float32) for o in plan.outputs} for _ in parts]
    cuts = [(slice(None), *part.cut) for part in parts]
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


def _check_member(plan: InferencePlan, member: Mapping[str, Float32], parts: Sequence[WindowPart]) -> None:
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


def predict_image(predictor: Predictor, image: Float32, spacing_um_zyx: Spacing, overlap: float, name: str) -> Float32:
    """Return the class probabilities of a whole image in memory, window by window: the mean over all members.

    Parameters
    ----------
    predictor : Predictor
        The model.
    image : ndarray of float32, czyx
        Normalised.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre: it decides on the window.
    overlap : float
        Overlap of neighbouring windows as a fraction of the window.
    name : str
        What the random numbers of the members derive from, beside each window's index.

    Returns
    -------
    ndarray of float32, (K + 1)zyx
        Background first.
    """
    whole = Box((0, 0, 0), zyx(image.shape[1:]))
    grid = WindowGrid(whole.shape_zyx, predictor.window_zyx(spacing_um_zyx), overlap)
    blender = WindowBlender(whole, predictor.n_classes + 1)
    for part in grid.parts(whole):
        window = read_box(image, part.window)[np.newaxis]
        members = [p[PROBABILITY][0] for _, p in predictor.members(window, [window_key(0, name, part.index)])]
        blender.add(part, np.mean(members, axis=0)[(slice(None), *part.cut)])
    return blender.blended
