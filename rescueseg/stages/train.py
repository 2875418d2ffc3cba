"""The training stage; trainings outside the loop go the same way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from rescueseg.campaign import Campaign, GenerationFolder, TrainingFolder
from rescueseg.campaign.outside_trainings import RESULT, read_losses
from rescueseg.campaign.route import frozen_choice
from rescueseg.campaign.stage_results import LOSSES, TRAINING, TRIAL, TrainerTrial, TrainingResult
from rescueseg.config import CampaignConfig
from rescueseg.errors import RESTORE, TrainingError
from rescueseg.models.files import committed_files
from rescueseg.models.registry import get_trainer, resolve_device
from rescueseg.models.trainer import DESCRIPTION_FILE, WEIGHTS_FILE, TrainingRequest
from rescueseg.progress import StepProgress
from rescueseg.randomness import random_generator
from rescueseg.records import ModelReference, Snapshot
from rescueseg.stages.stage import NOTE_EVERY, commit
from rescueseg.storage import Storage, write_atomically


def train(campaign: Campaign, generation: int, progress: StepProgress) -> TrainingResult:
    """Train the generation's model, or go on training it from its last checkpoint.

    Where trainers were tried on the generation's snapshot, its model is that of the one that was taken: it is not trained again.
    The stage's seconds are the trainer's: those before a kill count, setting up does not.

    Parameters
    ----------
    campaign : Campaign
        Its ``training`` settings name the trainer.
    generation : int
        Its snapshot must exist.
    progress : callable
        Called once per step with the step and its metrics.

    Raises
    ------
    TrainingError
        If the snapshot is missing or holds nothing to learn from.
    """
    folder = campaign.generation(generation)
    previous = folder.read(TRAINING)
    if previous is not None:
        return previous
    training_set, trial = folder.snapshot(), folder.read(TRIAL)
    if training_set is None:
        raise TrainingError("the snapshot is missing", where=f"generation {generation}", todo="Make it first")
    if trial is not None:
        result, seconds = _take_over(campaign, trial, folder, progress)
    else:
        result, seconds = train_snapshot(
            campaign,
            training_set,
            frozen_choice(campaign, generation).trainer,
            seed=int(random_generator(campaign.config.seed, "training", generation).integers(2**31)),
            folder=folder,
            progress=partial(_note_step, folder, progress),
        )
    commit(folder, TRAINING, result, seconds)
    return result


def train_snapshot(
    campaign: Campaign,
    training_set: Snapshot,
    name: str,
    *,
    seed: int,
    folder: GenerationFolder | TrainingFolder,
    progress: StepProgress,
    config: CampaignConfig | None = None,
) -> tuple[TrainingResult, float]:
    """Train on a snapshot and store model and losses in the campaign.

    With ``training.warm_start`` the model of the generation before is where it starts, if the same trainer made it.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    training_set : Snapshot
        What is trained on.
    name : str
        The trainer's.
    seed : int
        Every random number follows from it.
    folder : GenerationFolder or TrainingFolder
        Gets ``model`` and ``losses.json``; a rerun goes on from the checkpoints in its work folder.
    progress : callable
        Called once per step with the step and its metrics.
    config : CampaignConfig, optional
        Settings; the campaign's when omitted.

    Returns
    -------
    result : TrainingResult
        Reference to the model, steps and warnings; whoever commits it writes it as the last act.
    seconds : float
        Of the training, those before a kill included.
    """
    trainer, number = get_trainer(name), training_set.generation
    settings = config or campaign.config
    request, warnings = training_request(campaign, training_set, name, seed, folder.work_folder(), settings)
    model = trainer.train(request, progress)
    for file in sorted(model.path.iterdir()):
        campaign.storage.write_bytes(f"{folder.model_folder()}/{file.name}", file.read_bytes())
    folder.write(LOSSES, model.losses)
    reference = ModelReference(generation=number, trainer=trainer.name, path=folder.model_folder(), digest=model.digest)
    result = TrainingResult(
        model=reference, iterations=model.iterations, warnings=(*warnings, *model.warnings, *model.notes)
    )
    return result, round(model.seconds, 3)


def training_request(
    campaign: Campaign, training_set: Snapshot, name: str, seed: int, work_dir: Path, config: CampaignConfig
) -> tuple[TrainingRequest, list[str]]:
    """Return the request of a training on a snapshot, and what a person should know of where it starts.

    Parameters as of `train_snapshot`; `work_dir` is where the trainer works on this machine.
    """
    number, warnings = training_set.generation, []
    previous = campaign.generation(number - 1).model() if number and config.training.warm_start else None
    if previous is not None and previous.trainer != name:
        warnings = [f"trained from scratch: generation {number - 1} was made by another trainer, {previous.trainer}"]
        previous = None
    request = TrainingRequest(
        config=config,
        volumes=campaign.volumes,
        holdout=campaign.holdout(),
        snapshot=training_set,
        work_dir=work_dir,
        seed=seed,
        warm_start=_local_copy(campaign.storage, previous, work_dir) if previous else None,
        device=resolve_device("auto"),
    )
    return request, warnings


def with_changes(config: CampaignConfig, changes: Mapping[str, JsonValue]) -> CampaignConfig:
    """Return the settings with other training settings, by name."""
    return config.model_copy(update={"training": config.training.model_copy(update=dict(changes))})


def _take_over(
    campaign: Campaign, trial: TrainerTrial, folder: GenerationFolder, progress: StepProgress
) -> tuple[TrainingResult, float]:
    """Copy the model that a trial chose, with its losses, and return its training as the generation's."""
    training = campaign.training(trial.winner.training)
    made = training.read(RESULT)
    if made is None:
        raise TrainingError(
            f"the training '{trial.winner.training}', whose model the trial chose, is gone",
            where=f"generation {folder.number}",
            todo=RESTORE,
        )
    files = committed_files(campaign.storage, made.model)
    for name, data in zip((WEIGHTS_FILE, DESCRIPTION_FILE), files, strict=True):
        campaign.storage.write_bytes(f"{folder.model_folder()}/{name}", data)
    losses = read_losses(training)
    folder.write(LOSSES, losses)
    for of_step in losses:
        progress(int(of_step["step"]), {name: value for name, value in of_step.items() if name != "step"})
    model = made.model.model_copy(update={"generation": folder.number, "path": folder.model_folder()})
    return TrainingResult(model=model, iterations=made.iterations, warnings=made.warnings), round(made.seconds, 3)


def _note_step(folder: GenerationFolder, progress: StepProgress, step: int, metrics: Mapping[str, float]) -> None:
    if step % NOTE_EVERY == 0:
        folder.note_progress("training step", step, 0)
    progress(step, metrics)


def _local_copy(storage: Storage, model: ModelReference, work_dir: Path) -> Path:
    """Copy a committed model to this machine's disk: the one that trained it may be another."""
    folder = work_dir / "warm-start"
    for name, data in zip((WEIGHTS_FILE, DESCRIPTION_FILE), committed_files(storage, model), strict=True):
        write_atomically(folder / name, data)
    return folder
