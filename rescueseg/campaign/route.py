"""Which route a campaign follows: trainer, query strategy and post-processing, as a person or the triage chose them."""

from __future__ import annotations

from typing import Literal

from rescueseg.campaign.campaign import Campaign
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.stage_results import CHOICE, Choice, StageResult

DEFAULT_TRAINER = "monai_unet"
DEFAULT_STRATEGY = "clasp_entropy"

Profile = Literal["none", "specks", "filled", "connected"]


class AdvisedRoute(StageResult):
    """What the triage advises, of what is followed without a person's word."""

    query: str
    postprocessing: Profile


class MeasuredValue(StageResult):
    """One of the triage's numbers."""

    name: str
    value: float | None
    """None where it could not be measured."""


class TriageSummary(StageResult):
    """What the rest of a campaign reads of its triage; all that the triage found is `rescueseg.triage.records.Triage`."""

    problem: str
    trainer: str
    route: AdvisedRoute
    structure: str | None
    """The user's word."""
    mask: str
    """Where the rough mask comes from."""
    evidence: tuple[MeasuredValue, ...]
    complexity: str = ""
    """Empty in files of versions that did not write it."""

    def measured(self, name: str) -> float | None:
        """Return one of the numbers, None where it was not measured."""
        return next((e.value for e in self.evidence if e.name == name), None)


TRIAGE_SUMMARY = RecordFile("triage", TriageSummary)


def trainer_name(campaign: Campaign, generation: int | None = None) -> str:
    """Return the trainer of a campaign: a person's choice, else the triage's, else the MONAI U-Net.

    With a generation, the one that was frozen with its snapshot.
    """
    frozen = _frozen(campaign, generation)
    return frozen.trainer if frozen else _choice_now(campaign).trainer


def query_strategy(campaign: Campaign, generation: int | None = None) -> str:
    """Return the query strategy of a campaign: a person's choice, else the triage's, else `clasp_entropy`.

    With a generation, the one that was frozen with its snapshot.
    """
    frozen = _frozen(campaign, generation)
    return frozen.strategy if frozen else _choice_now(campaign).strategy


def freeze_choice(campaign: Campaign, generation: int) -> None:
    """Write down trainer and query strategy of a generation: a triage while it runs changes the next one only."""
    campaign.finish(CHOICE, generation, _choice_now(campaign))


def _frozen(campaign: Campaign, generation: int | None) -> Choice | None:
    """Return what was frozen; None before it was, and in generations begun before that was kept."""
    return None if generation is None else campaign.result(CHOICE, generation)


def _choice_now(campaign: Campaign) -> Choice:
    trainer, strategy = campaign.config.training.trainer, campaign.config.query.strategy
    if "auto" not in (trainer, strategy):
        return Choice(trainer=trainer, strategy=strategy)
    triage = campaign.read(TRIAGE_SUMMARY)
    return Choice(
        trainer=trainer if trainer != "auto" else triage.trainer if triage else DEFAULT_TRAINER,
        strategy=strategy if strategy != "auto" else triage.route.query if triage else DEFAULT_STRATEGY,
    )


def profile_of(campaign: Campaign) -> tuple[Profile, float]:
    """Return the post-processing profile of a campaign and the thickness of its structure in micrometre.

    A person's choice goes first, then the triage's route; nothing is done where no triage measured the thickness.
    """
    triage = campaign.read(TRIAGE_SUMMARY)
    thickness = triage.measured("thickness") if triage else None
    if triage is None or thickness is None:
        return "none", 0.0
    profile = campaign.config.annotation.postprocessing
    return (triage.route.postprocessing if profile == "auto" else profile), thickness
