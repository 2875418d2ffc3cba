"""Phase 0: which problem is it, and what does it call for? See `run.triage` and the tree in `tree`."""

from __future__ import annotations

from rescueseg.campaign import Campaign

__all__ = ["DEFAULT_STRATEGY", "DEFAULT_TRAINER", "query_strategy", "trainer_name"]

DEFAULT_TRAINER = "monai_unet"
DEFAULT_STRATEGY = "clasp_entropy"


def trainer_name(campaign: Campaign) -> str:
    """Return the trainer of a campaign: a person's choice, else the triage's, else the MONAI U-Net."""
    chosen = campaign.config.training.trainer
    if chosen != "auto":
        return chosen
    result = campaign.triage_result()
    return str(result["trainer"]) if result else DEFAULT_TRAINER


def query_strategy(campaign: Campaign) -> str:
    """Return the query strategy of a campaign: a person's choice, else the triage's, else `clasp_entropy`."""
    chosen = campaign.config.query.strategy
    if chosen != "auto":
        return chosen
    result = campaign.triage_result()
    return str(result["route"]["query"]) if result else DEFAULT_STRATEGY
