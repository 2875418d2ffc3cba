"""Trainings outside the loop: another trainer or setting on accepted annotations, beside the generations.

Such a training has a name made from what decides its model, so that the same command goes on where it was killed, and
finds the model once it is finished. No generation, champion or query depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rescueseg import snapshot as snapshots
from rescueseg.annotation.store import QueueStore
from rescueseg.campaign import Campaign
from rescueseg.errors import TrainingError
from rescueseg.generation import train_snapshot
from rescueseg.records import ModelReference, Record, Snapshot
from rescueseg.seeds import random_generator
from rescueseg.storage import digest_json
from rescueseg.training.base import Outline
from rescueseg.training.folder import checkpoints
from rescueseg.training.registry import outline
from rescueseg.triage import trainer_name

_NOTE_EVERY = 10


class OutsideTraining(Record):
    """One training outside the loop."""

    name: str
    trainer: str
    snapshot: Snapshot


def plan(campaign: Campaign, store: QueueStore, trainer: str = "", generation: int | None = None) -> OutsideTraining:
    """Return the training that is asked for; nothing is written.

    Parameters
    ----------
    campaign : Campaign
        Its settings, but for the trainer.
    store : QueueStore
        Its queue, for the accepted annotations.
    trainer : str
        Name of the trainer; the campaign's own when empty.
    generation : int, optional
        Generation whose snapshot is trained on; all that is accepted now when omitted.

    Raises
    ------
    TrainingError
        If the generation has no snapshot.
    SamplingError
        If nothing is accepted yet, or the holdout is not frozen.
    """
    name = trainer or trainer_name(campaign)
    if generation is None:
        last = store.last_generation()
        number = 0 if last is None else last.generation + 1
        chosen = snapshots.make_snapshot(campaign, number, store.accepted("pool"))
    else:
        found = campaign.snapshot(generation)
        if found is None:
            raise TrainingError(
                f"generation {generation} has no snapshot",
                where=campaign.url,
                todo="Leave --generation out to train on what is accepted now",
            )
        chosen = found
    settings = campaign.config.training.model_dump(mode="json", exclude={"trainer"})
    identity = digest_json([name, chosen.digest, chosen.generation, settings, campaign.config.seed])
    return OutsideTraining(name=f"{name}-{identity[:12]}", trainer=name, snapshot=chosen)


def look(campaign: Campaign, training: OutsideTraining) -> tuple[Outline, float | None]:
    """Return what the training would be, and the seconds it would take.

    The seconds are those of a step in the latest generation of the same trainer; None where there is none.
    """
    told = outline(training.trainer, campaign, training.snapshot)
    for generation in reversed(campaign.generations()):
        done, seconds = (campaign.stage_result(generation, stage) for stage in ("training", "training.seconds"))
        if done and seconds and done["model"]["trainer"] == training.trainer:
            return told, told.steps * float(seconds) / done["iterations"]
    return told, None


def requested(campaign: Campaign, name: str) -> OutsideTraining:
    """Return what was asked for when a training began."""
    return OutsideTraining.model_validate(campaign.storage.read_json(campaign.training_path(name, "request.json")))


def finished(campaign: Campaign, name: str) -> Any | None:
    """Return what a training left, None before it has finished."""
    path = campaign.training_path(name, "training.json")
    return campaign.storage.read_json(path) if campaign.storage.exists(path) else None


def run(
    campaign: Campaign, training: OutsideTraining, progress: Callable[[int, Mapping[str, float]], None]
) -> dict[str, Any]:
    """Train, or go on training, and commit ``training.json`` as the last act; a finished training is not repeated.

    Parameters
    ----------
    campaign : Campaign
        Gets the model in ``trainings/<name>/model``.
    training : OutsideTraining
        From `plan`.
    progress : callable
        Called once per step with the step and its metrics.

    Returns
    -------
    dict
        As `rescueseg.generation.train_snapshot`.
    """
    name, storage = training.name, campaign.storage
    if (done := finished(campaign, name)) is not None:
        return dict(done)
    storage.write_json(campaign.training_path(name, "request.json"), training.to_json())
    steps = outline(training.trainer, campaign, training.snapshot).steps

    def note(step: int, metrics: Mapping[str, float]) -> None:
        if step % _NOTE_EVERY == 0:
            storage.write_json(campaign.training_path(name, "progress.json"), [step, steps])
        progress(step, metrics)

    result = train_snapshot(
        campaign,
        training.snapshot,
        training.trainer,
        seed=int(random_generator(campaign.config.seed, "outside", name).integers(2**31)),
        work_dir=work_folder(campaign, name),
        folder=campaign.training_path(name, "model"),
        progress=note,
    )
    storage.write_json(campaign.training_path(name, "training.json"), result)
    return result


def run_tracked(campaign: Campaign, training: OutsideTraining) -> dict[str, Any]:
    """Train as `run` does, seen in MLflow: settings, training set, curves, the last checkpoint and the model.

    Its run there ends as finished or failed; the model is stored with it but not registered, which generations are.

    Raises
    ------
    ServiceError
        If MLflow cannot be reached before or after the training; a finished training is not repeated.
    """
    from rescueseg.tracking import Tracker

    tracker, name = Tracker(campaign), training.name
    with tracker.training(name) as run_id:
        tracker.log_config(run_id, {"training.trainer": training.trainer})
        request = campaign.training_path(name, "request.json")
        campaign.storage.write_json(request, training.to_json())
        tracker.log_training_set(run_id, training.snapshot, request)
        with tracker.live(lambda: run_id, partial(checkpoints, work_folder(campaign, name))) as live:
            result = run(campaign, training, live)
        tracker.log_metrics(run_id, 0, {"seconds": result["seconds"]})
        tracker.log_model(f"training-{name}", ModelReference.model_validate(result["model"]), run_id)
    return result


def work_folder(campaign: Campaign, name: str) -> Path:
    """Return the local folder of a training's checkpoints."""
    return campaign.local_folder(campaign.training_path(name, "training"))


def step_of(campaign: Campaign, name: str) -> str:
    """Say how far a training is; empty before its first note."""
    path = campaign.training_path(name, "progress.json")
    if not campaign.storage.exists(path):
        return ""
    step, steps = campaign.storage.read_json(path)
    return f", training step {step} of {steps}"
