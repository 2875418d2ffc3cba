"""Evaluates a generation on the holdout, box by box."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.route import TRIAGE_SUMMARY, Profile, profile_of
from rescueseg.evaluation.box_objects import Maps, ObjectMaker, Predicted, box_objects
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
from rescueseg.evaluation.scores import BoxScore, ClassDetail, Evaluation, MadeObjects, format_of, mean_of_known
from rescueseg.evaluation.surface import surface_scores
from rescueseg.evaluation.topology import compare_topology
from rescueseg.evaluation.truth import HoldoutTruth, Labels, holdout_truth
from rescueseg.geometry import Box, Patch, Spacing
from rescueseg.inference.box_maps import stored_box_maps
from rescueseg.inference.maps import VolumeMaps
from rescueseg.labels import IGNORE, most_likely
from rescueseg.models.predictor import PROBABILITY
from rescueseg.postprocessing.object_rule import OBJECT_MARGIN, with_margin
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, ModelReference

BoxMaps = tuple[HoldoutBox, Maps, npt.NDArray[np.float32]]
"""A box, the maps of its region by name, and the predictive entropy in the box itself; see `score_box`."""


_ENTROPY = "predictive_entropy"


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
    maker : ObjectMaker, optional
        How the objects of a class are made; connected pieces are compared without one.
    """

    model: ModelReference
    truth: HoldoutTruth
    classes: tuple[str, ...]
    profile: tuple[Profile, float]
    maker: ObjectMaker | None = None

    @property
    def boxes(self) -> tuple[HoldoutBox, ...]:
        """The boxes to be scored."""
        return self.truth.boxes

    @property
    def tells_objects(self) -> bool:
        """Whether the truth of any box numbers objects: without, none are compared."""
        return any(self.truth.tells_objects(box) for box in self.boxes)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The maps that are read around a box."""
        return PROBABILITY, *(self.maker.rule.outputs if self.maker else ())

    def region(self, box: HoldoutBox) -> Box:
        """Return what is read around a box: its context, and where objects are made, at least a margin around the box.

        A middle or a summit may lie beyond the face that cuts its object, most of all where people annotated the box alone
        and its context is the box. A delivery's choice reads the same margin.
        """
        context = self.truth.context(box)
        if self.maker is None or not self.truth.tells_objects(box):
            return context
        volume = self.truth.volumes[box.volume_id]
        around = with_margin(box.box, OBJECT_MARGIN, volume.spacing_um_zyx, volume.shape_zyx)
        starts, stops = zip(*((b.offset_zyx, b.stop_zyx) for b in (context, around)), strict=True)
        return Box.from_bounds(np.min(starts, axis=0), np.max(stops, axis=0))

    def with_objects(self, campaign: Campaign, choose: ObjectChooser, training: str = "") -> Assignment:
        """Return the same with the maker that is chosen for it; `training` names the model's, where it is outside the loop."""
        return replace(self, maker=choose(campaign, self, training))


ObjectChooser = Callable[[Campaign, Assignment, str], ObjectMaker | None]
"""Chooses on the validation boxes of an assignment how a model's objects are made, as a delivery would; None where the truth
numbers none. The last argument names the training outside the loop that the model is of, empty for a generation. What
scores a stored model asks for it, so that none is scored by other objects than it would deliver:
`rescueseg.delivery.scored_objects.choose_scored_objects`."""


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
    choose: ObjectChooser,
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
    choose : callable
        Chooses how its objects are made, on the validation boxes among those that are scored.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    places : collection of Patch, optional
        As in `check_evaluation`.

    Raises
    ------
    RescuesegError
        As `check_evaluation`.
    """
    assignment = check_evaluation(campaign, generation, places).with_objects(campaign, choose)
    return score_boxes(assignment, stored_maps(campaign.generation(generation), assignment), progress)


def score_boxes(assignment: Assignment, maps: Iterable[BoxMaps], progress: CountProgress | None = None) -> Evaluation:
    """Score boxes as their maps come.

    Boxes are read one at a time. The predicted class is the most probable one. Dice, IoU, precision and recall come from
    counts pooled over the boxes of a part; a class that neither truth nor prediction holds has no score in a box and is left
    out of means over classes. Surface Dice and HD95 are means over the boxes that have one (see
    `rescueseg.evaluation.surface.surface_scores`). Objects are made of the
    predicted class after the route's clean-up (`rescueseg.postprocessing.clean`) by the assignment's maker, which is written
    down with the scores, or are its connected components without one; each is counted in one box
    (`rescueseg.evaluation.box_objects`).

    Parameters
    ----------
    assignment : Assignment
        Model, truth and classes.
    maps : iterable of (HoldoutBox, maps, predictive entropy)
        See `score_box`.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    """
    scores: list[BoxScore] = []
    maker = assignment.maker
    for box, of_box, entropy in maps:
        scores.append(score_box(assignment, box, of_box, entropy))
        if progress is not None:
            progress(len(scores), len(assignment.boxes))
    return Evaluation(
        generation=assignment.model.generation,
        model_digest=assignment.model.digest,
        validation=part_score("validation", scores, assignment.classes),
        test=part_score("test", scores, assignment.classes),
        boxes=tuple(scores),
        format=format_of(scores),
        objects=None if maker is None else MadeObjects(class_index=maker.class_index, rule=maker.rule),
    )


def stored_maps(generation: GenerationFolder, assignment: Assignment) -> Iterator[BoxMaps]:
    """Yield each box with the maps of its region and its predictive entropy (z, y, x), as they are stored."""
    truth = assignment.truth
    for volume_id, group in itertools.groupby(truth.boxes, key=lambda box: box.volume_id):
        boxes, stored = list(group), VolumeMaps(generation, volume_id)
        names, shape = (*assignment.quantities, _ENTROPY), truth.volumes[volume_id].shape_zyx
        regions = [assignment.region(box) for box in boxes]
        for box, region, maps in zip(boxes, regions, stored_box_maps(stored, names, regions, shape), strict=True):
            entropy = maps.pop(_ENTROPY)
            yield box, maps, entropy[box.box.relative_to(region).slices]


def score_box(assignment: Assignment, box: HoldoutBox, maps: Maps, entropy: npt.NDArray[np.float32]) -> BoxScore:
    """Score one box.

    Parameters
    ----------
    assignment : Assignment
        Truth, classes and clean-up.
    box : HoldoutBox
        Which box.
    maps : mapping of str to ndarray of float32
        Of the box's region (`Assignment.region`): "probability", (K + 1, z, y, x), background first, and those of
        `Assignment.quantities`. Objects are made there and compared in the context (`HoldoutTruth.context`), all else in the
        box.
    entropy : ndarray of float32, zyx
        Predictive entropy in nats.
    """
    k, volume = len(assignment.classes), assignment.truth.volumes[box.volume_id]
    region = assignment.region(box)
    truth, inner = assignment.truth.labels(box), box.box.relative_to(region).slices
    around = most_likely(maps[PROBABILITY])
    predicted = Predicted(region, around, maps)
    objects = box_objects(assignment.truth, box, predicted, assignment.profile, k, assignment.maker)
    prediction, probability = around[inner], maps[PROBABILITY][(slice(None), *inner)]
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
