"""The scores of a training outside the loop: its model predicts the holdout boxes alone, the scores lie beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from rescueseg.campaign import Campaign
from rescueseg.campaign.outside_trainings import RESULT, read_request
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import EvaluationError
from rescueseg.evaluation.calibration import CALIBRATION, Calibration, score_and_calibrate
from rescueseg.evaluation.holdout_scores import Assignment, BoxMaps, ObjectChooser, assign
from rescueseg.evaluation.leak_check import require_unseen_by_training
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.stored_scores import first_valid, why_anew
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.inference.box_maps import predicted_box_maps
from rescueseg.inference.engine import InferenceJob
from rescueseg.progress import CountProgress
from rescueseg.records import ModelReference

TRAINING_EVALUATION = RecordFile("evaluation", Evaluation)
"""In the training's folder; `CALIBRATION` beside it."""
_ENTROPY = "predictive_entropy"


def require_training_model(campaign: Campaign, name: str) -> ModelReference:
    """Return the model of a finished training.

    Raises
    ------
    EvaluationError
        If there is no such training, or it has not finished.
    """
    names = campaign.trainings()
    if name not in names:
        raise EvaluationError(
            f"no training '{name}'",
            where=campaign.url,
            todo=f"Train with 'rescueseg train'; known: {', '.join(names) or 'none yet'}",
        )
    result = campaign.training(name).read(RESULT)
    if result is None:
        raise EvaluationError(
            f"the training '{name}' has not finished", where=campaign.url, todo="Give 'rescueseg train' again"
        )
    return result.model


def check_training(campaign: Campaign, name: str) -> Assignment:
    """Make sure that a training's model can be evaluated, and on what; reads no image.

    Raises
    ------
    EvaluationError
        If there is no holdout, no such model, or no truth for some boxes (they are named).
    LeakError
        If a box was read by the training, or by a generation before it.
    """
    truth, model, folder = holdout_truth(campaign), require_training_model(campaign, name), campaign.training(name)
    snapshot, places = read_request(folder).snapshot, campaign.volumes.shared_places(truth.records)
    require_unseen_by_training(folder, snapshot, truth.boxes, places)
    return assign(campaign, model, truth)


def evaluate_training(
    campaign: Campaign, name: str, choose: ObjectChooser, progress: CountProgress | None = None
) -> tuple[Evaluation, Calibration]:
    """Let a training's model predict the holdout boxes and score them; store the scores and a temperature beside it.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout.
    name : str
        The training's.
    choose : callable
        Chooses how its objects are made.
    progress : callable, optional
        Called with (boxes done, boxes in all).

    Raises
    ------
    RescuesegError
        As `check_training`, and `rescueseg.inference.engine.predict_boxes`.
    """
    assignment, folder = check_training(campaign, name).with_objects(campaign, choose, name), campaign.training(name)
    maps = predict_holdout(campaign, assignment)
    evaluation, calibration = score_and_calibrate(assignment, maps, progress)
    folder.write(CALIBRATION, calibration)
    folder.write(TRAINING_EVALUATION, evaluation)
    return evaluation, calibration


def current_training_evaluation(
    campaign: Campaign,
    name: str,
    choose: ObjectChooser,
    progress: CountProgress | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Return a training's evaluation: the stored one where model and truth are still the same, else a new one.

    Parameters as of `rescueseg.evaluation.stored_scores.current_evaluation`.
    """
    stored = stored_training_evaluation(campaign, name)[0]
    if stored is not None:
        return stored
    reason = why_anew(campaign.training(name).read(TRAINING_EVALUATION))
    if say is not None and reason:
        say(f"The training {name} is {reason}")
    return evaluate_training(campaign, name, choose, progress)[0]


def stored_training_evaluation(campaign: Campaign, name: str) -> tuple[Evaluation | None, Assignment]:
    """Return a training's stored evaluation, None where model, truth or scoring have changed, and its assignment."""
    assignment = check_training(campaign, name)
    stored = campaign.training(name).read(TRAINING_EVALUATION)
    return first_valid([stored], assignment.model.digest, assignment.truth), assignment


def predict_holdout(campaign: Campaign, assignment: Assignment) -> Iterator[BoxMaps]:
    """Yield each box with the maps of its region and its entropy as the model predicts them, rounded to the dtype that maps are stored in."""
    truth, names = assignment.truth, (*assignment.quantities, _ENTROPY)
    for volume_id, group in itertools.groupby(truth.boxes, key=lambda box: box.volume_id):
        boxes, job = list(group), InferenceJob.of(campaign, assignment.model, volume_id)
        regions, shape = [assignment.region(box) for box in boxes], truth.volumes[volume_id].shape_zyx
        for box, region, maps in zip(boxes, regions, predicted_box_maps(job, names, regions, shape), strict=True):
            entropy = maps.pop(_ENTROPY)
            yield box, maps, entropy[box.box.relative_to(region).slices]
