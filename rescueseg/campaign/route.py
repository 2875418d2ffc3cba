"""Which route a campaign follows: trainer, query strategy and post-processing, as a person or the triage chose them."""

from __future__ import annotations

from typing import Literal

from rescueseg.campaign.campaign import Campaign
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.stage_results import CHOICE, TRIAL, Choice, StageResult, TrainerTrial
from rescueseg.config import CampaignConfig

DEFAULT_TRAINER = "monai_unet"
DEFAULT_STRATEGY = "clasp_entropy"

Profile = Literal["none", "specks", "filled", "connected"]


class AdvisedRoute(StageResult):
    """What the triage advises, of what is followed without a person's word."""

    query: str
    postprocessing: Profile
    name: str = ""
    """Which route it is."""


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
    """The shape that the user's word names."""
    mask: str
    """Where the rough mask comes from."""
    evidence: tuple[MeasuredValue, ...]
    complexity: str = ""
    """Empty in files of versions that did not write it."""

    def measured(self, name: str) -> float | None:
        """Return one of the numbers, None where it was not measured."""
        return next((e.value for e in self.evidence if e.name == name), None)


TRIAGE_SUMMARY = RecordFile("triage", TriageSummary)


def last_trial(campaign: Campaign, route: str, before: int | None = None) -> TrainerTrial | None:
    """Return the last trial of trainers that was held on a route; None where there was none.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    route : str
        Name of the route: a triage that finds another one asks anew.
    before : int, optional
        Only trials of generations before this one count.
    """
    trials = (
        folder.read(TRIAL) for folder in reversed(campaign.generations()) if before is None or folder.number < before
    )
    return next((trial for trial in trials if trial is not None and trial.route == route), None)


def current_trainer(campaign: Campaign) -> str:
    """Return the trainer of a campaign: a person's choice, else that of the last trial, else the triage's, else the MONAI U-Net."""
    name = campaign.config.training.trainer
    if name != "auto":
        return name
    triage = campaign.records.read(TRIAGE_SUMMARY)
    if triage is None:
        return DEFAULT_TRAINER
    trial = last_trial(campaign, triage.route.name)
    return trial.trainer if trial else triage.trainer


def query_strategy(config: CampaignConfig, triage: TriageSummary | None) -> str:
    """Return the query strategy of a campaign: a person's choice, else the triage's, else `clasp_entropy`."""
    name = config.query.strategy
    return name if name != "auto" else triage.route.query if triage else DEFAULT_STRATEGY


def current_choice(campaign: Campaign) -> Choice:
    """Return trainer and query strategy as a generation would freeze them now."""
    config, triage = campaign.config, campaign.records.read(TRIAGE_SUMMARY)
    route = triage.route.name if triage and config.training.trainer == "auto" else ""
    return Choice(trainer=current_trainer(campaign), strategy=query_strategy(config, triage), route=route)


def frozen_choice(campaign: Campaign, generation: int) -> Choice:
    """Return trainer and query strategy that were frozen with a generation's snapshot.

    The trainer is that of the generation's trial, where there was one. Before the snapshot, and in generations begun before
    choices were kept, they are the current ones.
    """
    folder = campaign.generation(generation)
    choice, trial = folder.read(CHOICE) or current_choice(campaign), folder.read(TRIAL)
    return choice if trial is None else choice.model_copy(update={"trainer": trial.trainer})


def freeze_choice(campaign: Campaign, generation: int) -> None:
    """Write down trainer and query strategy of a generation: a triage while it runs changes the next one only."""
    campaign.generation(generation).write(CHOICE, current_choice(campaign))


def profile_of(config: CampaignConfig, triage: TriageSummary | None) -> tuple[Profile, float]:
    """Return the post-processing profile of a campaign and the thickness of its structure in micrometre.

    A person's choice goes first, then the triage's route; nothing is done where no triage measured the thickness.
    """
    thickness = triage.measured("thickness") if triage else None
    if triage is None or thickness is None:
        return "none", 0.0
    profile = config.annotation.postprocessing
    return (triage.route.postprocessing if profile == "auto" else profile), thickness
