"""The scores stored with a generation: read while model and truth are the same, computed anew when they are not."""

from __future__ import annotations

from collections.abc import Iterable

from rescueseg.campaign import Campaign
from rescueseg.campaign.record_file import RecordFile
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.holdout_scores import Assignment, evaluate_generation
from rescueseg.evaluation.leak_check import require_model, require_unseen
from rescueseg.evaluation.scores import BoxKey, Evaluation
from rescueseg.evaluation.truth import TruthReader, holdout_boxes, open_truths
from rescueseg.labels import IGNORE
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, Part

SCORES = RecordFile("scores", Evaluation)
"""In the generation's folder; the judgement that chose the champion stays as it is."""


def evaluate_and_store(campaign: Campaign, generation: int, progress: CountProgress | None = None) -> Evaluation:
    """Evaluate a generation and store the scores; parameters and errors as `evaluate_generation`."""
    evaluation = evaluate_generation(campaign, generation, progress)
    campaign.finish(SCORES, generation, evaluation)
    return evaluation


def current_evaluation(campaign: Campaign, generation: int, progress: CountProgress | None = None) -> Evaluation:
    """Return a generation's evaluation: the stored one where model and truth are still the same, else a new one.

    A holdout that grew since makes no new one: its volumes may have no maps of that generation. Generations are compared
    on the boxes they share.

    Raises
    ------
    RescuesegError
        As `check_evaluation`; what a training has read is never evaluated, stored or not.
    """
    return stored_evaluation(campaign, generation) or evaluate_and_store(campaign, generation, progress)


def stored_evaluation(campaign: Campaign, generation: int) -> Evaluation | None:
    """Return a generation's stored evaluation, None where model, truth or scoring have changed.

    Raises
    ------
    RescuesegError
        As `current_evaluation`.
    """
    boxes = holdout_boxes(campaign)
    model = require_model(campaign, generation)
    require_unseen(campaign, generation, boxes)
    read_truth = open_truths(campaign, boxes)
    judgement = campaign.result(EVALUATION, generation)
    evaluations = (campaign.result(SCORES, generation), judgement.evaluation if judgement else None)
    return first_valid(evaluations, model.digest, boxes, read_truth)


def box_keys(subject: Evaluation | Assignment, part: Part) -> set[BoxKey]:
    """Return the keys of the boxes of a part that are scored, or would be; scores of equal keys are comparable."""
    if isinstance(subject, Evaluation):
        return {b.key for b in subject.boxes_with_truth(part)}
    read_truth = subject.read_truth
    boxes = [b for b in subject.boxes if b.part == part and (read_truth(b) != IGNORE).any()]
    return {_box_key(b, read_truth) for b in boxes}


def first_valid(
    evaluations: Iterable[Evaluation | None], model_digest: str, boxes: Iterable[HoldoutBox], read_truth: TruthReader
) -> Evaluation | None:
    """Return the first of several stored evaluations whose model and truth are still the same."""
    keys = {_box_key(b, read_truth) for b in boxes}
    for evaluation in (e for e in evaluations if e is not None):
        same_model = evaluation.model_digest == model_digest
        if evaluation.complete and same_model and {b.key for b in evaluation.boxes} <= keys:
            return evaluation
    return None


def _box_key(box: HoldoutBox, read_truth: TruthReader) -> BoxKey:
    return box.volume_id, box.box.offset_zyx, box.box.shape_zyx, read_truth.digest(box)
