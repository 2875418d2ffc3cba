"""The records of trainings outside the loop: their request, how far they are, their result."""

from __future__ import annotations

from pydantic import Field, JsonValue

from rescueseg.campaign.folders import RecordFolder, TrainingFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.stage_results import LOSSES, OLDER_LOSSES, Losses, TrainingResult
from rescueseg.errors import RESTORE, CampaignError
from rescueseg.records import Record, Snapshot


class OutsideTraining(Record):
    """One training outside the loop."""

    name: str
    trainer: str
    snapshot: Snapshot
    changes: dict[str, JsonValue] = Field(default_factory=dict)
    """Training settings that are not the campaign's: in a trial of trainers."""


class OutsideResult(TrainingResult):
    """A finished training outside the loop: no generation's result, so that its time may stand in it."""

    seconds: float


REQUEST = RecordFile("request", OutsideTraining)
RESULT = RecordFile("training", OutsideResult)
STEPS = RecordFile("progress", tuple[int, int])
"""Optimiser steps taken, and steps in all."""


def read_request(training: TrainingFolder) -> OutsideTraining:
    """Return the request that a training began with.

    Raises
    ------
    CampaignError
        If there is none.
    """
    request = training.read(REQUEST)
    if request is None:
        raise CampaignError(
            f"the training '{training.name}' has no request.json",
            where=training.storage.url,
            todo=RESTORE,
        )
    return request


def step_of(training: TrainingFolder) -> str:
    """Say how far a training is; empty before its first note."""
    steps = training.read(STEPS)
    return f", training step {steps[0]} of {steps[1]}" if steps else ""


def read_losses(folder: RecordFolder) -> Losses:
    """Return the losses of a finished training, in the loop or outside it.

    Parameters
    ----------
    folder : RecordFolder
        Of the generation or the training.

    Returns
    -------
    tuple of dict
        One entry per optimiser step: `step`, `loss`, `learning_rate`; empty before they are stored.
    """
    losses = folder.read(LOSSES)
    if losses is not None:
        return losses
    older = folder.read(OLDER_LOSSES)
    return older.losses if older else ()
