"""Evaluations that were made are kept with their generation, and made anew when they no longer fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rescueseg.campaign import Campaign
from rescueseg.evaluation.champion import STAGE
from rescueseg.evaluation.holdout_scores import Assignment, evaluate_generation
from rescueseg.evaluation.scores import BoxKey, Evaluation
from rescueseg.evaluation.truth import TruthReader, holdout_boxes, open_truths
from rescueseg.evaluation.unseen import require_model, require_unseen
from rescueseg.labels import IGNORE
from rescueseg.progress import CountProgress
from rescueseg.records import HoldoutBox, Part

SCORES = "scores"
"""What `evaluate` leaves in the generation's folder; the judgement that chose the champion stays as it is."""


def evaluate_and_keep(campaign: Campaign, generation: int, progress: CountProgress | None = None) -> Evaluation:
    """Evaluate a generation and keep the result; parameters and errors as `evaluate_generation`."""
    evaluation = evaluate_generation(campaign, generation, progress)
    campaign.finish_stage(generation, SCORES, evaluation.to_json())
    return evaluation


def settled_evaluation(campaign: Campaign, generation: int, progress: CountProgress | None = None) -> Evaluation:
    """Return a generation's evaluation: the kept one where model and truth are still the same, else a new one.

    A holdout that grew since makes no new one: its volumes may have no maps of that generation. Generations are compared
    on the boxes they share.

    Raises
    ------
    RescuesegError
        As `check_evaluation`; what a training has read is never evaluated, kept or not.
    """
    return kept_evaluation(campaign, generation) or evaluate_and_keep(campaign, generation, progress)


def kept_evaluation(campaign: Campaign, generation: int) -> Evaluation | None:
    """Return a generation's kept evaluation, None where model, truth or scoring have changed; raises as the above."""
    boxes = holdout_boxes(campaign)
    model = require_model(campaign, generation)
    require_unseen(campaign, generation, boxes)
    read_truth = open_truths(campaign, boxes)
    kept = (campaign.stage_result(generation, SCORES), _judged(campaign, generation))
    return still_valid(kept, model.digest, boxes, read_truth)


def judged_keys(found: Evaluation | Assignment, part: Part) -> set[BoxKey]:
    """Return what is, or would be, judged of a part; equal keys make scores comparable."""
    if isinstance(found, Evaluation):
        return {b.key for b in found.known(part)}
    read = found.read_truth
    ours = (b for b in found.boxes if b.part == part and (read(b) != IGNORE).any())
    return {(b.volume_id, b.box.offset_zyx, b.box.shape_zyx, read.digest(b)) for b in ours}


def still_valid(
    kept: Iterable[Any], model_digest: str, boxes: Iterable[HoldoutBox], read_truth: TruthReader
) -> Evaluation | None:
    """Return the first of several kept evaluations (JSON, or None) whose model and truth are still the same."""
    wanted = {(b.volume_id, b.box.offset_zyx, b.box.shape_zyx, read_truth.digest(b)) for b in boxes}
    for found in (Evaluation.model_validate(data) for data in kept if data is not None):
        if found.complete and found.model_digest == model_digest and {b.key for b in found.boxes} <= wanted:
            return found
    return None


def _judged(campaign: Campaign, generation: int) -> Any:
    judgement = campaign.stage_result(generation, STAGE)
    return None if judgement is None else judgement["evaluation"]
