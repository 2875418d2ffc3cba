"""The maps of one box: the windows that touch it, the statistics of their members, blended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch import Tensor

from rescueseg.errors import InferenceError
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.inference.blending import WindowBlender
from rescueseg.inference.maps import OBJECT_DISAGREEMENT, InferencePlan
from rescueseg.inference.member_objects import MemberObjects
from rescueseg.inference.shared_windows import SharedWindows
from rescueseg.inference.uncertainty import MemberStatistics
from rescueseg.inference.windows import WindowGrid
from rescueseg.models.predictor import PROBABILITY, Group, Predictor
from rescueseg.randomness import window_key
from rescueseg.records import Normalisation
from rescueseg.volumes.normalise import Array, normalise, read_box

BATCH_VOXELS, GPU_BATCH_VOXELS = 250_000, 4_000_000
"""Voxels of the windows that go through the predictor together (at least one window); on a CPU more is no faster."""

Float32 = npt.NDArray[np.float32]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pixels:
    """Part of a volume, read at once and normalised; what lies beyond it is read when it is needed.

    Parameters
    ----------
    image : zarr.Array or ndarray, czyx
        The volume.
    normalisation : Normalisation
        Its scaling.
    box : Box, optional
        What was read.
    scaled : ndarray of float32, czyx, optional
        Its voxels.
    """

    image: Array
    normalisation: Normalisation
    box: Box | None = None
    scaled: Float32 | None = None

    @classmethod
    def read(cls, image: Array, normalisation: Normalisation, box: Box | None) -> Pixels:
        """Read a box; None reads nothing yet."""
        scaled = None if box is None else normalise(read_box(image, box), normalisation)
        return cls(image, normalisation, box, scaled)

    def window(self, box: Box) -> Float32:
        """Return a window, float32, czyx."""
        if self.box is not None and self.scaled is not None and self.box.contains(box):
            return self.scaled[(..., *box.relative_to(self.box).slices)]
        return normalise(read_box(self.image, box), self.normalisation)


@dataclass(frozen=True)
class BoxWork:
    """The maps of one box of a volume, still to be computed.

    Parameters
    ----------
    plan : InferencePlan
        What they are made with.
    box : Box
        Which box.
    block : int, optional
        Its number, where it is a block of the volume's maps.
    shared : SharedWindows, optional
        What blocks have computed for one another.
    device : torch.device
        Where they are computed.
    """

    plan: InferencePlan
    box: Box
    block: int = 0
    shared: SharedWindows | None = None
    device: torch.device = _CPU

    def read(self, image: zarr.Array[Any], normalisation: Normalisation) -> Pixels:
        """Read what the windows hold that are not computed yet, at once."""
        grid, shared = self.plan.grid, self.shared
        indices = [i for i in grid.touching(self.box) if shared is None or not shared.has(self.block, i)]
        boxes = [grid.box(index) for index in indices]
        if not boxes:
            return Pixels.read(image, normalisation, None)
        starts, stops = zip(*((b.offset_zyx, b.stop_zyx) for b in boxes), strict=True)
        return Pixels.read(image, normalisation, Box.from_bounds(np.min(starts, axis=0), np.max(stops, axis=0)))

    def compute(self, pixels: Pixels, statistics: WindowStatistics) -> dict[str, Tensor]:
        """Return the maps, float32 by quantity, where they were computed: but for rounding as in those of the whole volume.

        Raises
        ------
        InferenceError
            If the predictor gives NaN or infinity, or not what it named.
        """
        grid = self.plan.grid
        layout = channel_layout(self.plan)
        blender = WindowBlender(self.box)
        size = batch_size(self.plan.window_zyx, self.device)
        for _, batch in grid.batches(self.box, size, whole=self.shared is not None):
            parts = self._parts(batch, pixels, statistics)
            for index in batch:
                part = grid.part(index, self.box) if grid.box(index).intersects(self.box) else None
                if part is not None:
                    blender.add(part, parts[index])
        blended = blender.blended()
        zeros = blended.new_zeros(()).expand(self.box.shape_zyx)
        known = {name: part for name, part in layout.items() if part.stop <= len(blended)}
        maps = {name: blended[part if name in self.plan.channels else part.start] for name, part in known.items()}
        return {name: maps.get(name, zeros) for name in layout}

    def _parts(self, batch: Sequence[int], pixels: Pixels, statistics: WindowStatistics) -> Mapping[int, Tensor]:
        """Return the box's parts of a batch's windows: as another block has computed them, or computed for all blocks."""
        grid, shared = self.plan.grid, self.shared
        touching = [index for index in batch if grid.box(index).intersects(self.box)]
        if shared is not None:
            kept = {index: shared.take(self.block, index) for index in touching}
            if all(part is not None for part in kept.values()):
                return {index: torch.as_tensor(part, device=self.device) for index, part in kept.items()}
        values = statistics.of([pixels.window(grid.box(index)) for index in batch], batch)
        parts: dict[int, Tensor] = {}
        for index, of_window in zip(batch, values, strict=True):
            window = grid.box(index)
            for block, box in shared.blocks_at(window) if shared is not None else [(self.block, self.box)]:
                inside = window.intersection(box)
                if inside is None:
                    continue
                part = of_window[(slice(None), *inside.relative_to(window).slices)]
                if block == self.block:
                    parts[index] = part
                elif shared is not None:
                    shared.keep(block, index, part.cpu().numpy())
        return parts


def batch_size(window_zyx: ZYX, device: torch.device) -> int:
    """Return how many windows go through the predictor together.

    Examples
    --------
    >>> batch_size((16, 64, 64), torch.device("cpu")), batch_size((64, 256, 256), torch.device("cpu"))
    (3, 1)
    """
    voxels = BATCH_VOXELS if device.type == "cpu" else GPU_BATCH_VOXELS
    return max(1, voxels // math.prod(window_zyx))


def channel_layout(plan: InferencePlan) -> dict[str, slice]:
    """Return where each map lies among the channels of a window's statistics: those that a single member has come first."""
    of_one = [PROBABILITY, *(output.name for output in plan.outputs), "predictive_entropy"]
    names = [*of_one, *(quantity for quantity in plan.quantities if quantity not in of_one)]
    layout, start = {}, 0
    for name in names:
        stop = start + plan.channels.get(name, 1)
        layout[name] = slice(start, stop)
        start = stop
    return layout


class WindowStatistics:
    """The statistics of windows over all members; of outputs other than the probabilities the mean.

    Windows of one value, as around the tissue of a stitched volume, are all alike: each value is computed once.

    Parameters
    ----------
    plan : InferencePlan
        Seed, outputs, maps.
    predictor : Predictor
        The model.
    """

    def __init__(self, plan: InferencePlan, predictor: Predictor) -> None:
        self.plan, self._predictor = plan, predictor
        self._of_one_value: dict[tuple[float, ...], Tensor] = {}

    def of(self, windows: Sequence[Float32], indices: Sequence[int]) -> list[Tensor]:
        """Return the statistics of windows that go through the predictor together.

        Parameters
        ----------
        windows : sequence of ndarray of float32, shape (C, z, y, x)
            Normalised.
        indices : sequence of int
            Their numbers in the grid of the volume.

        Returns
        -------
        list of Tensor of float32, shape (channels, z, y, x)
            On the predictor's device, in the order of `channel_layout`. Of a single member only those that are not zero.

        Raises
        ------
        InferenceError
            If a member is not what the predictor named, or holds NaN or infinity.
        """
        values = {index: _single_value(window) for index, window in zip(indices, windows, strict=True)}
        pairs = [(i, window) for i, window in zip(indices, windows, strict=True) if values[i] is None]
        found: dict[int, Tensor] = {}
        if pairs:
            some = [index for index, _ in pairs]
            found = dict(zip(some, self._compute(np.stack([window for _, window in pairs]), some, some), strict=True))
        for index, window in zip(indices, windows, strict=True):
            value = values[index]
            if value is not None:
                found[index] = self._of_value(value, window, index)
        return [found[index] for index in indices]

    def _of_value(self, value: tuple[float, ...], window: Float32, index: int) -> Tensor:
        """Return the statistics of a window of one value; those of the last few values are kept."""
        statistics = self._of_one_value.pop(value, None)
        if statistics is None:
            statistics = self._compute(window[np.newaxis], [index], [_ONE_VALUE])[0]
        self._of_one_value[value] = statistics
        if len(self._of_one_value) > _VALUES_KEPT:
            del self._of_one_value[next(iter(self._of_one_value))]
        return statistics

    def _compute(self, windows: Float32, indices: Sequence[int], named: Sequence[int]) -> Tensor:
        """Return the statistics (n, channels, z, y, x) of windows; their random numbers derive from how they are named."""
        plan, statistics = self.plan, MemberStatistics()
        means: dict[str, Tensor] = {}
        counts = dict.fromkeys((output.name for output in plan.outputs), 0)
        keys = [window_key(plan.seed, plan.volume_id, name) for name in named]
        objects = MemberObjects(plan.outputs, plan.spacing_um_zyx) if plan.object_disagreement else None
        latest: Group | None = None
        for group, values_of in self._predictor.members(windows, keys):
            member = {name: torch.as_tensor(value).detach() for name, value in values_of.items()}
            _check_member(plan, member, indices)
            statistics.add(group.symmetry, member[PROBABILITY], group.network)
            if objects is not None:
                objects.add(group, member)
            for output in plan.outputs:
                if not output.sampled and group == latest:
                    continue
                value, mean = member[output.name], means.get(output.name)
                counts[output.name] += 1
                share = 1 / counts[output.name]
                means[output.name] = value.clone() if mean is None else torch.add(mean, value - mean, alpha=share)
            latest = group
        of_one = (PROBABILITY, *means, "predictive_entropy")
        result = statistics.result() | means
        if objects is not None:
            result[OBJECT_DISAGREEMENT] = objects.disagreement().to(result[PROBABILITY].device)
        quantities = [name for name in channel_layout(plan) if statistics.members > 1 or name in of_one]
        values = torch.cat(
            [result[name] if name in plan.channels else result[name][:, None] for name in quantities], dim=1
        )
        _check_finite(plan, values, indices)
        return values


_VALUES_KEPT = 4
_ONE_VALUE = 2**62
"""Number that stands for all windows of one value."""


def _single_value(window: Float32) -> tuple[float, ...] | None:
    """Return the value of each channel of a window (C, z, y, x) that has no other."""
    first = window[:, 0, 0, 0]
    if (window[:, -1, -1, -1] != first).any() or (window != first[:, None, None, None]).any():
        return None
    return tuple(first.tolist())


def _check_finite(plan: InferencePlan, values: Tensor, indices: Sequence[int]) -> None:
    finite = torch.isfinite(values.flatten(2).sum(dim=2, dtype=torch.float64)).cpu().numpy()
    for index, channels in zip(indices, finite, strict=True):
        if channels.all():
            continue
        layout, first = channel_layout(plan), int(np.argmin(channels))
        name = next(name for name, part in layout.items() if part.start <= first < part.stop)
        what = f"values of '{name}'" if any(output.name == name for output in plan.outputs) else "probabilities"
        raise InferenceError(
            f"the model gave NaN or infinite {what}",
            where=f"volume {plan.volume_id}, window {index} at {plan.grid.box(index)}",
            todo="Look at the training loss of this generation; retrain with a lower training.learning_rate",
        )


def _check_member(plan: InferencePlan, member: Mapping[str, Tensor], indices: Sequence[int]) -> None:
    """Refuse a member that does not hold what the predictor named."""
    for name, channels in plan.channels.items():
        expected = (len(indices), channels, *plan.window_zyx)
        shape = tuple(member[name].shape) if name in member else None
        if shape != expected:
            raise InferenceError(
                f"the predictor gave an array of shape {shape}, not {expected}, as '{name}'",
                where=f"volume {plan.volume_id}, window {indices[0]}",
                todo="Mend the predictor of this trainer",
            )


def predict_image(predictor: Predictor, image: Float32, spacing_um_zyx: Spacing, overlap: float, name: str) -> Float32:
    """Return the class probabilities of a whole image in memory, (K + 1)zyx, background first: see `predict_outputs`."""
    return predict_outputs(predictor, image, spacing_um_zyx, overlap, name, (PROBABILITY,))[PROBABILITY]


def predict_outputs(
    predictor: Predictor,
    image: Float32,
    spacing_um_zyx: Spacing,
    overlap: float,
    name: str,
    outputs: Sequence[str],
) -> dict[str, Float32]:
    """Return what a model says of a whole image in memory, window by window: the mean over all members.

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
    outputs : sequence of str
        Names of the model's outputs.

    Returns
    -------
    dict of ndarray of float32, czyx
        By name; of the class probabilities the background is first.
    """
    whole = Box((0, 0, 0), zyx(image.shape[1:]))
    grid = WindowGrid(whole.shape_zyx, predictor.window_zyx(spacing_um_zyx), overlap)
    blender = WindowBlender(whole)
    for part in grid.parts(whole):
        window = read_box(image, part.window)[np.newaxis]
        members = predictor.members(window, [window_key(0, name, part.index)])
        cut = (slice(None), *part.cut)
        values = [torch.cat([torch.as_tensor(member[o])[0][cut] for o in outputs]) for _, member in members]
        blender.add(part, torch.stack(values).mean(dim=0))
    blended: Float32 = blender.blended().cpu().numpy()
    channels = {output.name: output.channels for output in predictor.outputs}
    ends = np.cumsum([channels[o] for o in outputs])
    return dict(zip(outputs, np.split(blended, ends[:-1]), strict=True))
