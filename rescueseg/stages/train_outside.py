"""Trainings outside the loop: another trainer or setting on accepted annotations, beside the generations.

Such a training is named by the digest of all that decides its model, so that the same command goes on where it was
killed, and finds the model once it is finished. No generation, champion or query depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from rescueseg.campaign import Campaign
from rescueseg.campaign import snapshot as snapshots
from rescueseg.campaign.outside_trainings import REQUEST, RESULT, STEPS, OutsideResult, OutsideTraining
from rescueseg.campaign.route import current_choice
from rescueseg.campaign.stage_results import TRAINING
from rescueseg.errors import TrainingError
from rescueseg.models.registry import check_families, find_entry, outline
from rescueseg.models.trainer import Outline
from rescueseg.progress import StepProgress
from rescueseg.queue.store import QueueStore
from rescueseg.randomness import random_generator
from rescueseg.records import Snapshot
from rescueseg.stages.stage import NOTE_EVERY
from rescueseg.stages.train import train_snapshot, with_changes
from rescueseg.storage import digest_json
from rescueseg.volumes.comparison import ensure_compared


def plan(
    campaign: Campaign,
    store: QueueStore,
    trainer: str = "",
    generation: int | None = None,
    changes: Mapping[str, JsonValue] | None = None,
) -> OutsideTraining:
    """Return the training to be run; nothing is written.

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
    changes : mapping, optional
        Training settings that are not to be the campaign's, by name.

    Raises
    ------
    TrainingError
        If the generation has no snapshot.
    SamplingError
        If nothing is accepted yet, or the holdout is not frozen.
    ConfigError
        If there is no such trainer, or a table of a model family is not valid.
    """
    ensure_compared(campaign.volumes, write=False)
    name = trainer or current_choice(campaign).trainer
    if generation is None:  # what the next generation would have now
        last = store.ledger.last_generation()
        number = 0 if last is None else last.generation + 1
        snapshot: Snapshot | None = snapshots.make_snapshot(campaign, number, store.views.accepted("pool"))
    else:
        snapshot = campaign.generation(generation).snapshot()
    if snapshot is None:
        raise TrainingError(
            f"generation {generation} has no snapshot",
            where=campaign.url,
            todo="Leave --generation out to train on what is accepted now",
        )
    training = with_changes(campaign.config, changes or {}).training
    check_families(training, campaign.file)
    settings = training.shared() | find_entry(name).settings.of(training).identity()
    identity = digest_json([name, snapshot.digest, snapshot.generation, settings, campaign.config.seed])
    return OutsideTraining(name=f"{name}-{identity[:12]}", trainer=name, snapshot=snapshot, changes=dict(changes or {}))


def estimate(campaign: Campaign, training: OutsideTraining) -> tuple[Outline, float | None]:
    """Return the outline of a training, and the seconds it would take.

    The seconds are those of a step in the latest generation of the same trainer; None where there is none.
    """
    expected = outline(training.trainer, campaign.config, campaign.volumes, training.snapshot)
    for generation in reversed(campaign.generations()):
        result, seconds = generation.read(TRAINING), generation.read(TRAINING.seconds)
        if result and seconds and result.model.trainer == training.trainer:
            return expected, expected.steps * seconds / result.iterations
    return expected, None


def run(campaign: Campaign, training: OutsideTraining, progress: StepProgress) -> OutsideResult:
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
    OutsideResult
        Reference to the model, steps, warnings and seconds; the losses are stored beside it.
    """
    folder = campaign.training(training.name)
    if (previous := folder.read(RESULT)) is not None:
        return previous
    folder.write(REQUEST, training)
    config = with_changes(campaign.config, training.changes)
    steps = outline(training.trainer, config, campaign.volumes, training.snapshot).steps

    def note(step: int, metrics: Mapping[str, float]) -> None:
        if step % NOTE_EVERY == 0:
            folder.write(STEPS, (step, steps))
        progress(step, metrics)

    trained, seconds = train_snapshot(
        campaign,
        training.snapshot,
        training.trainer,
        seed=int(random_generator(campaign.config.seed, "outside", training.name).integers(2**31)),
        folder=folder,
        progress=note,
        config=config,
    )
    result = OutsideResult(
        model=trained.model, iterations=trained.iterations, warnings=trained.warnings, seconds=seconds
    )
    folder.write(RESULT, result)
    return result
