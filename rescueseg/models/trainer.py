"""Requests to a trainer and its results. Imports neither torch nor MONAI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import guard
from rescueseg.config import TrainingConfig
from rescueseg.errors import TrainingError
from rescueseg.geometry import ZYX
from rescueseg.labels import IGNORE
from rescueseg.progress import StepProgress
from rescueseg.records import Snapshot

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class TrainerCapabilities:
    """What a trainer can do beyond training; `check_request` refuses a request for anything else.

    Parameters
    ----------
    partial_labels : bool
        Voxels labelled 255 take no part in the loss.
    warm_start : bool
        It can start from the weights of another model.
    several_classes, several_channels, several_gpus : bool
        It takes more than one foreground class, image channel or GPU.
    weight_average, class_weights, deep_supervision : bool
        Settings make it average its weights over the steps, let rare classes weigh more, and give coarse stages a loss
        of their own.
    topology_terms : bool
        Its loss can have terms for topology.
    nnunet_plans : bool
        It plans by nnU-Net's planners and configurations.
    exact_on : tuple of str
        Kinds of device on which the same request gives the same digest, killed and rerun any number of times. On
        others a resumed training ends within 0.03 Dice of an undisturbed one.
    """

    partial_labels: bool
    warm_start: bool = True
    several_classes: bool = True
    several_channels: bool = True
    several_gpus: bool = False
    weight_average: bool = True
    class_weights: bool = True
    deep_supervision: bool = True
    topology_terms: bool = False
    nnunet_plans: bool = False
    exact_on: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class TrainingRequest:
    """One training of one generation.

    Parameters
    ----------
    campaign : Campaign
        Holds volumes, label arrays and settings.
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

    campaign: Campaign
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


def check_request(name: str, capabilities: TrainerCapabilities, request: TrainingRequest) -> None:
    """Refuse a request that reads from the holdout or asks for what a trainer cannot do; trainers begin with it.

    A setting at its default is no request: the campaign file holds every default, and a triage may choose the trainer.

    Parameters
    ----------
    name : str
        The trainer's.
    capabilities : TrainerCapabilities
        What it can do.
    request : TrainingRequest
        The training.

    Raises
    ------
    LeakError
        If an item's read box touches a holdout box.
    TrainingError
        If a capability is missing; the message names it.
    """
    campaign, snapshot = request.campaign, request.snapshot
    config = campaign.config.training
    holdout = campaign.holdout()
    if holdout is not None:
        guard(holdout, snapshot.items, campaign.shared_places())
    channels = max((campaign.volume(v).channels for v in {i.volume_id for i in snapshot.items}), default=1)
    check_settings(name, capabilities, config)
    requirements = (
        (request.warm_start is not None, capabilities.warm_start, "start from another model", "training.warm_start"),
        (snapshot.n_classes > 1, capabilities.several_classes, "learn several classes", "classes"),
        (channels > 1, capabilities.several_channels, "read several channels", "volumes"),
        (config.gpus > 1, capabilities.several_gpus, "use several GPUs", "training.gpus"),
        (
            not capabilities.partial_labels and _has_partial_labels(campaign, snapshot),
            False,
            "learn from partial labels",
            "labels",
        ),
    )
    for is_required, able, what, where in requirements:
        if is_required and not able:
            raise _refusal(name, what, where)


def check_settings(name: str, capabilities: TrainerCapabilities, config: TrainingConfig) -> None:
    """Refuse settings that a trainer would not heed; one at its default is no request.

    Raises
    ------
    TrainingError
        The message names the setting.
    """
    for setting, able, what in _settings(capabilities):
        if not able and getattr(config, setting) != TrainingConfig.model_fields[setting].default:
            raise _refusal(name, what, f"training.{setting}")


def _refusal(name: str, what: str, where: str) -> TrainingError:
    field = TrainingConfig.model_fields.get(where.removeprefix("training."))
    default = f", or leave it at {field.default}" if field is not None else ""
    return TrainingError(
        f"the trainer '{name}' cannot {what}", where=where, todo=f"Choose another trainer in training.trainer{default}"
    )


def _settings(able: TrainerCapabilities) -> tuple[tuple[str, bool, str], ...]:
    """Return the settings that not every trainer heeds: name, whether this one does, and what it would take."""
    return (
        ("ema", able.weight_average, "average its weights"),
        ("balanced_classes", able.class_weights, "weigh classes"),
        ("deep_supervision", able.deep_supervision, "be told whether to supervise coarse stages"),
        ("cldice_weight", able.topology_terms, "mind topology"),
        ("betti_weight", able.topology_terms, "mind topology"),
        ("nnunet_planner", able.nnunet_plans, "plan by nnU-Net's planners"),
        ("nnunet_configuration", able.nnunet_plans, "plan nnU-Net's configurations"),
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


def _has_partial_labels(campaign: Campaign, snapshot: Snapshot) -> bool:
    return any((campaign.storage.read_array(item.labels) == IGNORE).any() for item in snapshot.items)


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
