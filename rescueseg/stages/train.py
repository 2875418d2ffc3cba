"""The training stage; trainings outside the loop go the same way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import trainer_name
from rescueseg.campaign.stage_results import LOSSES, TRAINING, TrainingResult
from rescueseg.errors import TrainingError
from rescueseg.models.files import committed_files
from rescueseg.models.registry import get_trainer, resolve_device
from rescueseg.models.trainer import DESCRIPTION_FILE, WEIGHTS_FILE, TrainingRequest
from rescueseg.progress import StepProgress
from rescueseg.randomness import random_generator
from rescueseg.records import ModelReference, Snapshot
from rescueseg.stages.stage import NOTE_EVERY, commit
from rescueseg.storage import write_atomically


def train(campaign: Campaign, generation: int, progress: StepProgress) -> TrainingResult:
    """Train the generation's model, or go on training it from its last checkpoint.

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
    previous = campaign.result(TRAINING, generation)
    if previous is not None:
        return previous
    result, seconds = _train(campaign, generation, progress)
    commit(campaign, generation, TRAINING, result, seconds)
    return result


def _train(campaign: Campaign, generation: int, progress: StepProgress) -> tuple[TrainingResult, float]:
    training_set = campaign.snapshot(generation)
    if training_set is None:
        raise TrainingError("the snapshot is missing", where=f"generation {generation}", todo="Make it first")
    return train_snapshot(
        campaign,
        training_set,
        trainer_name(campaign, generation),
        seed=_seed(campaign, generation, "training"),
        work_dir=campaign.work_folder(generation),
        folder=campaign.generation_path(generation),
        progress=partial(_note_step, campaign, generation, progress),
    )


def train_snapshot(
    campaign: Campaign,
    training_set: Snapshot,
    name: str,
    *,
    seed: int,
    work_dir: Path,
    folder: str,
    progress: StepProgress,
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
    work_dir : Path
        Local folder of checkpoints; a rerun with the same one resumes.
    folder : str
        Of the generation or the training, below the campaign: gets ``model`` and ``losses.json``.
    progress : callable
        Called once per step with the step and its metrics.

    Returns
    -------
    result : TrainingResult
        Reference to the model, steps and warnings; whoever commits it writes it as the last act.
    seconds : float
        Of the training, those before a kill included.
    """
    trainer, number = get_trainer(name), training_set.generation
    warnings: list[str] = []
    previous = campaign.model(number - 1) if number and campaign.config.training.warm_start else None
    if previous is not None and previous.trainer != name:
        warnings = [f"trained from scratch: generation {number - 1} was made by another trainer, {previous.trainer}"]
        previous = None
    request = TrainingRequest(
        campaign=campaign,
        snapshot=training_set,
        work_dir=work_dir,
        seed=seed,
        warm_start=_local_copy(campaign, previous, work_dir) if previous else None,
        device=resolve_device("auto"),
    )
    model = trainer.train(request, progress)
    for file in sorted(model.path.iterdir()):
        campaign.storage.write_bytes(f"{folder}/model/{file.name}", file.read_bytes())
    campaign.write(LOSSES, model.losses, folder)
    reference = ModelReference(generation=number, trainer=trainer.name, path=f"{folder}/model", digest=model.digest)
    result = TrainingResult(
        model=reference, iterations=model.iterations, warnings=(*warnings, *model.warnings, *model.notes)
    )
    return result, round(model.seconds, 3)


def _note_step(
    campaign: Campaign,
    generation: int,
    progress: StepProgress,
    step: int,
    metrics: Mapping[str, float],
) -> None:
    if step % NOTE_EVERY == 0:
        campaign.note_progress(generation, "training step", step, 0)
    progress(step, metrics)


def _local_copy(campaign: Campaign, model: ModelReference, work_dir: Path) -> Path:
    """Copy a committed model to this machine's disk: the one that trained it may be another."""
    folder = work_dir / "warm-start"
    for name, data in zip((WEIGHTS_FILE, DESCRIPTION_FILE), committed_files(campaign, model), strict=True):
        write_atomically(folder / name, data)
    return folder


def _seed(campaign: Campaign, generation: int, purpose: str) -> int:
    return int(random_generator(campaign.config.seed, purpose, generation).integers(2**31))
