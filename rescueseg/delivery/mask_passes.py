"""The steps of `rescueseg.postprocessing.mask_steps` over volumes that do not fit into memory: passes over blocks.

Each step reads the labels of the one before. A pass finds pieces or marks voxels, the numbers of all blocks decide on the
pieces, and a last pass writes the labels of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.components import Components, Lookup, find_components
from rescueseg.delivery.label_arrays import LabelArray, scratch_array
from rescueseg.delivery.label_readers import LabelReader
from rescueseg.delivery.records import CleanUp
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.delivery.uncleaned import tempered_map
from rescueseg.geometry import Box
from rescueseg.postprocessing.distances import between, opening, reach_voxels
from rescueseg.postprocessing.mask_steps import fill_smaller, is_cavity, is_small, touch_counts, touches
from rescueseg.storage import Storage, digest_json
from rescueseg.voxels.components import Connectivity

Job = TypeVar("Job")
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cleaning:
    """One step over one volume: its passes, and the arrays between them.

    Parameters
    ----------
    target : TargetVolume
        The volume.
    step : Step
        Where markers go, and the digest of all that the mask depends on.
    name : str
        Of the step.
    """

    target: TargetVolume
    step: Step
    name: str

    @property
    def labels_pass(self) -> BlockPass:
        """The last pass of the step."""
        return self._pass("labels")

    def _pass(self, part: str) -> BlockPass:
        return self.step.block_pass(f"{self.name}/{part}", self.target.shape_zyx, self.target.block_zyx)

    def _scratch_url(self, part: str) -> str:
        return self.target.out.scratch_url(self.target.volume_id, f"mask_{self.name}_{part}")

    def write(
        self, function: Callable[[tuple[LabelArray, Job], Box], Arrays], job: Job, written: LabelArray | None = None
    ) -> LabelArray:
        """Write the labels of the step: into an array that is there, or into one between passes; return it."""
        block_pass = self.labels_pass
        array = written or scratch_array(self._scratch_url("labels"), block_pass, np.uint8)
        self.step.run(block_pass, function, (array, job))
        return array

    def mark(
        self, part: str, function: Callable[[tuple[LabelArray, Job], Box], Arrays], job: Job, dtype: npt.DTypeLike
    ) -> LabelArray:
        """Write an array between passes, and return it."""
        block_pass = self._pass(part)
        array = scratch_array(self._scratch_url(part), block_pass, dtype)
        self.step.run(block_pass, function, (array, job))
        return array

    def components(self, part: str, reader: LabelReader, connectivity: Connectivity) -> Components:
        """Find the components of what the step reads or marked."""
        return find_components(
            self.step.storage.url_of(f"{self.name}/{part}"),
            digest_json([self.step.digest, self.name, part]),
            reader,
            self.target.shape_zyx,
            self.target.block_zyx,
            connectivity,
            self.step.client,
            self.step.progress,
        )

    def touch_counts(self, regions: Components, marked: LabelArray, pieces: Components, numbers: LabelArray) -> Int64:
        """Return how many pieces of its own class each region touches; `numbers` are those of the pieces."""
        block_pass = self._pass("touches")
        self.step.run(block_pass, _find_touches, (self.target, regions.lookup, marked, numbers))
        pairs = np.concatenate([arrays["pairs"] for arrays in block_pass.results()])
        pairs = np.unique(pairs[regions.value[pairs[:, 0]] == pieces.value[pairs[:, 1]]], axis=0)
        return touch_counts(pairs, regions.count)

    def keep(self, part: str, of_components: npt.NDArray[Any]) -> Decision:
        """Store what was decided of the components, for the blocks."""
        name = f"{self.name}/{part}.npz"
        self.step.storage.write_array(name, of_components)
        return Decision(self.step.url, name)

    def remove_scratch(self) -> None:
        """Remove the arrays between passes."""
        for part in ("labels", "marked", "numbers"):
            Storage(self._scratch_url(part)).remove("")


@dataclass(frozen=True)
class Decision:
    """What was decided of the components 0…n of a volume: an array in a file that blocks read."""

    url: str
    name: str

    def read(self) -> npt.NDArray[Any]:
        """Return the array."""
        return Storage(self.url).read_array(self.name)


@dataclass(frozen=True)
class Unmarked:
    """Reads labels without the voxels that are marked in another array."""

    labels: LabelArray
    marked: LabelArray

    def read(self, box: Box) -> npt.NDArray[np.integer[Any]]:
        """Return the labels in a box of the volume, zyx."""
        labels = self.labels.read(box)
        labels[self.marked.read(box) > 0] = 0
        return labels


CleaningStep = Callable[[Cleaning, LabelArray, LabelArray | None], LabelArray]
"""Given the labels of the step before, and where its own go: the finished mask, None for an array between passes."""


def mask_steps(cleanup: Sequence[CleanUp]) -> list[tuple[str, CleaningStep]]:
    """Return the steps that a clean-up needs, by name, in their order."""
    steps: list[tuple[str, CleaningStep, bool]] = [
        ("bridges", bridge_gaps, any(s.bridge_um for s in cleanup)),
        ("spurs", take_off_spurs, any(s.spurs_um for s in cleanup)),
        ("smallest", drop_small, any(s.smallest_um3 for s in cleanup)),
        ("cavities", fill_cavities, any(s.cavities_um3 for s in cleanup)),
        ("largest", keep_largest, any(s.largest for s in cleanup)),
    ]
    return [(name, function) for name, function, needed in steps if needed]


def bridge_gaps(cleaning: Cleaning, labels: LabelArray, written: LabelArray | None) -> LabelArray:
    """See `rescueseg.postprocessing.mask_steps.bridge`."""
    pieces = cleaning.components("pieces", labels, 26)
    numbers = cleaning.mark("numbers", _write_numbers, (pieces.lookup, labels), np.uint32)
    marked = cleaning.mark("marked", _write_between, (cleaning.target, labels, numbers), np.uint8)
    regions = cleaning.components("regions", marked, 26)
    joins = cleaning.touch_counts(regions, marked, pieces, numbers) >= 2
    return cleaning.write(_add_regions, (labels, marked, regions.lookup, cleaning.keep("joins", joins)), written)


def take_off_spurs(cleaning: Cleaning, labels: LabelArray, written: LabelArray | None) -> LabelArray:
    """See `rescueseg.postprocessing.mask_steps.spurs`."""
    marked = cleaning.mark("marked", _write_thin, (cleaning.target, labels), np.uint8)
    rest = Unmarked(labels, marked)
    regions, pieces = cleaning.components("regions", marked, 26), cleaning.components("pieces", rest, 26)
    numbers = cleaning.mark("numbers", _write_numbers, (pieces.lookup, rest), np.uint32)
    ends = cleaning.touch_counts(regions, marked, pieces, numbers) == 1
    return cleaning.write(_drop, (labels, marked, regions.lookup, cleaning.keep("ends", ends)), written)


def drop_small(cleaning: Cleaning, labels: LabelArray, written: LabelArray | None) -> LabelArray:
    """See `rescueseg.postprocessing.mask_steps.smallest`."""
    pieces, spacing = cleaning.components("pieces", labels, 26), cleaning.target.spacing_um_zyx
    limits = np.array([0.0, *(s.smallest_um3 for s in cleaning.target.rule.cleanup)])
    small = is_small(pieces.sizes, pieces.border, spacing, limits[pieces.value])
    return cleaning.write(_drop, (labels, labels, pieces.lookup, cleaning.keep("small", small)), written)


def fill_cavities(cleaning: Cleaning, labels: LabelArray, written: LabelArray | None) -> LabelArray:
    """See `rescueseg.postprocessing.mask_steps.cavities`; of several classes around one the innermost gets it."""
    cavities = []
    for c, s in enumerate(cleaning.target.rule.cleanup, start=1):
        if s.cavities_um3:
            reader = labels.reader(c, inverted=True)
            rest = cleaning.components(f"rest_{c}", reader, 6)
            filled = is_cavity(rest.sizes, rest.border, cleaning.target.spacing_um_zyx, s.cavities_um3)
            cavities.append((c, reader, rest.lookup, cleaning.keep(f"filled_{c}", filled * rest.sizes)))
    return cleaning.write(_fill, (labels, tuple(cavities)), written)


def keep_largest(cleaning: Cleaning, labels: LabelArray, written: LabelArray | None) -> LabelArray:
    """See `rescueseg.postprocessing.mask_steps.largest`."""
    pieces = cleaning.components("pieces", labels, 26)
    others = np.zeros(pieces.count + 1, np.bool_)
    for c, s in enumerate(cleaning.target.rule.cleanup, start=1):
        of_class = np.flatnonzero(pieces.value == c)
        if s.largest and of_class.size:
            others[of_class] = True
            others[of_class[pieces.sizes[of_class].argmax()]] = False
    return cleaning.write(_drop, (labels, labels, pieces.lookup, cleaning.keep("others", others)), written)


# blocks ---------------------------------------------------------------------------------------------------------------


def _write_numbers(job: tuple[LabelArray, tuple[Lookup, LabelReader]], box: Box) -> Arrays:
    written, (lookup, reader) = job
    written.write(box, lookup.read(reader, box).astype(np.uint32))
    return {}


def _write_between(job: tuple[LabelArray, tuple[TargetVolume, LabelArray, LabelArray]], box: Box) -> Arrays:
    """Mark with its class what lies between two pieces of it and is probable enough."""
    written, (target, labels, numbers) = job
    tempered, result = tempered_map(target, box), np.zeros(box.shape_zyx, np.uint8)
    free, first = labels.read(box) == 0, tempered[1:].argmax(axis=0) + 1
    for c, s in enumerate(target.rule.cleanup, start=1):
        probable = free & (first == c) & (tempered[c] >= max(0.0, s.bridge_probability))
        if s.bridge_um and probable.any():
            around = box.expand(reach_voxels(s.bridge_um, target.spacing_um_zyx)).clip(target.shape_zyx)
            inner = box.relative_to(around).slices
            candidates = np.zeros(around.shape_zyx, np.bool_)
            candidates[inner] = probable
            pieces = np.where(labels.read(around) == c, numbers.read(around), 0)
            result[between(pieces, candidates, target.spacing_um_zyx, s.bridge_um)[inner]] = c
    written.write(box, result)
    return {}


def _write_thin(job: tuple[LabelArray, tuple[TargetVolume, LabelArray]], box: Box) -> Arrays:
    """Mark with its class what of it is thin. A ball around a voxel is seen whole, and what its centre is next to."""
    written, (target, labels) = job
    result, inside = np.zeros(box.shape_zyx, np.uint8), labels.read(box)
    for c, s in enumerate(target.rule.cleanup, start=1):
        if s.spurs_um and (inside == c).any():
            reach = reach_voxels(s.spurs_um, target.spacing_um_zyx)  # twice the radius
            around = box.expand([r + 1 for r in reach]).clip(target.shape_zyx)
            wide = opening(labels.read(around) == c, target.spacing_um_zyx, s.spurs_um)
            result[(inside == c) & ~wide[box.relative_to(around).slices]] = c
    written.write(box, result)
    return {}


def _find_touches(job: tuple[TargetVolume, Lookup, LabelArray, LabelArray], box: Box) -> Arrays:
    target, lookup, marked, numbers = job
    around = box.expand((1, 1, 1)).clip(target.shape_zyx)
    regions = np.zeros(around.shape_zyx, np.int64)
    regions[box.relative_to(around).slices] = lookup.read(marked, box)
    return {"pairs": touches(regions, numbers.read(around))}


def _add_regions(job: tuple[LabelArray, tuple[LabelArray, LabelArray, Lookup, Decision]], box: Box) -> Arrays:
    written, (labels, marked, lookup, joins) = job
    written.write(box, np.where(joins.read()[lookup.read(marked, box)], marked.read(box), labels.read(box)))
    return {}


def _drop(job: tuple[LabelArray, tuple[LabelArray, LabelArray, Lookup, Decision]], box: Box) -> Arrays:
    """Write labels without the components that are to be dropped; they are those of the second array."""
    written, (labels, of_components, lookup, dropped) = job
    result = labels.read(box)
    result[dropped.read()[lookup.read(of_components, box)]] = 0
    written.write(box, result)
    return {}


_Cavities = tuple[int, LabelReader, Lookup, Decision]


def _fill(job: tuple[LabelArray, tuple[LabelArray, tuple[_Cavities, ...]]], box: Box) -> Arrays:
    written, (before, cavities) = job
    labels = before.read(box).astype(np.uint8)
    result, size_of_filled = labels.copy(), np.full(box.shape_zyx, np.iinfo(np.int64).max)
    for c, reader, lookup, sizes in cavities:
        fill_smaller(result, size_of_filled, labels == 0, sizes.read()[lookup.read(reader, box)], c)
    written.write(box, result)
    return {}
