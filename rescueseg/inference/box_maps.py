"""The maps of some boxes of a volume, in memory: read where they are stored, else predicted, to the last bit the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box
from rescueseg.inference.engine import InferenceJob, predict_boxes
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.predictor import OBJECT_PROBABILITY, STAR_DISTANCE
from rescueseg.voxels.peaks import find_peaks

BoxArrays = dict[str, npt.NDArray[np.float32]]
"""By quantity, float32: (z, y, x), or (n, z, y, x) where a map has channels."""


def stored_box_maps(
    stored: VolumeMaps, names: Sequence[str], boxes: Sequence[Box], shape_zyx: ZYX
) -> Iterator[BoxArrays]:
    """Yield the maps of some boxes from a volume's finished ones.

    Parameters
    ----------
    stored : VolumeMaps
        The volume's.
    names : sequence of str
        Which quantities; there must be such maps.
    boxes : sequence of Box
        In the volume.
    shape_zyx : tuple of int
        Of the volume.

    Raises
    ------
    InferenceError
        If the maps are not complete.
    StorageError
        If a file of them is damaged.
    """
    arrays = stored.open_several(names)
    for box in boxes:
        outer = _read_for(box, names, shape_zyx)
        maps = {name: np.asarray(array[(..., *outer.slices)], np.float32) for name, array in arrays.items()}
        yield cut_maps(maps, box.relative_to(outer))


def predicted_box_maps(
    job: InferenceJob, names: Sequence[str], boxes: Sequence[Box], shape_zyx: ZYX
) -> Iterator[BoxArrays]:
    """Yield the maps of some boxes as a model predicts them, rounded as stored ones are.

    Parameters
    ----------
    job : InferenceJob
        Model, volume and settings.
    names : sequence of str
        Which quantities; those that the model does not have are left out.
    boxes : sequence of Box
        In the volume.
    shape_zyx : tuple of int
        Of the volume.

    Raises
    ------
    InferenceError
        As `rescueseg.inference.engine.predict_boxes`.
    """
    dtype = np.dtype(job.inference.map_dtype)
    around = [_read_for(box, names, shape_zyx) for box in boxes]
    for box, outer, maps in zip(boxes, around, predict_boxes(job, around), strict=True):
        rounded = {name: maps[name].astype(dtype).astype(np.float32) for name in names if name in maps}
        yield cut_maps(rounded, box.relative_to(outer))


def _read_for(box: Box, names: Sequence[str], shape_zyx: ZYX) -> Box:
    """Return what is read for a box: where peaks are asked for, a voxel more, for a peak is higher than its neighbours beyond it."""
    return box.expand((1, 1, 1)).clip(shape_zyx) if STAR_DISTANCE in names else box


def cut_maps(maps: Mapping[str, npt.NDArray[np.float32]], inner: Box) -> BoxArrays:
    """Return maps of the box within a larger one; what is said of objects at their peaks alone, as it is stored.

    Parameters
    ----------
    maps : mapping
        By quantity, float32, (…, z, y, x).
    inner : Box
        In voxels of the maps.

    Examples
    --------
    >>> cut_maps({"probability": np.zeros((2, 4, 9, 9), np.float32)}, Box((1, 1, 1), (2, 7, 7)))["probability"].shape
    (2, 2, 7, 7)
    """
    cut = {
        name: np.ascontiguousarray(values[(..., *inner.slices)])
        for name, values in maps.items()
        if name != STAR_DISTANCE
    }
    if STAR_DISTANCE not in maps:
        return cut
    z, y, x = np.nonzero(find_peaks(maps[OBJECT_PROBABILITY][0])[inner.slices])
    rays = maps[STAR_DISTANCE][(slice(None), *inner.slices)]
    kept = np.zeros((*inner.shape_zyx, len(rays)), np.float32)  # memory is taken where something is written
    kept[z, y, x] = rays[:, z, y, x].T
    return cut | {STAR_DISTANCE: np.moveaxis(kept, -1, 0)}
