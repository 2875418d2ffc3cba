"""Requests to a trainer and its results. Imports neither torch nor MONAI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.label_arrays import read_classes
from rescueseg.campaign.snapshot import guard
from rescueseg.config import CampaignConfig, TrainingConfig
from rescueseg.errors import TrainingError
from rescueseg.geometry import ZYX
from rescueseg.labels import IGNORE
from rescueseg.models.settings import FamilySettings
from rescueseg.progress import StepProgress
from rescueseg.records import Holdout, Snapshot
from rescueseg.storage import Storage

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class TrainerCapabilities:
    """What the loop asks of a trainer beyond training; `check_request` refuses a request for anything else.

    What a family's own settings ask for is no capability: see `Trainer.ignored`.

    Parameters
    ----------
    partial_labels : bool
        Voxels labelled 255 take no part in the loss.
    warm_start : bool
        It can start from the weights of another model.
    several_classes, several_channels, several_gpus : bool
        It takes more than one foreground class, image channel or GPU.
    needs_instances : bool
        It learns from numbered objects; classes alone do not do.
    exact_on : tuple of str
        Kinds of device on which the same request gives the same digest, killed and rerun any number of times. On
        others a resumed training ends within 0.03 Dice of an undisturbed one.
    """

    partial_labels: bool
    warm_start: bool = True
    several_classes: bool = True
    several_channels: bool = True
    several_gpus: bool = False
    needs_instances: bool = False
    exact_on: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class TrainingRequest:
    """One training of one generation.

    Parameters
    ----------
    config : CampaignConfig
        Settings of the campaign.
    volumes : VolumeFolder
        Its volumes; label arrays lie in the same storage.
    holdout : Holdout or None
        What must not be read.
    snapshot : Snapshot
        The training set.
    work_dir : Path
        Local folder for checkpoints and the finished model; a rerun with the same folder resumes.
    seed : int
        Every random number follows from it.
    warm_start : Path, optional
        Model folder whose weights the training starts from.
    device : str
        A torch device, such as `cpu` or `cuda:0`.
    """

    config: CampaignConfig
    volumes: VolumeFolder
    holdout: Holdout | None
    snapshot: Snapshot
    work_dir: Path
    seed: int
    warm_start: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class TrainedModel:
    """A finished training.

    Parameters
    ----------
    path : Path
        Folder that holds the weights, their description and nothing else.
    digest : str
        sha256 of weights and description, see `model_digest`.
    iterations : int
        Optimiser steps taken, those before a kill included.
    seconds : float
        Wall-clock time of training, that before a kill included up to its last checkpoint.
    losses : tuple of dict
        One entry per step: `step`, `loss`, `learning_rate`.
    warnings : tuple of str
        What a person should know, such as a class without a single training voxel.
    notes : tuple of str
        What a person should know of this machine, such as that it cannot compute the plan in bfloat16; it is no part of
        the model.
    """

    path: Path
    digest: str
    iterations: int
    seconds: float
    losses: tuple[dict[str, float], ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """What a training would be, before it starts.

    Parameters
    ----------
    cases : int
        Annotated patches.
    window_zyx : tuple of int, optional
        Training window in voxels of the working spacing; None where the trainer chooses it from the images.
    steps : int
        Optimiser steps, over all networks.
    networks : int
        Networks of the ensemble.
    folds : str
        What each network trains on, for people.
    """

    cases: int
    window_zyx: ZYX | None
    steps: int
    networks: int
    folds: str


class Trainer(Protocol):
    """Turns a snapshot into a model."""

    @property
    def name(self) -> str:
        """Name in the registry."""

    @property
    def capabilities(self) -> TrainerCapabilities:
        """What it can do."""

    @property
    def settings(self) -> type[FamilySettings]:
        """Its family's table of settings."""

    @property
    def ignored(self) -> Mapping[str, str]:
        """Settings that it would not heed, by their path below ``training``, and what it would take to heed each."""

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit the model as the last act.

        The same request gives the same digest, killed and rerun any number of times, where `capabilities.exact_on`
        says so.

        Raises
        ------
        TrainingError
            If the snapshot holds no labelled voxel, the training diverged, or the request asks for what the trainer
            cannot do.
        LeakError
            If the snapshot would read from a holdout box.
        """


def check_request(trainer: Trainer, request: TrainingRequest) -> None:
    """Refuse a request that reads from the holdout or asks for what a trainer cannot do; trainers begin with it.

    A setting at its default is no request: the campaign file holds every default, and a triage may choose the trainer.
    Neither is the table of another family: it waits for that family's trainers.

    Parameters
    ----------
    trainer : Trainer
        Says what it can do and which settings it ignores.
    request : TrainingRequest
        The training.

    Raises
    ------
    LeakError
        If an item's read box touches a holdout box.
    TrainingError
        If a capability is missing; the message names it.
    ConfigError
        If the family's settings are not valid.
    """
    volumes, snapshot = request.volumes, request.snapshot
    config, able = request.config.training, trainer.capabilities
    holdout = request.holdout
    if holdout is not None:
        guard(holdout, snapshot.items, volumes.shared_places())
    channels = max((volumes.record(v).channels for v in {i.volume_id for i in snapshot.items}), default=1)
    check_settings(trainer, config)
    requirements = (
        (request.warm_start is not None, able.warm_start, "start from another model", "training.warm_start"),
        (snapshot.n_classes > 1, able.several_classes, "learn several classes", "classes"),
        (channels > 1, able.several_channels, "read several channels", "volumes"),
        (config.gpus > 1, able.several_gpus, "use several GPUs", "training.gpus"),
        (
            not able.partial_labels and _has_partial_labels(volumes.storage, snapshot),
            False,
            "learn from partial labels",
            "labels",
        ),
        (
            able.needs_instances and any(item.instances is None for item in snapshot.items),
            False,
            "learn from classes without numbered objects",
            "annotation.labels",
        ),
    )
    for is_required, is_able, what, where in requirements:
        if is_required and not is_able:
            field = TrainingConfig.model_fields.get(where.removeprefix("training."))
            raise _refusal(trainer.name, what, where, f"{field.default}" if field else "")


def check_settings(trainer: Trainer, config: TrainingConfig) -> None:
    """Check the table of a trainer's family, and refuse what the trainer would not heed; a default is no request.

    Raises
    ------
    TrainingError
        The message names the setting.
    ConfigError
        If the table holds an unknown key or a value out of range.
    """
    own = trainer.settings.of(config)
    for path, what in trainer.ignored.items():
        family, _, name = path.rpartition(".")
        table: FamilySettings | TrainingConfig = own if family else config
        default = type(table).model_fields[name].default
        if getattr(table, name) != default:
            raise _refusal(trainer.name, what, f"training.{path}", f"{default}")


def _refusal(name: str, what: str, where: str, default: str) -> TrainingError:
    leave = f", or leave it at {default}" if default else ""
    return TrainingError(
        f"the trainer '{name}' cannot {what}", where=where, todo=f"Choose another trainer in training.trainer{leave}"
    )


def check_gpus(gpus: int, device: str, available: int, batch_size: int | None) -> None:
    """Refuse a training on several GPUs where it cannot be.

    Parameters
    ----------
    gpus : int
        Asked for.
    device : str
        Where the training is to run.
    available : int
        GPUs of this machine.
    batch_size : int, optional
        Windows per step, shared by the GPUs; None while it is not planned yet.

    Raises
    ------
    TrainingError
        If the device is no GPU, there are fewer, or one would get no window.
    """
    if gpus == 1:
        return
    if not device.startswith("cuda"):
        raise TrainingError(
            f"{gpus} GPUs are asked for, and the training runs on '{device}'", where="training.gpus", todo="Set it to 1"
        )
    if gpus > available:
        raise TrainingError(
            f"{gpus} GPUs are asked for, and there are {available}", where="training.gpus", todo="Ask for fewer"
        )
    if batch_size is not None and batch_size < gpus:
        raise TrainingError(
            f"a batch of {batch_size} windows leaves some of {gpus} GPUs without one",
            where="training.batch_size",
            todo=f"Set it to {gpus} or more, or ask for fewer in training.gpus",
        )


def _has_partial_labels(storage: Storage, snapshot: Snapshot) -> bool:
    return any((read_classes(storage, item) == IGNORE).any() for item in snapshot.items)


def unlabelled_warnings(names: Sequence[str], classes: Iterable[int]) -> list[str]:
    """Return a sentence for each class without a labelled voxel.

    Parameters
    ----------
    names : sequence of str
        Of all classes; class 1 is the first.
    classes : iterable of int
        Those without a labelled voxel.

    Examples
    --------
    >>> unlabelled_warnings(["nucleus", "mitochondrion"], [2])
    ["class 2 ('mitochondrion') has no labelled voxel"]
    """
    return [f"class {c} ('{names[c - 1]}') has no labelled voxel" for c in classes]


def model_digest(weights: bytes, description: bytes) -> str:
    """Return the sha256 over the sha256 of the weights and that of the description."""
    return hashlib.sha256(hashlib.sha256(weights).digest() + hashlib.sha256(description).digest()).hexdigest()


def ignore_progress(step: int, metrics: Mapping[str, float]) -> None:
    """Do nothing: the progress callback of a caller that shows none."""
