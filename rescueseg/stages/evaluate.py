"""The evaluation stage: scores on the holdout, temperature and champion."""

from __future__ import annotations

from rescueseg.campaign import Campaign
from rescueseg.evaluation.calibration import current_calibration
from rescueseg.evaluation.champion import EVALUATION, Judgement, judge
from rescueseg.evaluation.holdout_scores import evaluate_generation
from rescueseg.stages.stage import run_stage


def evaluate(campaign: Campaign, generation: int) -> Judgement:
    """Score the generation on the holdout and decide on the champion: it moves only if the validation boxes say so.

    The temperature of its probabilities is fitted first and kept with it; see `rescueseg.evaluation.calibration`.
    """

    def work() -> Judgement:
        current_calibration(campaign, generation)
        return judge(campaign, evaluate_generation(campaign, generation))

    return run_stage(campaign, generation, EVALUATION, work)
