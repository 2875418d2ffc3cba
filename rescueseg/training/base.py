"""What a trainer is asked for and what it gives back. Imports neither torch nor MONAI."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rescueseg.campaign import Campaign
from rescueseg.records import Snapshot

Progress = Callable[[int, Mapping[str, float]], None]
"""Called once per optimiser step with the step (from 1) and at least `loss` and `learning_rate`."""

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class TrainerCapabilities:
    """What a trainer can do beyond training.

    Parameters
    ----------
    mc_dropout : bool
        Its predictor yields Monte-Carlo dropout samples.
    partial_labels : bool
        Voxels labelled 255 take no part in the loss.
    resumable : bool
        A killed training goes on from its last checkpoint, to the same model.
    """

    mc_dropout: bool
    partial_labels: bool
    resumable: bool


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
    """

    path: Path
    digest: str
    iterations: int
    seconds: float
    losses: tuple[dict[str, float], ...]
    warnings: tuple[str, ...] = ()


class Trainer(Protocol):
    """Turns a snapshot into a model."""

    @property
    def name(self) -> str:
        """Name in the registry."""

    @property
    def capabilities(self) -> TrainerCapabilities:
        """What it can do."""

    def train(self, request: TrainingRequest, progress: Progress) -> TrainedModel:
        """Train, or go on training, and commit the model as the last act.

        The same request gives the same digest, killed and rerun any number of times.

        Raises
        ------
        TrainingError
            If the snapshot holds no labelled voxel, or the training diverged.
        """


def model_digest(weights: bytes, description: bytes) -> str:
    """Return the sha256 over the sha256 of the weights and that of the description."""
    return hashlib.sha256(hashlib.sha256(weights).digest() + hashlib.sha256(description).digest()).hexdigest()


def ignore_progress(step: int, metrics: Mapping[str, float]) -> None:
    """Do nothing: the progress callback of a caller who does not watch."""
