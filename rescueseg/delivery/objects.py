"""Objects of a mask: numbered instances, in memory for a box and block by block for a volume, to the last voxel the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.delivery.array_file import read_arrays, write_arrays
from rescueseg.delivery.basins import BasinBlocks, find_basins
from rescueseg.delivery.block_faces import block_index
from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.components import Lookup, find_components
from rescueseg.delivery.folder import MASK, OBJECTS
from rescueseg.delivery.heights import Maps, TargetHeights, depth_in_steps, foreground, heights_of_box, object_rule
from rescueseg.delivery.label_arrays import LabelArray
from rescueseg.delivery.label_readers import ZarrLabels
from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.star_objects import make_star_objects, star_objects_of_box
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import Box, Spacing
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.storage import Storage, digest_json
from rescueseg.voxels.basin_objects import number_basins, number_objects
from rescueseg.voxels.basins import Int64
from rescueseg.voxels.components import label_components

Numbers = npt.NDArray[np.uint32]
_RESULT = "objects.npz"


def objects_of_box(mask: npt.NDArray[np.uint8], maps: Maps, rule: DeliveryRule, spacing_um_zyx: Spacing) -> Numbers:
    """Return the objects of a box that is a whole volume.

    Parameters
    ----------
    mask : ndarray of uint8, zyx
        Classes, 0 background.
    maps : mapping
        "probability", (K + 1, z, y, x), "border_distance", (z, y, x) or (1, z, y, x), "flow", (3, z, y, x),
        "object_probability", (1, z, y, x), and "star_distance", (rays, z, y, x), as far as the rule needs them.
    rule : DeliveryRule
        How objects are made: `rule.objects` of `rule.object_class`.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of uint32, zyx
        1…N by the first voxels in z, y, x order; 0 outside. Neighbours over corners belong together.

    References
    ----------
    Cousty, Bertrand, Najman & Couprie 2009, doi:10.1109/TPAMI.2008.173.

    Examples
    --------
    Two discs that touch are parted where the distance to the border is least:

    >>> from rescueseg.delivery.records import CleanUp
    >>> from rescueseg.postprocessing.object_rule import ObjectRule
    >>> y, x = np.ogrid[:7, :13]
    >>> discs = (((y - 3) ** 2 + (x - 3) ** 2 <= 10) | ((y - 3) ** 2 + (x - 9) ** 2 <= 10))[np.newaxis].astype(np.uint8)
    >>> distance = ObjectRule(source="distance", depth=0.5)
    >>> rule = DeliveryRule(model_digest="", truth_digest="", cleanup=(CleanUp(),), objects=distance)
    >>> objects_of_box(discs, {}, rule, (1.0, 1.0, 1.0))[0, 3].tolist()
    [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    """
    objects = object_rule(rule)
    if objects.source == "rays":
        return star_objects_of_box(mask, maps, rule, spacing_um_zyx)
    if objects.source == "pieces":
        pieces, count = label_components(foreground(mask, rule, len(rule.cleanup)), 26)
        sizes = np.bincount(pieces.reshape(-1), minlength=count + 1)
        return _numbers_of_pieces(sizes, objects, spacing_um_zyx)[pieces]
    heights = heights_of_box(mask, maps, rule, spacing_um_zyx)
    return number_objects(heights, depth_in_steps(objects, spacing_um_zyx), objects.least_voxels(spacing_um_zyx))


def make_objects(target: TargetVolume, step: Step) -> int:
    """Make the objects of a volume: write level 0 of ``labels/objects``, which is there and empty, from ``labels/mask``.

    Parameters
    ----------
    target : TargetVolume
        The volume: its mask, its maps, and the rule.
    step : Step
        Of all that the objects depend on; a rerun goes on where it was killed.

    Returns
    -------
    int
        How many there are; their numbers are those of `objects_of_box`, whatever the blocks and the workers.

    Raises
    ------
    StorageError
        If a file of mask or maps is damaged, or the disk is full.
    """
    objects, spacing = object_rule(target.rule), target.spacing_um_zyx
    shape, block = target.shape_zyx, target.block_zyx
    if objects.source == "rays":
        return make_star_objects(target, step)
    result = read_arrays(step.storage, _RESULT, step.digest)
    if result is not None:
        return int(result["count"])
    if objects.source == "pieces":
        reader = target.labels(MASK).reader(target.rule.object_class)
        url = step.storage.url_of("pieces")
        pieces = find_components(url, step.digest, reader, shape, block, 26, step.client, step.progress)
        numbers = _numbers_of_pieces(pieces.sizes, objects, spacing)
        tables = _Tables(step.storage.url_of("numbers"), digest_json([step.digest, "pieces"]))
        for index in range(len(pieces.lookup.pieces.blocks)):
            tables.write(index, numbers[pieces.of_block(index)])
        source: _Pieces | BasinBlocks = _Pieces(pieces.lookup, reader)
    else:
        scratch = target.out.scratch_url(target.volume_id, "basins")
        basins, source = find_basins(TargetHeights(target), step, scratch, shape, block)
        numbers = number_basins(basins, depth_in_steps(objects, spacing), objects.least_voxels(spacing))
        tables = _Tables(step.storage.url_of("numbers"), source.climb_pass.digest)
        for index in range(len(source.climb_pass.blocks)):
            of_block = numbers[np.searchsorted(basins.summits, source.summits(index))]
            tables.write(index, np.concatenate([np.zeros(1, np.uint32), of_block]))
    writing = BlockPass(step.storage.url_of("write"), tables.digest, shape, block)
    step.run(writing, _write_block, _Write(source, tables, target.labels(OBJECTS), writing))
    count = int(numbers.max(initial=0))
    write_arrays(step.storage, _RESULT, step.digest, {"count": np.asarray(count)})
    if isinstance(source, BasinBlocks):
        Storage(source.scratch_url).remove(".")
    return count


# numbers --------------------------------------------------------------------------------------------------------------


def _numbers_of_pieces(sizes: Int64, objects: ObjectRule, spacing: Spacing) -> Numbers:
    """Return the number of each component 0…n, which come in the order of their first voxels: 0 for the background."""
    stays = sizes >= objects.least_voxels(spacing)
    stays[0] = False
    return np.where(stays, np.cumsum(stays), 0).astype(np.uint32)


# writing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tables:
    """The number in the volume of each component or basin 0…m of a block."""

    url: str
    digest: str

    def write(self, index: int, numbers: Numbers) -> None:
        write_arrays(Storage(self.url), f"{index:06d}.npz", self.digest, {"numbers": numbers})

    def read(self, index: int) -> Numbers:
        arrays = read_arrays(Storage(self.url), f"{index:06d}.npz", self.digest)
        if arrays is None:
            raise RuntimeError(f"block {index} of {self.url} has no numbers")
        return arrays["numbers"].astype(np.uint32)


class _Labels(Protocol):
    def labels(self, box: Box) -> npt.NDArray[np.integer]: ...


@dataclass(frozen=True)
class _Pieces:
    lookup: Lookup
    reader: ZarrLabels

    def labels(self, box: Box) -> npt.NDArray[np.integer]:
        return label_components(self.reader.read(box), self.lookup.connectivity)[0]


@dataclass(frozen=True)
class _Write:
    source: _Labels
    tables: _Tables
    made: LabelArray
    writing: BlockPass


def _write_block(job: _Write, box: Box) -> Arrays:
    """Write the objects of a block."""
    numbers = job.tables.read(block_index(box, job.writing.shape_zyx, job.writing.block_zyx))
    objects = numbers[job.source.labels(box)] if numbers.any() else np.zeros(box.shape_zyx, np.uint32)
    job.made.write(box, objects)
    return {}
