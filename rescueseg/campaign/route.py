"""Which route a campaign follows: trainer, query strategy and post-processing, as a person or the triage chose them."""

from __future__ import annotations

from typing import Any, Literal

from rescueseg.campaign.campaign import Campaign

DEFAULT_TRAINER = "monai_unet"
DEFAULT_STRATEGY = "clasp_entropy"


def trainer_name(campaign: Campaign, generation: int | None = None) -> str:
    """Return the trainer of a campaign: a person's choice, else the triage's, else the MONAI U-Net.

    With a generation, the one that was frozen with its snapshot.
    """
    return _frozen(campaign, generation, "trainer") or _trainer_now(campaign)


def query_strategy(campaign: Campaign, generation: int | None = None) -> str:
    """Return the query strategy of a campaign: a person's choice, else the triage's, else `clasp_entropy`.

    With a generation, the one that was frozen with its snapshot.
    """
    return _frozen(campaign, generation, "strategy") or _strategy_now(campaign)


def freeze_choice(campaign: Campaign, generation: int) -> None:
    """Write down trainer and query strategy of a generation: a triage while it runs changes the next one only."""
    choice = {"trainer": _trainer_now(campaign), "strategy": _strategy_now(campaign)}
    campaign.finish_stage(generation, "choice", choice)


def _frozen(campaign: Campaign, generation: int | None, what: str) -> str:
    """Return what was frozen; empty before it was, and in generations begun before that was kept."""
    choice = None if generation is None else campaign.stage_result(generation, "choice")
    return str(choice[what]) if choice else ""


def _trainer_now(campaign: Campaign) -> str:
    trainer = campaign.config.training.trainer
    if trainer != "auto":
        return trainer
    result = campaign.triage_result()
    return str(result["trainer"]) if result else DEFAULT_TRAINER


def _strategy_now(campaign: Campaign) -> str:
    strategy = campaign.config.query.strategy
    if strategy != "auto":
        return strategy
    result = campaign.triage_result()
    return str(result["route"]["query"]) if result else DEFAULT_STRATEGY


Profile = Literal["none", "specks", "filled", "connected"]


def profile_of(campaign: Campaign) -> tuple[Profile, float]:
    """Return the post-processing profile of a campaign and the thickness of its structure in micrometre.

    A person's choice goes first, then the triage's route; nothing is done where no triage measured the thickness.
    """
    result: Any = campaign.triage_result()
    profile = campaign.config.annotation.postprocessing
    thickness = next((e["value"] for e in result["evidence"] if e["name"] == "thickness"), None) if result else None
    if thickness is None:
        return "none", 0.0
    return (result["route"]["postprocessing"] if profile == "auto" else profile), float(thickness)
