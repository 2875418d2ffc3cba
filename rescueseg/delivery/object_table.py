"""The table of a delivered volume: a row per object with its size, shape, place, intensities and doubt; out of core.

Blocks are counted in integers and added up, so that no block shows in any figure; memory grows with the objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.folder import MASK
from rescueseg.delivery.label_readers import ZarrLabels
from rescueseg.delivery.object_branches import count_branches
from rescueseg.delivery.object_measures import shape_measures
from rescueseg.delivery.object_numbers import ObjectNumbers, object_numbers
from rescueseg.delivery.object_sums import Int64, ObjectSums, count_objects, join_sums
from rescueseg.delivery.places import ENTROPY, table_path
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.delivery.whole_file import whole_file
from rescueseg.errors import InferenceError
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import Box
from rescueseg.models.predictor import PROBABILITY
from rescueseg.records import Normalisation
from rescueseg.storage import digest_json

_MADE_FOR = b"rescueseg made_for"
_FINE = 2.0**-24
"""In what steps probabilities, and entropies in nats, are counted."""
_STEPS_OF_FLOATS = 22
"""Images of floats are counted in steps of 2⁻²² of their normal range."""
_ROWS = 1 << 16


def write_table(target: TargetVolume, step: Step, classes: Sequence[str]) -> None:
    """Write ``tables/<volume>.parquet``: one row per object.

    Where the rule makes no objects, one row per connected piece of each class of the mask, 26 neighbours, numbered in the
    order of their first voxels z, y, x.

    ================================  ===============================================================================
    volume, id, class                 which object; its class is the one that most of its voxels have
    volume_um3, surface_um2,          see `rescueseg.delivery.object_measures.shape_measures`
    sphericity, axis_1_um…3, z_um,
    y_um, x_um
    mean_probability                  of the class that each voxel was given, tempered
    mean_entropy                      predictive entropy, in nats
    touches_border                    whether it touches a face of the volume, where it may go on
    z0, y0, x0, z1, y1, x1            its bounding box in voxels, ends excluded
    branches, branch_length_um        see `rescueseg.delivery.object_branches`; null for objects that are near to round
    mean_intensity                    of the image; ``mean_channel_0``… where it has several channels. Images of floats
                                      are counted in steps of 2⁻²² of their normal range
    ================================  ===============================================================================

    Parameters
    ----------
    target : TargetVolume
        Its labels must be complete at full resolution.
    step : Step
        Of these passes. A table that was made for the same is left alone.
    classes : sequence of str
        Names of classes 1…K.

    Raises
    ------
    InferenceError
        If the maps hold values that are not finite.
    StorageError
        If a file of the image or of the maps is damaged, or the disk is full.
    """
    made_for = digest_json([step.digest, list(classes), list(target.spacing_um_zyx)])
    if _made_for(target) == made_for:
        return
    numbers = object_numbers(target, step)
    record = target.source.volumes.record(target.volume_id)
    parts = record.normalisation.per_channel or (record.normalisation,)
    units = tuple(1.0 if np.dtype(record.dtype).kind in "iub" else _unit(part) for part in parts)
    job = _Counting(target, numbers, len(classes), units)
    counting = step.run(step.block_pass("objects", target.shape_zyx, target.block_zyx), _count_block, job)
    sums = _join(counting)
    table = _table(target, sums, _branches(target, step, numbers, sums), classes, units)
    table = table.replace_schema_metadata({_MADE_FOR: made_for.encode()})
    with whole_file(target.out.storage, table_path(target.volume_id)) as path:
        pq.write_table(table, path, row_group_size=_ROWS)


def _made_for(target: TargetVolume) -> str | None:
    """Return what the table that is there was made for."""
    storage, path = target.out.storage, table_path(target.volume_id)
    if not storage.exists(path):
        return None
    with storage.fs.open(storage.path(path), "rb") as file:
        metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
    return str(metadata.get(_MADE_FOR, b"").decode())


def _unit(normalisation: Normalisation) -> float:
    """Return in what steps an image of floats is counted."""
    largest = max(abs(normalisation.low), abs(normalisation.high), float(np.finfo(np.float32).tiny))
    return float(2.0 ** (math.ceil(math.log2(largest)) - _STEPS_OF_FLOATS))


# blocks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counting:
    target: TargetVolume
    numbers: ObjectNumbers
    n_classes: int
    units: tuple[float, ...]


def _count_block(job: _Counting, box: Box) -> Arrays:
    target = job.target
    numbers = job.numbers.of_block(box)
    classes = ZarrLabels(target.label_url(MASK), "0").read(box).astype(np.uint8)
    none = [np.zeros(box.shape_zyx, np.int64)] * (2 + len(job.units))
    quantities = _quantities(job, box, classes) if numbers.any() else none
    around = job.numbers.around(box)
    return count_objects(numbers, around, box, target.shape_zyx, classes, job.n_classes, quantities).arrays()


def _quantities(job: _Counting, box: Box, classes: npt.NDArray[np.uint8]) -> list[Int64]:
    """Return probability of the voxels' classes, entropy and intensities, as integers."""
    source = job.target.source
    maps = source.maps.open_several((PROBABILITY, ENTROPY))
    probability = np.asarray(maps[PROBABILITY][(slice(None), *box.slices)], np.float32)
    entropy = np.asarray(maps[ENTROPY][box.slices], np.float32)
    if not (np.isfinite(probability).all() and np.isfinite(entropy).all()):
        raise InferenceError(
            f"the maps hold values that are not finite in {box}",
            where=f"volume {source.volume_id}",
            todo="Delete the maps and run the inference again",
        )
    tempered = temper(probability, job.target.rule.temperature)
    of_class = np.take_along_axis(tempered, classes[np.newaxis].astype(np.intp), axis=0)[0]
    image, channels = source.open_image(), []
    for channel, unit in enumerate(job.units):
        voxels = np.asarray(image[(channel, *box.slices)])
        channels.append(voxels.astype(np.int64) if unit == 1 else _steps(voxels, unit))
    return [_steps(of_class, _FINE), _steps(entropy, _FINE), *channels]


def _steps(values: npt.NDArray[Any], unit: float) -> Int64:
    return np.clip(np.rint(values / np.float64(unit)), -(2.0**32), 2.0**32).astype(np.int64)


# rows -----------------------------------------------------------------------------------------------------------------


def _join(counting: BlockPass) -> ObjectSums:
    ids = np.unique(np.concatenate([result["ids"] for result in counting.results()]))
    return join_sums(counting.results(), ids)


def _branches(
    target: TargetVolume, step: Step, numbers: ObjectNumbers, sums: ObjectSums
) -> tuple[Int64, npt.NDArray[np.float64]]:
    sphericity = shape_measures(sums, target.shape_zyx, target.spacing_um_zyx)["sphericity"]
    return count_branches(numbers, step, sums.ids, sums.low, sums.high, sphericity, target.spacing_um_zyx)


def _table(
    target: TargetVolume,
    sums: ObjectSums,
    branches: tuple[Int64, npt.NDArray[np.float64]],
    classes: Sequence[str],
    units: Sequence[float],
) -> Any:
    means = sums.quantities * np.array([_FINE, _FINE, *units]) / sums.voxels[:, np.newaxis]
    count, length = branches
    number = sums.of_class[:, 1:].argmax(axis=1)
    names = pa.DictionaryArray.from_arrays(pa.array(number.astype(np.int32)), pa.array(list(classes), pa.string()))
    channels = ["mean_intensity"] if len(units) == 1 else [f"mean_channel_{n}" for n in range(len(units))]
    border = (sums.low == 0).any(axis=1) | (sums.high == target.shape_zyx).any(axis=1)
    columns: dict[str, Any] = {
        "volume": pa.repeat(target.volume_id, len(sums.ids)),
        "id": sums.ids,
        "class": names.cast(pa.string()),
        **shape_measures(sums, target.shape_zyx, target.spacing_um_zyx),
        "mean_probability": means[:, 0],
        "mean_entropy": means[:, 1],
        "touches_border": border,
        **{f"{axis}0": sums.low[:, n] for n, axis in enumerate("zyx")},
        **{f"{axis}1": sums.high[:, n] for n, axis in enumerate("zyx")},
        "branches": pa.array(count, mask=count < 0),
        "branch_length_um": pa.array(length, mask=count < 0),
        **{name: means[:, 2 + n] for n, name in enumerate(channels)},
    }
    return pa.table(columns)
