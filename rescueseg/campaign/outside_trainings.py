"""The records of trainings outside the loop: their request, how far they are, their result."""

from __future__ import annotations

from typing import Any

from rescueseg.campaign.campaign import Campaign
from rescueseg.records import Record, Snapshot


class OutsideTraining(Record):
    """One training outside the loop."""

    name: str
    trainer: str
    snapshot: Snapshot


def read_request(campaign: Campaign, name: str) -> OutsideTraining:
    """Return the request that a training began with."""
    return OutsideTraining.model_validate(campaign.storage.read_json(campaign.training_path(name, "request.json")))


def training_result(campaign: Campaign, name: str) -> Any | None:
    """Return the result of a training, None before it has finished."""
    path = campaign.training_path(name, "training.json")
    return campaign.storage.read_json(path) if campaign.storage.exists(path) else None


def step_of(campaign: Campaign, name: str) -> str:
    """Say how far a training is; empty before its first note."""
    path = campaign.training_path(name, "progress.json")
    if not campaign.storage.exists(path):
        return ""
    step, steps = campaign.storage.read_json(path)
    return f", training step {step} of {steps}"
