"""What is known of trainings outside the loop: what was asked for, how far they are, what they left."""

from __future__ import annotations

from typing import Any

from rescueseg.campaign.campaign import Campaign
from rescueseg.records import Record, Snapshot


class OutsideTraining(Record):
    """One training outside the loop."""

    name: str
    trainer: str
    snapshot: Snapshot


def requested(campaign: Campaign, name: str) -> OutsideTraining:
    """Return what was asked for when a training began."""
    return OutsideTraining.model_validate(campaign.storage.read_json(campaign.training_path(name, "request.json")))


def finished(campaign: Campaign, name: str) -> Any | None:
    """Return what a training left, None before it has finished."""
    path = campaign.training_path(name, "training.json")
    return campaign.storage.read_json(path) if campaign.storage.exists(path) else None


def step_of(campaign: Campaign, name: str) -> str:
    """Say how far a training is; empty before its first note."""
    path = campaign.training_path(name, "progress.json")
    if not campaign.storage.exists(path):
        return ""
    step, steps = campaign.storage.read_json(path)
    return f", training step {step} of {steps}"
