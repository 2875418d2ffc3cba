"""What a rule is chosen on: the maps of a model around the validation boxes, and the truth inside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.evaluation.truth import HoldoutTruth
from rescueseg.geometry import Box, Floats, Spacing
from rescueseg.inference.box_maps import BoxArrays, predicted_box_maps, stored_box_maps
from rescueseg.inference.engine import InferenceJob
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import IGNORE
from rescueseg.models.predictor import BORDER_DISTANCE, FLOW, OBJECT_PROBABILITY, PROBABILITY, STAR_DISTANCE
from rescueseg.postprocessing.mask_steps import at_faces
from rescueseg.postprocessing.object_rule import OBJECT_MARGIN, with_margin
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, ModelReference
from rescueseg.storage import digest_json
from rescueseg.voxels.components import label_components

MOST_VOXELS = 8_000_000
"""Of the maps that a choice reads, margins included: of more, narrower margins are read, then every so many boxes."""
MARGIN = 0.002
"""By so much a setting must be better than what is simpler."""
_LEAST_FOR_ERROR = 2
"""Boxes by which a standard error can be told."""
_MARGINS = (OBJECT_MARGIN, 8, 4, 0)
"""In multiples of the finest voxel size: a piece that a box's face cuts is seen larger than the box."""
_LEAST_PIECES = 3


@dataclass(frozen=True)
class Tried:
    """How well a setting did.

    Parameters
    ----------
    score : float
        On all boxes together.
    without : ndarray of float64, (boxes,)
        On all but one of them, for each box.
    """

    score: float
    without: Floats

    def is_better(self, than: Tried) -> bool:
        """Tell whether this is better than what is simpler: by `MARGIN`, and by more than the standard error of the difference.

        The error is the jackknife's (Efron & Stein 1981, doi:10.1214/aos/1176345462), over the boxes: what a single box speaks
        for is not taken for better. One standard error is what Breiman et al. ask of a choice (CART, 1984).

        Examples
        --------
        Better on every box, and better on one of them alone:

        >>> plain = Tried(0.80, np.array([0.80, 0.80, 0.80, 0.80]))
        >>> Tried(0.82, np.array([0.82, 0.82, 0.82, 0.82])).is_better(plain)
        True
        >>> Tried(0.82, np.array([0.80, 0.83, 0.83, 0.83])).is_better(plain)
        False
        """
        gain, count = self.score - than.score, len(self.without)
        if count < _LEAST_FOR_ERROR:
            return gain >= MARGIN
        differences = self.without - than.without
        error = math.sqrt((count - 1) / count * float(np.sum((differences - differences.mean()) ** 2)))
        return gain >= max(MARGIN, error)


@dataclass(frozen=True)
class ValidationBox:
    """A validation box.

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    maps : dict
        By quantity, float32: "probability" (K + 1, z, y, x), and what the model has of "border_distance", "flow",
        "object_probability" and "star_distance"; with a margin.
    inner : tuple of slice
        Where the box lies in the maps.
    truth : ndarray of uint8, zyx
        Classes in the box, 255 unknown.
    objects : ndarray of int, zyx, or None
        Numbered objects in the box, where the truth tells them apart.
    whole : bool
        Whether box and margin are at least half of the volume.
    """

    spacing_um_zyx: Spacing
    maps: dict[str, npt.NDArray[np.float32]]
    inner: tuple[slice, slice, slice]
    truth: npt.NDArray[np.uint8]
    objects: npt.NDArray[Any] | None
    whole: bool


@dataclass(frozen=True)
class StructureSize:
    """How large the structures of a class are in truth.

    Parameters
    ----------
    thickness_um : float
        Twice the median distance to the border along the middle.
    piece_um3 : float
        Median volume of a connected piece.
    """

    thickness_um: float
    piece_um3: float


def validation_digest(truth: HoldoutTruth) -> str:
    """Return the digest of boxes and their truth, numbered objects included; empty where there is no box."""
    return digest_json([[box.to_json(), truth.digest(box)] for box in truth.boxes]) if truth.boxes else ""


def read_validation(
    campaign: Campaign,
    model: ModelReference,
    truth: HoldoutTruth,
    *,
    stored: bool,
    progress: CountProgress | None = None,
) -> list[ValidationBox]:
    """Read the validation boxes, at most `MOST_VOXELS` of their maps.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    model : ModelReference
        Whose maps.
    truth : HoldoutTruth
        Of the validation boxes alone. Of what lies around a box the maps alone are read.
    stored : bool
        Whether those of the model's generation are read where they are complete; else, and for a training outside the loop,
        it is what the model predicts here, to the last bit the same.
    progress : callable, optional
        Called with (boxes read, boxes in all).

    Raises
    ------
    RescuesegError
        If a file of maps or truth is damaged, or the model cannot be loaded.
    """
    boxes = [box for box in truth.boxes if (truth.labels(box) != IGNORE).any()]
    result, all_pairs = list[ValidationBox](), _within_limit(boxes, truth)
    for volume_id, group in itertools.groupby(all_pairs, key=lambda pair: pair[0].volume_id):
        pairs, volume = list(group), truth.volumes[volume_id]
        maps_of_boxes = _maps(campaign, model, volume_id, [b for _, b in pairs], stored=stored)
        for (box, around), maps in zip(pairs, maps_of_boxes, strict=True):
            result.append(
                ValidationBox(
                    spacing_um_zyx=volume.spacing_um_zyx,
                    maps=maps,
                    inner=box.box.relative_to(around).slices,
                    truth=truth.labels(box),
                    objects=truth.objects(box),
                    whole=2 * around.size >= math.prod(volume.shape_zyx),
                )
            )
            if progress is not None:
                progress(len(result), len(all_pairs))
    return result


def _within_limit(boxes: Sequence[HoldoutBox], truth: HoldoutTruth) -> list[tuple[HoldoutBox, Box]]:
    """Return boxes with what is read around them; at least one box, however large."""
    pairs: list[tuple[HoldoutBox, Box]] = []
    for margin in _MARGINS:
        pairs = [(box, _around(box, truth, margin)) for box in boxes]
        voxels = sum(around.size for _, around in pairs)
        if voxels <= MOST_VOXELS:
            return pairs
    return pairs[:: -(-voxels // MOST_VOXELS)]


def _around(box: HoldoutBox, truth: HoldoutTruth, margin: int) -> Box:
    volume = truth.volumes[box.volume_id]
    return with_margin(box.box, margin, volume.spacing_um_zyx, volume.shape_zyx)


def _maps(
    campaign: Campaign, model: ModelReference, volume_id: str, boxes: Sequence[Box], *, stored: bool
) -> Iterator[BoxArrays]:
    """Yield the maps of some boxes of a volume, by quantity."""
    names = (PROBABILITY, BORDER_DISTANCE, FLOW, OBJECT_PROBABILITY, STAR_DISTANCE)
    shape = campaign.volumes.record(volume_id).shape_zyx
    maps = _stored(campaign, model, volume_id) if stored else None
    if maps is not None:
        held = maps.finished().quantities
        return stored_box_maps(maps, [name for name in names if name in held], boxes, shape)
    return predicted_box_maps(InferenceJob.of(campaign, model, volume_id), names, boxes, shape)


def _stored(campaign: Campaign, model: ModelReference, volume_id: str) -> VolumeMaps | None:
    maps = VolumeMaps(campaign.generation(model.generation), volume_id)
    reference = maps.reference()
    return maps if reference is not None and reference.model_digest == model.digest else None


def structure_size(boxes: Sequence[ValidationBox], class_index: int) -> StructureSize | None:
    """Measure a class in the truth of the boxes; None where it does not occur.

    Pieces that a box cuts count only where there are fewer than three others.
    """
    depths, inside, cut = [], list[float](), list[float]()
    for box in boxes:
        mask = box.truth == class_index
        if not mask.any():
            continue
        padded = np.pad(mask, 1, mode="edge")  # the box's faces are no border of the structure
        if not padded.all():
            depth = ndimage.distance_transform_edt(padded, sampling=box.spacing_um_zyx)
            depths.append(depth[padded & (depth >= ndimage.maximum_filter(depth, 3))])
        pieces, count = label_components(mask, 26)
        sizes, faces = np.bincount(pieces.ravel(), minlength=count + 1), at_faces(pieces, count)
        voxel = math.prod(box.spacing_um_zyx)
        for number in range(1, count + 1):
            (cut if faces[number] else inside).append(float(sizes[number]) * voxel)
    if not depths:
        return None
    volumes = inside if len(inside) >= _LEAST_PIECES else inside + cut
    return StructureSize(2 * float(np.median(np.concatenate(depths))), float(np.median(volumes)))
