"""The evaluation stage: scores on the holdout, temperature and champion."""

from __future__ import annotations

from functools import partial

from rescueseg.campaign import Campaign
from rescueseg.delivery.scored_objects import scored_objects
from rescueseg.evaluation.calibration import keep_calibration, score_and_calibrate
from rescueseg.evaluation.champion import EVALUATION, Judgement, judge, judgements
from rescueseg.evaluation.holdout_scores import check_evaluation, stored_maps
from rescueseg.evaluation.stored_scores import evaluation_on_grown
from rescueseg.stages.stage import run_stage


def evaluate(campaign: Campaign, generation: int) -> Judgement:
    """Score the generation on the holdout and decide on the champion: it moves only if the validation boxes say so.

    Objects are those that a delivery of the model would make; see `rescueseg.delivery.scored_objects`. Earlier generations are
    scored on the boxes that the holdout has more since they were judged. The temperature of the probabilities is fitted in
    the same pass over the maps and kept with it; see `rescueseg.evaluation.calibration`.
    """
    folder = campaign.generation(generation)

    def work() -> Judgement:
        choose = scored_objects(folder.note_progress)
        assignment = check_evaluation(campaign, generation).with_objects(campaign, choose)
        note = partial(folder.note_progress, "holdout boxes scored")
        evaluation, calibration = score_and_calibrate(assignment, stored_maps(folder, assignment), note)
        keep_calibration(folder, assignment, calibration)
        earlier = [g for g in campaign.generations() if g.number < generation]
        anew = {j.generation: evaluation_on_grown(campaign, j, choose) for j in judgements(earlier)}
        return judge(campaign.generations(), evaluation, campaign.config, anew)

    return run_stage(folder, EVALUATION, work)
