"""The objects of a holdout box: each is counted once, in the box that its centroid lies in.

A box cuts most objects that are as large as itself, and a fragment is no object: a true one that lies in the box by a
sliver is hardly matched by a mask that is off by a voxel. So truth and prediction are numbered and matched in a larger
region, the box with the guard band of the holdout, in which no patch is offered for annotation: no model has learnt the
labels there. Where the centroid of a true object lies is asked of a still larger part of the truth. A pair is counted where
the true object is.

Where people annotated the box alone, nothing is known beyond it. There an object that a face of the box cuts, and of
which no more than two voxels of the finest axis lie behind that face, is not counted, be it true or predicted. Compared
with all fragments and with the unbiased counting frame of Gundersen (doi:10.1111/j.1365-2818.1977.tb00062.x), whose
matched fragments are still fragments, this comes nearest to the whole volume (`tests/benchmarks/object_counts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.campaign.route import Profile
from rescueseg.evaluation.instances import (
    Booleans,
    Instances,
    Matches,
    Numbers,
    connected_components,
    match_objects,
    renumber_objects,
    splits_and_merges,
)
from rescueseg.evaluation.surface import tolerance_um
from rescueseg.evaluation.truth import HoldoutTruth, Labels
from rescueseg.geometry import ZYX, Box, Spacing, zyx
from rescueseg.labels import IGNORE
from rescueseg.postprocessing.clean import clean
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import HoldoutBox

Faces = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]
"""By axis, whether the first and the last slice of an array are a cut: the volume goes on behind them."""
Maps = Mapping[str, npt.NDArray[np.float32]]
"""By quantity, float32: "probability" (K + 1, z, y, x), background first, and what else a model says of objects."""


@dataclass(frozen=True)
class ObjectMaker:
    """How the objects of a class are made, where a delivery would make other objects than connected pieces.

    It is handed in: making objects is the business of deliveries, and comparing them is all that is done here.

    Parameters
    ----------
    rule : ObjectRule
        The rule, to be written down and said.
    class_index : int
        Class 1…K whose objects are made; those of other classes are connected pieces.
    make : callable
        Given a cleaned mask (uint8, zyx), maps of the same box and its spacing in micrometre, returns numbered objects
        (int, zyx), 0 outside.
    """

    rule: ObjectRule
    class_index: int
    make: Callable[[Labels, Maps, Spacing], Numbers]


@dataclass(frozen=True)
class Predicted:
    """What a model says in and around a box.

    Parameters
    ----------
    region : Box
        Where, in the volume: at least the box's context.
    labels : ndarray of uint8, zyx
        The most probable class.
    maps : mapping
        The maps that objects are made of.
    """

    region: Box
    labels: Labels
    maps: Maps


@dataclass(frozen=True)
class TrueObjects:
    """The true objects in and around a holdout box, and which of them are counted there.

    Parameters
    ----------
    numbers : ndarray of int, zyx
        Numbered from 1, in the region that is compared: see `rescueseg.evaluation.truth.HoldoutTruth.context`.
    counts : ndarray of bool
        By number.
    unknown : ndarray of bool, zyx
        Where the truth is not known.
    inner : Box
        The holdout box within the region.
    faces : tuple
        Cuts of the region.
    thickness_zyx : tuple of int
        Up to which a fragment at the box's face is a sliver, in voxels; asked where nothing is known around the box.
    """

    numbers: Numbers
    counts: Booleans
    unknown: Booleans
    inner: Box
    faces: Faces
    thickness_zyx: ZYX

    @classmethod
    def of(cls, truth: HoldoutTruth, box: HoldoutBox, is_object: Callable[[Labels], Booleans]) -> TrueObjects | None:
        """Read the true objects of a box; None where the truth does not tell objects apart.

        Parameters
        ----------
        truth : HoldoutTruth
            Of all boxes.
        box : HoldoutBox
            Which box.
        is_object : callable
            Where objects may lie, of labels with 255 for unknown: the voxels of a class, say.
        """
        region, wide, volume = truth.context(box), truth.surroundings(box), truth.volumes[box.volume_id]
        numbers, whole = (_true_numbers(truth, box, read, is_object) for read in (region, wide))
        if numbers is None or whole is None:
            return None
        inner, faces = box.box.relative_to(region), _cut_faces(region, volume.shape_zyx)
        tolerance = tolerance_um(volume.spacing_um_zyx)
        thickness = zyx(max(1, round(tolerance / s)) for s in volume.spacing_um_zyx)
        if region == box.box:
            counts = ~slivers(numbers, faces, thickness)
        else:
            is_counted = centroids_inside(whole, box.box.relative_to(wide))[whole][region.relative_to(wide).slices]
            counts = np.zeros(int(numbers.max()) + 1, np.bool_)
            counts[numbers[is_counted]] = True
        unknown = truth.labels_in(box, region) == IGNORE
        return cls(numbers, counts, unknown, inner, faces, thickness)

    def compare(self, prediction: Numbers) -> Instances:
        """Compare predicted objects with these.

        Splits and merges are those of the voxels in the box, by the numbers of the whole region.

        Parameters
        ----------
        prediction : ndarray of int, zyx
            Numbered from 1 in the region, without regard to what is unknown.
        """
        matches = match_objects(prediction, self.numbers, self.unknown)
        found, true, matched, iou = matches.count(self.counts, self._counted(prediction, matches))
        splits, merges = splits_and_merges(prediction[self.inner.slices], self.numbers[self.inner.slices])
        return Instances(found=found, true=true, matched=matched, iou=iou, splits=splits, merges=merges)

    def _counted(self, prediction: Numbers, matches: Matches) -> Booleans:
        """Return which predicted objects without a partner are counted.

        The centroid of one that the region cuts is not known: where more than half of what is seen of it lies in one true
        object, it is counted with that one.
        """
        if self.inner.shape_zyx == self.numbers.shape:
            return ~slivers(prediction, self.faces, self.thickness_zyx)
        counted = centroids_inside(prediction, self.inner)
        is_in = 2 * matches.shared > matches.predicted_sizes[matches.predicted_index]
        is_in &= _touching(prediction, self.faces)[matches.predicted_index]
        counted[matches.predicted_index[is_in]] = self.counts[matches.true_index[is_in]]
        return counted


def box_objects(
    truth: HoldoutTruth,
    box: HoldoutBox,
    predicted: Predicted,
    profile: tuple[Profile, float],
    n_classes: int,
    maker: ObjectMaker | None = None,
) -> list[tuple[Instances, Instances] | None]:
    """Compare the objects of each class with the true ones; None where the truth does not tell objects apart.

    Objects are made of the mask after clean-up, in all of the region that was predicted, and then cut to the context of the
    box, as those of a delivery are: parts of an object that lie apart there count as several. Without a maker, and of the
    other classes, they are the connected pieces. With the result goes what a perfect mask would get: the connected pieces
    of the class in truth after the same clean-up. Connected pieces can do no better where objects touch.

    Parameters
    ----------
    truth : HoldoutTruth
        Of all boxes.
    box : HoldoutBox
        Which box.
    predicted : Predicted
        Labels and maps.
    profile : tuple
        See `rescueseg.postprocessing.clean.clean`.
    n_classes : int
        K.
    maker : ObjectMaker, optional
        How the objects of a class are made.

    Returns
    -------
    list of (Instances, Instances)
        Of the prediction, and of the perfect mask; per class 1…K.
    """
    if not truth.tells_objects(box):
        return [None] * n_classes
    spacing = truth.volumes[box.volume_id].spacing_um_zyx
    context = truth.context(box)
    labels, inside = truth.labels_in(box, context), context.relative_to(predicted.region).slices
    perfect = clean(np.where(labels == IGNORE, 0, labels).astype(np.uint8), spacing, *profile)
    mask = clean(predicted.labels, spacing, *profile)
    scores: list[tuple[Instances, Instances] | None] = []
    for c in range(1, n_classes + 1):
        true = TrueObjects.of(truth, box, lambda labels, c=c: labels == c)  # type: ignore[misc]
        if true is None:
            scores.append(None)
            continue
        if maker is not None and maker.class_index == c:
            made = renumber_objects(maker.make(mask, predicted.maps, spacing)[inside])
        else:
            made = connected_components(mask[inside] == c)
        scores.append((true.compare(made), true.compare(connected_components(perfect == c))))
    return scores


def centroids_inside(numbers: Numbers, inner: Box) -> Booleans:
    """Return by number whether the centroid of an object lies in a box; a centroid between two boxes lies in the latter.

    Parameters
    ----------
    numbers : ndarray of int, zyx
        Numbered objects, 0 background, whose value says nothing.
    inner : Box
        In voxels of the array.

    Examples
    --------
    Of three objects in a row, the second reaches into the box:

    >>> centroids_inside(np.array([[[1, 1, 2, 2, 2, 0, 3]]]), Box((0, 0, 4), (1, 1, 3))).tolist()[1:]
    [False, False, True]
    """
    count = int(numbers.max()) + 1
    sizes = np.maximum(np.bincount(numbers.ravel(), minlength=count), 1)
    inside = np.ones(count, np.bool_)
    for axis, (start, stop) in enumerate(zip(inner.offset_zyx, inner.stop_zyx, strict=True)):
        places = np.arange(numbers.shape[axis], dtype=np.float64).reshape([-1 if a == axis else 1 for a in range(3)])
        weights = np.broadcast_to(places, numbers.shape).ravel()
        centroids = np.bincount(numbers.ravel(), weights=weights, minlength=count) / sizes
        inside &= (centroids >= start - 0.5) & (centroids < stop - 0.5)
    return inside


def slivers(numbers: Numbers, faces: Faces, thickness_zyx: ZYX) -> Booleans:
    """Return by number which objects a face cuts so that no more than a thickness of them is left behind it.

    Examples
    --------
    The array is cut in front of its first column. Of two objects there, one is two voxels deep; another ends with the
    volume:

    >>> numbers = np.array([[[1, 1, 0, 0, 0], [2, 2, 2, 0, 3]]])
    >>> slivers(numbers, ((False, False), (False, False), (True, False)), (1, 2, 2)).tolist()[1:]
    [True, False, False]
    """
    result = np.zeros(int(numbers.max()) + 1, np.bool_)
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        if place is None:
            continue
        for extent, (low, high), length, thickness in zip(place, faces, numbers.shape, thickness_zyx, strict=True):
            is_cut = (low and extent.start == 0) or (high and extent.stop == length)
            result[number] |= is_cut and extent.stop - extent.start <= thickness
    return result


def _true_numbers(
    truth: HoldoutTruth, box: HoldoutBox, region: Box, is_object: Callable[[Labels], Booleans]
) -> Numbers | None:
    numbered = truth.objects_in(box, region)
    if numbered is None:
        return None
    labels = truth.labels_in(box, region)
    return renumber_objects(np.where(is_object(labels) & (labels != IGNORE), numbered, 0))


def _cut_faces(region: Box, shape_zyx: ZYX) -> Faces:
    z, y, x = (
        (start > 0, stop < length)
        for start, stop, length in zip(region.offset_zyx, region.stop_zyx, shape_zyx, strict=True)
    )
    return z, y, x


def _touching(numbers: Numbers, faces: Faces) -> Booleans:
    """Return by number which objects touch a cut face."""
    result = np.zeros(int(numbers.max()) + 1, np.bool_)
    for axis, (low, high) in enumerate(faces):
        for is_cut, index in ((low, 0), (high, -1)):
            if is_cut:
                result[np.unique(np.take(numbers, index, axis))] = True
    return result
