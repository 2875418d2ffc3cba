"""Evaluates a generation on the holdout, box by box."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.route import TRIAGE_SUMMARY, Profile, profile_of
from rescueseg.evaluation.box_objects import box_objects
from rescueseg.evaluation.instances import Instances
from rescueseg.evaluation.leak_check import require_model, require_own_maps, require_unseen
from rescueseg.evaluation.metrics import (
    CALIBRATION_BINS,
    UNCERTAINTY_BINS,
    BinnedCounts,
    Bins,
    count_voxels,
    mean_over_classes,
)
from rescueseg.evaluation.pooled import part_score
from rescueseg.evaluation.scores import FORMAT, BoxScore, ClassDetail, Evaluation, mean_of_known
from rescueseg.evaluation.surface import surface_scores
from rescueseg.evaluation.topology import compare_topology
from rescueseg.evaluation.truth import HoldoutTruth, Labels, holdout_truth
from rescueseg.geometry import Patch, Spacing
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import IGNORE, most_likely
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, ModelReference

BoxMaps = tuple[HoldoutBox, npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""A box, the probability of its context, and the predictive entropy in the box itself; see `score_box`."""


@dataclass(frozen=True)
class Assignment:
    """What is to be evaluated: checked, nothing computed yet.

    Parameters
    ----------
    model : ModelReference
        Which model.
    truth : HoldoutTruth
        On which boxes, and what is right there.
    classes : tuple of str
        The campaign's, without the background.
    profile : tuple
        How masks are cleaned before objects are compared: see `rescueseg.campaign.route.profile_of`.
    """

    model: ModelReference
    truth: HoldoutTruth
    classes: tuple[str, ...]
    profile: tuple[Profile, float]

    @property
    def boxes(self) -> tuple[HoldoutBox, ...]:
        """The boxes to be scored."""
        return self.truth.boxes


def assign(campaign: Campaign, model: ModelReference, truth: HoldoutTruth) -> Assignment:
    """Return the evaluation of a model by a campaign's settings."""
    profile = profile_of(campaign.config, campaign.records.read(TRIAGE_SUMMARY))
    return Assignment(model, truth, tuple(campaign.config.classes), profile)


def check_evaluation(campaign: Campaign, generation: int, places: Collection[Patch] | None = None) -> Assignment:
    """Make sure that a generation can be evaluated, and on what; reads no image.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout and the generation's maps.
    generation : int
        Which one.
    places : collection of Patch, optional
        Where the boxes lie that are to be scored; all when omitted.

    Raises
    ------
    EvaluationError
        If there is no holdout, no model, no truth for some boxes (they are named), or the maps are another model's.
    InferenceError
        If the maps are not complete.
    LeakError
        If a box was read by a training; see `rescueseg.evaluation.leak_check`.
    """
    truth, folder = holdout_truth(campaign), campaign.generation(generation)
    model = require_model(folder)
    if places is not None:
        truth = truth.only([box for box in truth.boxes if box.patch in places])
    require_unseen(folder, truth.boxes, campaign.volumes.shared_places(truth.records))
    require_own_maps(folder, model, truth.boxes)
    return assign(campaign, model, truth)


def evaluate_generation(
    campaign: Campaign,
    generation: int,
    progress: CountProgress | None = None,
    places: Collection[Patch] | None = None,
) -> Evaluation:
    """Compare a generation's probability maps with the truth of the holdout boxes; see `score_boxes`.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout and the generation's maps.
    generation : int
        Which one.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    places : collection of Patch, optional
        As in `check_evaluation`.

    Raises
    ------
    RescuesegError
        As `check_evaluation`.
    """
    assignment = check_evaluation(campaign, generation, places)
    return score_boxes(assignment, stored_maps(campaign.generation(generation), assignment.truth), progress)


def score_boxes(assignment: Assignment, maps: Iterable[BoxMaps], progress: CountProgress | None = None) -> Evaluation:
    """Score boxes as their maps come.

    Boxes are read one at a time. The predicted class is the most probable one. Dice, IoU, precision and recall come from
    counts pooled over the boxes of a part; a class that neither truth nor prediction holds has no score in a box and is left
    out of means over classes. Surface Dice and HD95 are means over the boxes that have one (see
    `rescueseg.evaluation.surface.surface_scores`). Objects are the connected components of the
    predicted class after the route's clean-up (`rescueseg.postprocessing.clean`), each counted in one box
    (`rescueseg.evaluation.box_objects`).

    Parameters
    ----------
    assignment : Assignment
        Model, truth and classes.
    maps : iterable of (HoldoutBox, probability, predictive entropy)
        See `score_box`.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    """
    scores: list[BoxScore] = []
    for box, probability, entropy in maps:
        scores.append(score_box(assignment, box, probability, entropy))
        if progress is not None:
            progress(len(scores), len(assignment.boxes))
    return Evaluation(
        generation=assignment.model.generation,
        model_digest=assignment.model.digest,
        validation=part_score("validation", scores, assignment.classes),
        test=part_score("test", scores, assignment.classes),
        boxes=tuple(scores),
        format=FORMAT,
    )


def stored_maps(generation: GenerationFolder, truth: HoldoutTruth) -> Iterator[BoxMaps]:
    """Yield each box with the probability (K + 1, z, y, x) of its context and its predictive entropy (z, y, x).

    Both are those of the stored maps.
    """
    arrays: dict[str, tuple[zarr.Array[Any], zarr.Array[Any]]] = {}
    for box in truth.boxes:
        if box.volume_id not in arrays:
            maps = VolumeMaps(generation, box.volume_id).open_several(("probability", "predictive_entropy"))
            arrays[box.volume_id] = maps["probability"], maps["predictive_entropy"]
        probability, entropy = arrays[box.volume_id]
        yield (
            box,
            np.asarray(probability[(slice(None), *truth.context(box).slices)], np.float32),
            np.asarray(entropy[box.box.slices], np.float32),
        )


def score_box(
    assignment: Assignment, box: HoldoutBox, probability: npt.NDArray[np.float32], entropy: npt.NDArray[np.float32]
) -> BoxScore:
    """Score one box.

    Parameters
    ----------
    assignment : Assignment
        Truth, classes and clean-up.
    box : HoldoutBox
        Which box.
    probability : ndarray of float32, (K + 1, z, y, x)
        Background first, of the box's context (`HoldoutTruth.context`): objects are compared there, all else in the box.
    entropy : ndarray of float32, zyx
        Predictive entropy in nats.
    """
    k, volume = len(assignment.classes), assignment.truth.volumes[box.volume_id]
    truth, inner = assignment.truth.labels(box), box.box.relative_to(assignment.truth.context(box)).slices
    around = most_likely(probability)
    objects = box_objects(assignment.truth, box, around, assignment.profile, k)
    prediction, probability = around[inner], probability[(slice(None), *inner)]
    has_truth = truth != IGNORE
    right = (prediction == truth)[has_truth]
    counts = count_voxels(prediction, truth, k)
    details = tuple(_detail(prediction, truth, c, volume.spacing_um_zyx, objects[c - 1]) for c in range(1, k + 1))
    return BoxScore(
        volume_id=box.volume_id,
        box=box.box,
        part=box.part,
        stratum=box.stratum,
        voxels=int(right.size),
        errors=int((~right).sum()),
        counts=counts,
        dice=mean_over_classes(counts, "dice"),
        surface_dice=mean_of_known([d.surface_dice for d in details]),
        hd95_um=mean_of_known([d.hd95_um for d in details]),
        uncertainty=float(entropy[has_truth].mean()) if right.size else 0.0,
        truth_digest=assignment.truth.digest(box),
        domain=volume.domain,
        details=details,
        calibration=_count_in_bins(Bins(CALIBRATION_BINS, 1.0), probability.max(axis=0)[has_truth], right),
        entropies=_count_in_bins(Bins(UNCERTAINTY_BINS, math.log(k + 1), "logit"), entropy[has_truth], right),
    )


def _detail(
    prediction: Labels,
    truth: Labels,
    class_index: int,
    spacing: Spacing,
    objects: tuple[Instances, Instances] | None,
) -> ClassDetail:
    surfaces, has_truth = surface_scores(prediction, truth, class_index, spacing), truth != IGNORE
    instances, ceiling = objects or (None, None)
    return ClassDetail(
        surface_dice=None if surfaces is None else surfaces.dice,
        hd95_um=None if surfaces is None else surfaces.hd95_um,
        topology=compare_topology((prediction == class_index) & has_truth, truth == class_index),
        instances=instances,
        ceiling=ceiling,
    )


def _count_in_bins(bins: Bins, values: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> BinnedCounts:
    bins.add(values, right)
    return bins.result()
