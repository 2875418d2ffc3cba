"""Which objects an evaluation scores: those that a delivery of the same model would make.

The evaluation stands above deliveries and makes no objects but connected pieces. What scores a model hands
`choose_scored_objects` down to it. Masks are the evaluation's own, the most probable class after the route's clean-up: a
delivery also chooses threshold and clean-up, and its page says what both make of the figures.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import Campaign
from rescueseg.delivery.object_choice import OBJECT_TRIALS, choose_objects
from rescueseg.delivery.objects import objects_of_box
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.validation import read_validation
from rescueseg.evaluation.box_objects import Maps, ObjectMaker
from rescueseg.evaluation.holdout_scores import Assignment, ObjectChooser
from rescueseg.evaluation.instances import Numbers
from rescueseg.geometry import Spacing
from rescueseg.labels import most_likely
from rescueseg.postprocessing.clean import clean
from rescueseg.progress import Progress

Mask = npt.NDArray[np.uint8]


def choose_scored_objects(
    campaign: Campaign, assignment: Assignment, training: str = "", progress: Progress | None = None
) -> ObjectMaker | None:
    """Choose on the validation boxes how a model's objects are made; see `rescueseg.delivery.object_choice.choose_objects`.

    Parameters
    ----------
    campaign : Campaign
        With the maps of the model's generation; what is not there is predicted.
    assignment : Assignment
        Model, boxes and clean-up.
    training : str
        Name of the training outside the loop that the model is of, empty for a generation.
    progress : callable, optional
        Called with what is counted, how many are done, and how many there are at most: boxes read, then boxes on which a way
        to make objects was tried.

    Returns
    -------
    ObjectMaker or None
        None, and nothing is read, where no box has a truth that numbers objects.

    Raises
    ------
    RescuesegError
        If a file of maps or truth is damaged, or the model cannot be loaded.
    """
    if not assignment.tells_objects:
        return None
    tell = progress or _silent
    truth = assignment.truth.only([box for box in assignment.boxes if box.part == "validation"])
    read = functools.partial(tell, "validation boxes read")
    boxes = read_validation(campaign, assignment.model, truth, stored=not training, progress=read)
    plain = DeliveryRule(
        model_digest=assignment.model.digest, truth_digest="", cleanup=(CleanUp(),) * len(assignment.classes)
    )
    tried = 0

    def report(_done: int, total: int) -> None:
        nonlocal tried
        tried += 1
        tell("ways to make objects tried on validation boxes", tried, OBJECT_TRIALS * total)

    def make_mask(probability: npt.NDArray[np.float32], spacing_um_zyx: Spacing) -> Mask:
        return clean(most_likely(probability), spacing_um_zyx, *assignment.profile)

    rule, _ = choose_objects(boxes, plain, None, report, make_mask)
    if rule.objects is None:
        raise RuntimeError("no way to make objects was chosen")
    return ObjectMaker(rule.objects, rule.object_class, functools.partial(_make, rule))


def scored_objects(progress: Progress) -> ObjectChooser:
    """Return `choose_scored_objects` that says how far it is."""
    return functools.partial(choose_scored_objects, progress=progress)


def _make(rule: DeliveryRule, mask: Mask, maps: Maps, spacing_um_zyx: Spacing) -> Numbers:
    return objects_of_box(mask, maps, rule, spacing_um_zyx)


def _silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""
