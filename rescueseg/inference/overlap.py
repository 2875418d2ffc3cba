"""By how much the windows of a model overlap: what was chosen for it, kept in the folder of its generation."""

from __future__ import annotations

from rescueseg.campaign import Campaign
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.stage_results import StageResult
from rescueseg.config import USUAL_OVERLAP, InferenceConfig
from rescueseg.records import ModelReference


class OverlapTrial(StageResult):
    """What an overlap costs, and how good it is."""

    overlap: float
    windows: int
    """Of all volumes."""
    dice: float | None = None
    """Of the validation boxes; None where it was not tried."""


class ChosenOverlap(StageResult):
    """The overlap of a generation's model; its maps are made with it."""

    model_digest: str
    overlap: float
    reason: str
    """Why, for people."""
    trials: tuple[OverlapTrial, ...] = ()
    """The usual overlap first."""


CHOSEN_OVERLAP = RecordFile("overlap", ChosenOverlap)


def settled_inference(campaign: Campaign, model: ModelReference) -> InferenceConfig:
    """Return a campaign's settings of the inference with the overlap that holds for a model of its generations."""
    config = campaign.config.inference
    if config.overlap is not None:
        return config
    chosen = campaign.generation(model.generation).read(CHOSEN_OVERLAP)
    holds = chosen is not None and chosen.model_digest == model.digest
    return config.model_copy(update={"overlap": chosen.overlap if chosen is not None and holds else USUAL_OVERLAP})
