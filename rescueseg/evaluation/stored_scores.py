"""The scores stored with a generation: read while model and truth are the same, computed anew when they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import LeakError, RescuesegError
from rescueseg.evaluation.calibration import Calibration, keep_calibration, score_and_calibrate
from rescueseg.evaluation.champion import EVALUATION, Judgement, judgements
from rescueseg.evaluation.holdout_scores import Assignment, ObjectChooser, evaluate_generation, stored_maps
from rescueseg.evaluation.leak_check import require_model, require_unseen
from rescueseg.evaluation.scores import BoxKey, Evaluation
from rescueseg.evaluation.truth import HoldoutTruth, holdout_truth
from rescueseg.geometry import Patch
from rescueseg.labels import IGNORE
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, Part

SCORES = RecordFile("scores", Evaluation)
"""In the generation's folder; the judgement that chose the champion stays as it is."""


def store_scores(
    campaign: Campaign, assignment: Assignment, choose: ObjectChooser, progress: CountProgress | None = None
) -> tuple[Evaluation, Calibration]:
    """Evaluate a generation in one pass over its maps, and store the temperature, then the scores.

    Parameters
    ----------
    campaign : Campaign
        With the generation's maps.
    assignment : Assignment
        From `rescueseg.evaluation.holdout_scores.check_evaluation`.
    choose : callable
        Chooses how its objects are made.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    """
    folder, assignment = campaign.generation(assignment.model.generation), assignment.with_objects(campaign, choose)
    evaluation, fitted = score_and_calibrate(assignment, stored_maps(folder, assignment), progress)
    calibration = keep_calibration(folder, assignment, fitted)
    folder.write(SCORES, evaluation)
    return evaluation, calibration


def current_evaluation(
    campaign: Campaign,
    generation: int,
    choose: ObjectChooser,
    progress: CountProgress | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Return a generation's evaluation: the stored one where model and truth are still the same, else a new one.

    A holdout that grew since makes no new one, and what an earlier version scored is scored anew on the boxes that it had:
    later volumes may have no maps of that generation. Generations are compared
    on the boxes they share. A new one is stored; the stored temperature stays as it is.

    Parameters
    ----------
    campaign : Campaign
        With a frozen holdout.
    generation : int
        Which one.
    choose : callable
        Chooses how its objects are made, where a new one is made.
    progress : callable, optional
        Called with (boxes done, boxes in all).
    say : callable, optional
        Called with a line for people where what an earlier version of rescueseg stored is scored anew.

    Raises
    ------
    RescuesegError
        As `check_evaluation`; what a training has read is never evaluated, stored or not.
    """
    stored = stored_evaluation(campaign, generation)
    if stored is not None:
        return stored
    earlier = _stored(campaign.generation(generation))
    reason, places = why_anew(*earlier), None
    if reason:
        if say is not None:
            say(f"Generation {generation} is {reason}")
        places = {Patch(b.volume_id, b.box) for evaluation in earlier if evaluation for b in evaluation.boxes}
    evaluation = evaluate_generation(campaign, generation, choose, progress, places)
    campaign.generation(generation).write(SCORES, evaluation)
    return evaluation


def stored_evaluation(campaign: Campaign, generation: int) -> Evaluation | None:
    """Return a generation's stored evaluation, None where model, truth or scoring have changed.

    Raises
    ------
    RescuesegError
        As `current_evaluation`.
    """
    truth, folder = holdout_truth(campaign), campaign.generation(generation)
    model = require_model(folder)
    require_unseen(folder, truth.boxes, campaign.volumes.shared_places(truth.records))
    return first_valid(_stored(folder), model.digest, truth)


def scored_today(campaign: Campaign, choose: ObjectChooser) -> tuple[list[Judgement], list[str]]:
    """Return the judgements of all generations with the scores to show, and lines about those that are no even comparison.

    The scores are those of `latest_evaluation`: on as many of the holdout's boxes as a generation was scored on. What an earlier
    version scored is scored anew from its maps and stored; a judgement itself stays as it is, only the evaluation that is
    shown with it changes. Where that cannot be done it keeps the scores it has, and a line says why.
    """
    history, lines = list[Judgement](), list[str]()
    for judgement in judgements(campaign.generations()):
        evaluation = latest_evaluation(campaign.generation(judgement.generation), judgement)
        if not evaluation.complete:
            said: list[str] = []
            try:
                evaluation = current_evaluation(campaign, judgement.generation, choose, say=said.append)
            except RescuesegError as error:
                kept = f"Generation {judgement.generation} keeps scores that an earlier version counted otherwise"
                said = [f"{kept}: {error}"]
            lines += said
        history.append(judgement.model_copy(update={"evaluation": evaluation}))
    return history, [*lines, *other_boxes(history)]


def other_boxes(history: Sequence[Judgement]) -> list[str]:
    """Return a line for each generation that is scored on other boxes than the last one: its scores are of other places.

    Examples
    --------
    >>> other_boxes([])
    []
    """
    boxes = [{Patch(b.volume_id, b.box) for b in j.evaluation.boxes} for j in history]
    return [
        f"Generation {judgement.generation} is scored on {len(own)} boxes, the last one on {len(boxes[-1])}, of which "
        f"{len(own & boxes[-1])} are the same: their scores side by side are no comparison"
        for judgement, own in zip(history, boxes, strict=True)
        if own != boxes[-1]
    ]


def evaluation_on_grown(campaign: Campaign, judgement: Judgement, choose: ObjectChooser) -> Evaluation:
    """Return the evaluation of an earlier generation on all boxes that the holdout has now, those without its maps left out.

    Where the holdout grew since it was judged, a new one is made and stored. Where that cannot be done, because its maps or
    its snapshot are gone or damaged, it is the one that it was judged by, and generations are compared on the boxes that they share;
    `other_boxes` then says so.

    How its objects are made is chosen again, on the validation boxes that there are now: a delivery made today would choose on
    them, and so does the generation that it is compared with. A rule kept from before would rest on fewer boxes than that of the other.

    Raises
    ------
    LeakError
        If one of the new boxes was read by its training.
    """
    evaluation = latest_evaluation(campaign.generation(judgement.generation), judgement)
    before = {Patch(b.volume_id, b.box) for b in evaluation.boxes}
    mapped = {b.volume_id for b in evaluation.boxes}
    new = {b.patch for b in holdout_truth(campaign).boxes if b.volume_id in mapped} - before
    if not new:
        return evaluation
    try:
        anew = evaluate_generation(campaign, judgement.generation, choose, places=before | new)
    except LeakError:
        raise
    except RescuesegError:
        return evaluation
    campaign.generation(judgement.generation).write(SCORES, anew)
    return anew


def latest_evaluation(folder: GenerationFolder, judgement: Judgement) -> Evaluation:
    """Return the scores of a judged generation on the most boxes, counted in today's way where they are there.

    Those made since it was judged count where they hold all boxes that it was judged by, or where an earlier version judged it.
    """
    anew, judged = folder.read(SCORES), judgement.evaluation
    if anew is None or not anew.complete or anew.model_digest != judged.model_digest:
        return judged
    is_whole = {b.key for b in judged.boxes} <= {b.key for b in anew.boxes}
    return anew if is_whole or not judged.complete else judged


def _stored(folder: GenerationFolder) -> tuple[Evaluation | None, Evaluation | None]:
    judgement = folder.read(EVALUATION)
    return folder.read(SCORES), judgement.evaluation if judgement else None


def why_anew(*stored: Evaluation | None) -> str:
    """Say why stored evaluations are not used, where earlier versions made them all; empty where there is none."""
    reasons = [evaluation.why_anew for evaluation in stored if evaluation is not None]
    return reasons[0] if reasons and all(reasons) else ""


def box_keys(subject: Evaluation | Assignment, part: Part) -> set[BoxKey]:
    """Return the keys of the boxes of a part that are scored, or would be; scores of equal keys are comparable."""
    if isinstance(subject, Evaluation):
        return {b.key for b in subject.boxes_with_truth(part)}
    truth = subject.truth
    boxes = [b for b in subject.boxes if b.part == part and (truth.labels(b) != IGNORE).any()]
    return {_box_key(b, truth) for b in boxes}


def first_valid(evaluations: Iterable[Evaluation | None], model_digest: str, truth: HoldoutTruth) -> Evaluation | None:
    """Return the first of several stored evaluations whose model and truth are still the same."""
    keys = {_box_key(b, truth) for b in truth.boxes}
    for evaluation in (e for e in evaluations if e is not None):
        same_model = evaluation.model_digest == model_digest
        if evaluation.complete and same_model and {b.key for b in evaluation.boxes} <= keys:
            return evaluation
    return None


def _box_key(box: HoldoutBox, truth: HoldoutTruth) -> BoxKey:
    return box.volume_id, box.box.offset_zyx, box.box.shape_zyx, truth.digest(box)
