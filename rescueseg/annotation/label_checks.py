"""Whether labels may be stored: shape, type and values; what only looks odd is in `rescueseg.annotation.label_warnings`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.config import CampaignConfig
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.labels import IGNORE, PatchLabels, class_numbers


def check_labels(labels: npt.NDArray[Any], box: Box, n_classes: int, *, where: str = "labels") -> npt.NDArray[np.uint8]:
    """Return labels as uint8, checked.

    Parameters
    ----------
    labels : ndarray, zyx
        Any integer type, bool, or floats that hold whole numbers (as some tools save).
    box : Box
        The patch they belong to.
    n_classes : int
        Number of classes K.
    where : str
        File or ticket, for the error message.

    Returns
    -------
    ndarray of uint8, zyx
        0 background, 1..K classes, 255 ignore; C order.

    Raises
    ------
    LabelError
        If the shape is not that of the patch, a value is neither 0..K nor 255, or nothing is annotated.
    """
    array = np.asarray(labels)
    if array.shape != box.shape_zyx:
        raise LabelError(
            f"the mask has shape {array.shape}, its patch {box.shape_zyx} (z, y, x)",
            where=where,
            todo="Hand in the mask of this patch, unresampled and uncropped",
        )
    classes = class_numbers(array, n_classes, where)
    if (classes == IGNORE).all():
        raise LabelError(
            "nothing is annotated: every voxel is 255 (ignore)",
            where=where,
            todo="Annotate some voxels, or skip the ticket with a reason",
        )
    return np.ascontiguousarray(classes)


def check_patch(labels: PatchLabels, box: Box, config: CampaignConfig, *, where: str = "labels") -> PatchLabels:
    """Return the labels of a patch, checked against what the campaign annotates.

    Raises
    ------
    LabelError
        As `check_labels`; also if objects are numbered in a campaign of classes, are missing in one of instances, or
        lie elsewhere than their class.
    """
    classes = check_labels(labels.classes, box, config.n_classes, where=where)
    by_objects = config.annotation.labels == "instance"
    if by_objects != (labels.instances is not None):
        raise LabelError(
            "the objects are not numbered"
            if by_objects
            else "the mask numbers objects; this campaign annotates classes",
            where=where,
            todo=f"Hand in {config.annotation.labels} labels",
        )
    if labels.instances is None:
        return PatchLabels(classes)
    ids = np.asarray(labels.instances)
    if ids.shape != box.shape_zyx or ids.dtype.kind not in "ui" or int(ids.min()) < 0 or int(ids.max()) >= 2**32:
        raise LabelError(
            f"the objects are {ids.dtype} of shape {ids.shape}, not whole numbers of shape {box.shape_zyx} (z, y, x)",
            where=where,
            todo="Number the objects of this patch from 1 on",
        )
    if not np.array_equal(ids > 0, (classes != 0) & (classes != IGNORE)):
        raise LabelError(
            "objects and their class do not cover the same voxels",
            where=where,
            todo="Number every voxel of the class, and no other",
        )
    return PatchLabels(classes, np.ascontiguousarray(ids, dtype=np.uint32))
