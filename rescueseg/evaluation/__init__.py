"""How good a generation is: scores on the holdout with intervals, generation against generation, the doubtful places."""

from __future__ import annotations

from rescueseg.evaluation.run import check_evaluation, evaluate_generation
from rescueseg.evaluation.scores import BoxScore, ClassDetail, ClassScore, Evaluation, PartScore
from rescueseg.evaluation.truth import (
    PARTS,
    Labels,
    TruthReader,
    holdout_boxes,
    missing_truth,
    open_truths,
    truth_digest,
)

__all__ = [
    "PARTS",
    "BoxScore",
    "ClassDetail",
    "ClassScore",
    "Evaluation",
    "Labels",
    "PartScore",
    "TruthReader",
    "check_evaluation",
    "evaluate_generation",
    "holdout_boxes",
    "missing_truth",
    "open_truths",
    "truth_digest",
]
