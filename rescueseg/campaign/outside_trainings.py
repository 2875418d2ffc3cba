"""The records of trainings outside the loop: their request, how far they are, their result."""

from __future__ import annotations

from rescueseg.campaign.campaign import Campaign
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.stage_results import LOSSES, OLDER_LOSSES, Losses, TrainingResult
from rescueseg.errors import CampaignError
from rescueseg.records import Record, Snapshot


class OutsideTraining(Record):
    """One training outside the loop."""

    name: str
    trainer: str
    snapshot: Snapshot


class OutsideResult(TrainingResult):
    """A finished training outside the loop: no generation's result, so that its time may stand in it."""

    seconds: float


REQUEST = RecordFile("request", OutsideTraining)
RESULT = RecordFile("training", OutsideResult)
STEPS = RecordFile("progress", tuple[int, int])
"""Optimiser steps taken, and steps in all."""


def read_request(campaign: Campaign, name: str) -> OutsideTraining:
    """Return the request that a training began with.

    Raises
    ------
    CampaignError
        If there is none.
    """
    request = campaign.read(REQUEST, campaign.training_path(name))
    if request is None:
        raise CampaignError(
            f"the training '{name}' has no request.json", where=campaign.url, todo="Restore it from a backup"
        )
    return request


def training_result(campaign: Campaign, name: str) -> OutsideResult | None:
    """Return the result of a training, None before it has finished."""
    return campaign.read(RESULT, campaign.training_path(name))


def step_of(campaign: Campaign, name: str) -> str:
    """Say how far a training is; empty before its first note."""
    steps = campaign.read(STEPS, campaign.training_path(name))
    return f", training step {steps[0]} of {steps[1]}" if steps else ""


def read_losses(campaign: Campaign, folder: str) -> Losses:
    """Return the losses of a finished training, in the loop or outside it.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    folder : str
        Of the generation or the training, below the campaign.

    Returns
    -------
    tuple of dict
        One entry per optimiser step: `step`, `loss`, `learning_rate`; empty before they are stored.
    """
    losses = campaign.read(LOSSES, folder)
    if losses is not None:
        return losses
    older = campaign.read(OLDER_LOSSES, folder)
    return older.losses if older else ()
