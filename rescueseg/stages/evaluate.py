"""The evaluation stage: scores on the holdout, temperature and champion."""

from __future__ import annotations

from rescueseg.campaign import Campaign
from rescueseg.evaluation.calibration import keep_calibration, score_and_calibrate
from rescueseg.evaluation.champion import EVALUATION, Judgement, judge
from rescueseg.evaluation.holdout_scores import check_evaluation, stored_maps
from rescueseg.stages.stage import run_stage


def evaluate(campaign: Campaign, generation: int) -> Judgement:
    """Score the generation on the holdout and decide on the champion: it moves only if the validation boxes say so.

    The temperature of its probabilities is fitted in the same pass over the maps and kept with it; see
    `rescueseg.evaluation.calibration`.
    """
    folder = campaign.generation(generation)

    def work() -> Judgement:
        assignment = check_evaluation(campaign, generation)
        evaluation, calibration = score_and_calibrate(assignment, stored_maps(folder, assignment.truth))
        keep_calibration(folder, assignment, calibration)
        return judge(campaign.generations(), evaluation, campaign.config)

    return run_stage(folder, EVALUATION, work)
