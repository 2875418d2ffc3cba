"""Evaluates a generation on the holdout, box by box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import profile_of
from rescueseg.evaluation.instances import Instances, compare_instances, connected_components, renumber_objects
from rescueseg.evaluation.leak_check import require_model, require_own_maps, require_unseen
from rescueseg.evaluation.metrics import (
    CALIBRATION_BINS,
    UNCERTAINTY_BINS,
    BinnedCounts,
    Bins,
    count_voxels,
    mean_over_classes,
)
from rescueseg.evaluation.scores import FORMAT, BoxScore, ClassDetail, Evaluation, mean_pairs, part_score
from rescueseg.evaluation.surface import surface_scores
from rescueseg.evaluation.topology import compare_topology
from rescueseg.evaluation.truth import Labels, TruthReader, holdout_boxes, open_truths
from rescueseg.geometry import Spacing
from rescueseg.inference.maps import open_map
from rescueseg.labels import IGNORE
from rescueseg.postprocessing.clean import clean
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox

BoxMaps = tuple[HoldoutBox, npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Assignment:
    """What is to be evaluated: checked, nothing computed yet.

    Parameters
    ----------
    generation : int
        Whose model.
    model_digest : str
        Its digest.
    boxes : tuple of HoldoutBox
        On which boxes.
    read_truth : callable
        Reads the truth of one.
    """

    generation: int
    model_digest: str
    boxes: tuple[HoldoutBox, ...]
    read_truth: TruthReader


def check_evaluation(campaign: Campaign, generation: int) -> Assignment:
    """Make sure that a generation can be evaluated, and on what; reads no image.

    Raises
    ------
    EvaluationError
        If there is no holdout, no model, no truth for some boxes (they are named), or the maps are another model's.
    InferenceError
        If the maps are not complete.
    LeakError
        If a box was read by a training; see `rescueseg.evaluation.leak_check`.
    """
    boxes = holdout_boxes(campaign)
    read_truth = open_truths(campaign, boxes)
    model = require_model(campaign, generation)
    require_unseen(campaign, generation, boxes)
    require_own_maps(campaign, model, boxes)
    return Assignment(generation, model.digest, boxes, read_truth)


def evaluate_generation(campaign: Campaign, generation: int, progress: CountProgress | None = None) -> Evaluation:
    """Compare a generation's probability maps with the truth of the holdout boxes.

    Boxes are read one at a time. The predicted class is the most probable one. Dice, IoU, precision and recall come from
    counts pooled over the boxes of a part; a class that neither truth nor prediction holds scores 1 in a box and is left
    out of means over classes. Surface Dice and HD95 are means over the boxes in which the class occurs (see
    `rescueseg.evaluation.surface.surface_scores`). Objects are the connected components of the
    predicted class after the route's clean-up (`rescueseg.postprocessing.clean`).

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout and the generation's maps.
    generation : int
        Which one.
    progress : callable, optional
        Called with (boxes done, boxes in all).

    Raises
    ------
    RescuesegError
        As `check_evaluation`.
    """
    assignment = check_evaluation(campaign, generation)
    maps = ((box, *read_maps(campaign, generation, box)) for box in assignment.boxes)
    return score_boxes(campaign, assignment, maps, progress)


def score_boxes(
    campaign: Campaign, assignment: Assignment, maps: Iterable[BoxMaps], progress: CountProgress | None = None
) -> Evaluation:
    """Score boxes as their maps come.

    Parameters
    ----------
    campaign : Campaign
        Classes and spacing count.
    assignment : Assignment
        Generation, model, and where the truth is.
    maps : iterable of (HoldoutBox, probability, predictive entropy)
        See `score_box`.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    """
    scores: list[BoxScore] = []
    for box, probability, entropy in maps:
        scores.append(score_box(campaign, box, probability, entropy, assignment.read_truth))
        if progress is not None:
            progress(len(scores), len(assignment.boxes))
    classes = campaign.config.classes
    return Evaluation(
        generation=assignment.generation,
        model_digest=assignment.model_digest,
        validation=part_score("validation", scores, classes),
        test=part_score("test", scores, classes),
        boxes=tuple(scores),
        format=FORMAT,
    )


def read_maps(
    campaign: Campaign, generation: int, box: HoldoutBox
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return probability (K + 1, z, y, x) and predictive entropy (z, y, x) of a box."""
    where = box.box.slices
    probability = open_map(campaign, generation, box.volume_id, "probability")[(slice(None), *where)]
    entropy = open_map(campaign, generation, box.volume_id, "predictive_entropy")[where]
    return np.asarray(probability, np.float32), np.asarray(entropy, np.float32)


def score_box(
    campaign: Campaign,
    box: HoldoutBox,
    probability: npt.NDArray[np.float32],
    entropy: npt.NDArray[np.float32],
    read_truth: TruthReader,
) -> BoxScore:
    """Score one box.

    Parameters
    ----------
    campaign : Campaign
        Classes, spacing and instance truth count.
    box : HoldoutBox
        Which box.
    probability : ndarray of float32, (K + 1, z, y, x)
        Background first.
    entropy : ndarray of float32, zyx
        Predictive entropy in nats.
    read_truth : TruthReader
        Reads its labels, and its objects where the truth tells them apart.
    """
    k = campaign.config.n_classes
    volume, truth, numbered = campaign.volume(box.volume_id), read_truth(box), read_truth.objects(box)
    prediction = probability.argmax(axis=0).astype(np.uint8)
    has_truth = truth != IGNORE
    right = (prediction == truth)[has_truth]
    counts = count_voxels(prediction, truth, k)
    objects = (None,) * k if numbered is None else _objects(campaign, box, prediction, truth, numbered)
    details = tuple(_detail(prediction, truth, c, volume.spacing_um_zyx, objects[c - 1]) for c in range(1, k + 1))
    pairs = [None if d.surface_dice is None else (d.surface_dice, d.hd95_um or 0.0) for d in details]
    surface_dice, hd95_um = mean_pairs(pairs) or (None, None)
    return BoxScore(
        volume_id=box.volume_id,
        box=box.box,
        part=box.part,
        stratum=box.stratum,
        voxels=int(right.size),
        errors=int((~right).sum()),
        counts=counts,
        dice=mean_over_classes(counts, "dice"),
        surface_dice=surface_dice,
        hd95_um=hd95_um,
        uncertainty=float(entropy[has_truth].mean()) if right.size else 0.0,
        truth_digest=read_truth.digest(box),
        domain=volume.domain,
        share=box.share,
        details=details,
        calibration=_count_in_bins(Bins(CALIBRATION_BINS, 1.0), probability.max(axis=0)[has_truth], right),
        entropies=_count_in_bins(Bins(UNCERTAINTY_BINS, math.log(k + 1), "logit"), entropy[has_truth], right),
    )


def _detail(
    prediction: Labels, truth: Labels, class_index: int, spacing: Spacing, instances: Instances | None
) -> ClassDetail:
    surface_dice, hd95_um = surface_scores(prediction, truth, class_index, spacing) or (None, None)
    has_truth = truth != IGNORE
    return ClassDetail(
        surface_dice=surface_dice,
        hd95_um=hd95_um,
        topology=compare_topology((prediction == class_index) & has_truth, truth == class_index),
        instances=instances,
    )


def _objects(
    campaign: Campaign, box: HoldoutBox, prediction: Labels, truth: Labels, numbered: npt.NDArray[Any]
) -> Sequence[Instances]:
    """Compare the objects of each class with the numbered ones of the truth."""
    clean_prediction = clean(prediction, campaign.volume(box.volume_id).spacing_um_zyx, *profile_of(campaign))
    has_truth = truth != IGNORE
    return [
        compare_instances(
            connected_components((clean_prediction == c) & has_truth),
            renumber_objects(np.where(truth == c, numbered, 0)),
        )
        for c in range(1, campaign.config.n_classes + 1)
    ]


def _count_in_bins(bins: Bins, values: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> BinnedCounts:
    bins.add(values, right)
    return bins.result()
