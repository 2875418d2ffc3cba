"""Warnings about labels: slips that a person would want to hear of, and can overrule.

Pure functions on arrays. Each looks at one class at a time, or at one object where objects are numbered. The thresholds are
set so that correct labels of real volumes seldom get a warning; ``tests/benchmarks/label_checks.py`` measures how seldom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.annotation.client import LabelWarning
from rescueseg.geometry import ZYX
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.voxels.components import fill_holes, label_components

Mask = npt.NDArray[np.bool_]

SURE = 0.2
"""Entropy of a sure model, as a share of the largest possible one: 0.2 of it is a probability of 0.97 with two classes."""
SURE_VOXELS = 64
"""Fewer sure voxels may be an error of the model: 64 are a ball five voxels across."""
SPECK_VOXELS = 8
"""A speck has at most 2 x 2 x 2 voxels: what one careless click of the smallest brush leaves."""
SPECK_SHARE = 0.01
"""And at most a hundredth of the largest object of its class: small objects among small ones are no specks."""
GAP_VOXELS = 16
"""A missing plane is seen where at least 4 x 4 voxels continue above and below."""
GAP_LIKENESS = 0.6
"""Overlap (intersection over union) of the planes above and below a gap: one object, not two that touch."""
HOLE_SHARE = 0.05
"""A hole has at most a twentieth of the size of the object around it; larger ones are lumens, drawn as such."""
CUT_LIKENESS = 0.9
"""Overlap of the last two planes of what ends one voxel before the border: a straight cut, not a rounded end."""
CUT_VOXELS = 36
"""Smallest cut that is checked: 6 x 6 voxels."""
IGNORE_VOXELS = 64
"""A region that is left out on purpose is larger than 4 x 4 x 4 voxels, or reaches the border."""


def label_warnings(
    labels: PatchLabels,
    start: PatchLabels,
    prediction: npt.NDArray[np.uint8] | None = None,
    uncertainty: npt.NDArray[np.float32] | None = None,
    n_classes: int = 1,
) -> list[LabelWarning]:
    """Return warnings about the labels of a patch.

    Parameters
    ----------
    labels : PatchLabels, zyx
        The labels to hand in.
    start : PatchLabels, zyx
        The mask it started from.
    prediction : ndarray of uint8, zyx, optional
        The latest model's classes.
    uncertainty : ndarray of float32, zyx, optional
        Its predictive entropy in nats.
    n_classes : int
        Number of classes K.

    Returns
    -------
    list of LabelWarning
        One per code and class at most.
    """
    warnings = [*unchanged(labels, start, prediction), *two_values(labels, start)]
    if prediction is not None and uncertainty is not None:
        warnings += empty(labels.classes, prediction, uncertainty, n_classes)
    for value in range(1, n_classes + 1):
        mask = labels.classes == value
        if mask.any():
            objects = label_components(mask, 26)[0] if labels.instances is None else labels.instances
            warnings += specks(objects)
            warnings += z_gaps(objects, labels.ignore)
            warnings += holes(objects, labels.classes == 0)
            warnings += cut_at_border(mask, labels.ignore)
    return warnings + ignore_holes(labels.ignore)


def unchanged(
    labels: PatchLabels, start: PatchLabels, prediction: npt.NDArray[np.uint8] | None = None
) -> list[LabelWarning]:
    """Warn of labels that are those of the start, or of the prediction, voxel for voxel."""
    if labels == start:
        return [LabelWarning(code="unchanged", message="the mask is as it was handed out")]
    if prediction is not None and np.array_equal(labels.classes, prediction) and prediction.any():
        return [LabelWarning(code="unchanged", message="the mask is the model's prediction, voxel for voxel")]
    return []


def two_values(labels: PatchLabels, start: PatchLabels) -> list[LabelWarning]:
    """Warn of masks of 0 and 255, as Fiji saves them: here 255 is "not annotated", or object 255."""
    if labels.instances is not None:
        numbers = np.unique(labels.instances)
        before = () if start.instances is None else np.unique(start.instances)
        if numbers[numbers > 0].tolist() == [IGNORE] and IGNORE not in before:
            message = "all that is drawn is object 255: number the objects, 1 to n"
            return [_warning("two_values", message, labels.instances == IGNORE)]
        return []
    if set(np.unique(labels.classes).tolist()) == {0, IGNORE} and not np.array_equal(labels.ignore, start.ignore):
        message = (
            "nothing is drawn but 255, which means 'not annotated' here: a mask of 0 and 255 has to become 0 and 1"
        )
        return [_warning("two_values", message, labels.ignore)]
    return []


def empty(
    classes: npt.NDArray[np.uint8],
    prediction: npt.NDArray[np.uint8],
    uncertainty: npt.NDArray[np.float32],
    n_classes: int,
) -> list[LabelWarning]:
    """Warn of classes of which nothing is drawn although the model is sure of many voxels."""
    sure = (uncertainty < SURE * math.log(n_classes + 1)) & (classes != IGNORE)
    warnings = []
    for value in range(1, n_classes + 1):
        missing = sure & (prediction == value)
        if not (classes == value).any() and np.count_nonzero(missing) >= SURE_VOXELS:
            message = f"nothing of class {value} is drawn where the model is sure of it"
            warnings.append(_warning("empty", message, missing))
    return warnings


def specks(objects: npt.NDArray[Any]) -> list[LabelWarning]:
    """Warn of stray voxels: connected bits that are tiny beside the largest object, and not cut off by the border."""
    bits = _bits(objects)
    sizes = np.bincount(bits.ravel())
    sizes[0] = 0
    tiny = (sizes > 0) & (sizes <= min(SPECK_VOXELS, SPECK_SHARE * int(sizes.max(initial=0))))
    tiny[_at_border(bits)] = False
    return _warnings("specks", "stray bits of up to 8 voxels: {count}", tiny[bits], int(tiny.sum()))


def _bits(objects: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the connected parts of all objects, numbered: an object in two pieces counts as two."""
    parts = np.zeros(objects.shape, np.int32)
    count = 0
    for value, box in _boxes(objects):
        pieces, n_pieces = label_components(objects[box] == value, 26)
        parts[box] = np.where(pieces > 0, pieces + count, parts[box])
        count += n_pieces
    return parts


def _boxes(objects: npt.NDArray[Any]) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Yield each object's number and bounding box."""
    values, index = np.unique(objects, return_inverse=True)
    dense = index.reshape(objects.shape) + (0 if values[0] == 0 else 1)
    numbers = values[values > 0].tolist()
    for value, box in zip(numbers, ndimage.find_objects(dense), strict=True):
        yield int(value), box


def _at_border(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the numbers at the faces of a patch."""
    faces = [np.take(bits, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return np.unique(np.concatenate(faces))


def z_gaps(objects: npt.NDArray[Any], ignore: Mask) -> list[LabelWarning]:
    """Warn of planes that are missing inside an object: much the same shape above and below, nothing between."""
    gaps = np.zeros(objects.shape, np.bool_)
    for z in range(1, objects.shape[0] - 1):
        if objects[z - 1].any() and objects[z + 1].any():
            gaps[z] = _gap(objects[z - 1], objects[z + 1], (objects[z] == 0) & ~ignore[z])
    planes = np.flatnonzero(gaps.any(axis=(1, 2))).tolist()
    return _warnings("z_gap", f"an object is interrupted in plane {', '.join(map(str, planes[:5]))}", gaps, len(planes))


def _gap(above: npt.NDArray[Any], below: npt.NDArray[Any], nothing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where a plane is empty between two cross-sections that are much alike."""
    gap = np.zeros(nothing.shape, np.bool_)
    pieces = _plane_components((above > 0) & (below > 0) & nothing)
    upper, lower = _plane_components(above > 0), _plane_components(below > 0)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        piece = pieces[box] == number
        area = int(np.count_nonzero(piece))
        if area < GAP_VOXELS:
            continue
        sides = np.isin(upper, np.unique(upper[box][piece])) | np.isin(lower, np.unique(lower[box][piece]))
        if area >= GAP_LIKENESS * np.count_nonzero(sides):
            gap[box] |= piece
    return gap


def _plane_components(plane: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return the connected components of a plane (yx), numbered; corners do not connect."""
    return np.asarray(label_components(plane[np.newaxis], 6)[0][0])


def holes(objects: npt.NDArray[Any], background: Mask) -> list[LabelWarning]:
    """Warn of background that an object encloses on all sides, if it is small beside the object.

    Parameters
    ----------
    objects : ndarray of integers, zyx
        Object numbers, 0 background.
    background : ndarray of bool, zyx
        Where holes count; voxels that were not annotated are no holes.

    Examples
    --------
    A cube of 3 × 3 × 3 voxels without its middle voxel:

    >>> cube = np.ones((3, 3, 3), np.uint8)
    >>> cube[1, 1, 1] = 0
    >>> [warning.at_zyx for warning in holes(cube, cube == 0)]
    [(1, 1, 1)]
    """
    unfilled = np.zeros(objects.shape, np.bool_)
    count = 0
    for value, box in _boxes(objects):
        mask = objects[box] == value
        inside, number = label_components(fill_holes(mask) & ~mask, 6)
        if number:
            small = np.bincount(inside.ravel()) <= HOLE_SHARE * np.count_nonzero(mask)
            small[0] = False
            empty_inside = small[inside] & background[box]
            unfilled[box] |= empty_inside
            count += len(np.unique(inside[empty_inside]))
    return _warnings("holes", "holes inside objects that are not filled: {count}", unfilled, count)


def cut_at_border(mask: Mask, ignore: Mask) -> list[LabelWarning]:
    """Warn of labels that end straight, one voxel before a face of the patch."""
    names = ("z", "y", "x")
    warnings: list[LabelWarning] = []
    for axis in range(3):
        if mask.shape[axis] < 4:
            continue
        for side, (face, last, before) in {"first": (0, 1, 2), "last": (-1, -2, -3)}.items():
            cut = _cut(*(np.take(array, n, axis) for array, n in ((mask, face), (mask, last), (mask, before))))
            cut &= ~np.take(ignore, face, axis)
            if cut.any():
                where = np.zeros(mask.shape, np.bool_)
                where[tuple(last if a == axis else slice(None) for a in range(3))] = cut
                message = f"labels end straight, one voxel before the {side} plane in {names[axis]}"
                warnings.append(_warning("cut_at_border", message, where))
    return warnings[:1]


def _cut(
    face: npt.NDArray[np.bool_], last: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return the cross-sections that the plane before continues and the face does not, if nothing reaches the face."""
    nothing = np.zeros(face.shape, np.bool_)
    if face.any() or np.count_nonzero(last) < CUT_VOXELS:
        return nothing
    either = np.count_nonzero(last | before)
    return last.copy() if np.count_nonzero(last & before) >= CUT_LIKENESS * either else nothing


def ignore_holes(ignore: Mask) -> list[LabelWarning]:
    """Warn of small places inside a patch that were not annotated: probably forgotten."""
    if not ignore.any():
        return []
    places, _ = label_components(ignore, 26)
    sizes = np.bincount(places.ravel())
    small = sizes <= IGNORE_VOXELS
    small[_at_border(places)] = False
    small[0] = False
    return _warnings("ignore_holes", "small places that are not annotated: {count}", small[places], int(small.sum()))


def _warnings(code: str, message: str, where: Mask, count: int) -> list[LabelWarning]:
    return [_warning(code, message.format(count=count), where)] if count else []


def _warning(code: str, message: str, where: Mask) -> LabelWarning:
    first: ZYX = tuple(int(n) for n in np.argwhere(where)[0])  # type: ignore[assignment]
    return LabelWarning(code=code, message=message, voxels=int(np.count_nonzero(where)), at_zyx=first)
