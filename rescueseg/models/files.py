"""The work folder of a training, its checkpoints and its finished model. Imports no torch.

::

    members/0/checkpoint.pt     the last checkpoint of each network, until the model is finished
    losses.json                 losses, seconds, and notes on the machine
    model/                      the finished model: weights and description, checked by their digest
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from rescueseg.errors import InferenceError, RescuesegError, TrainingError
from rescueseg.models.trainer import DESCRIPTION_FILE, WEIGHTS_FILE, TrainedModel, model_digest
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

MODEL_FOLDER = "model"
LOSSES_FILE = "losses.json"
MEMBERS_FOLDER = "members"
CHECKPOINT_FILE = "checkpoint.pt"


class ModelFolder(NamedTuple):
    """What the folder of a finished model says of it."""

    description: dict[str, Any]
    """Content of `model.json`."""
    digest: str
    """See `rescueseg.models.trainer.model_digest`."""


def member_folder(work_dir: Path, member: int) -> Path:
    """Return where one network of an ensemble keeps its checkpoint."""
    return work_dir / MEMBERS_FOLDER / f"{member}"


def checkpoints(work_dir: Path) -> dict[str, Path]:
    """Return the last checkpoint of each network by its path below the work folder; none once the model is finished."""
    files = sorted((work_dir / MEMBERS_FOLDER).glob(f"*/{CHECKPOINT_FILE}"))
    return {str(path.relative_to(work_dir)): path for path in files}


@contextmanager
def model_errors(where: str, kind: type[RescuesegError] = TrainingError) -> Iterator[None]:
    """Turn what reading a damaged model, or one of another version, raises into one error."""
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise kind(
            f"the model cannot be read ({type(error).__name__})",
            where=where,
            todo="Restore the folder from a backup, or train the generation again",
        ) from error


def read_model(folder: Path) -> ModelFolder | None:
    """Return the description and the digest of a finished model, None where there is none.

    Raises
    ------
    TrainingError
        If the description is damaged.
    """
    weights, description = folder / WEIGHTS_FILE, folder / DESCRIPTION_FILE
    if not (weights.exists() and description.exists()):
        return None
    text = description.read_bytes()
    with model_errors(str(folder)):
        parsed: dict[str, Any] = json.loads(text)
    return ModelFolder(parsed, model_digest(weights.read_bytes(), text))


def read_warm_start(folder: Path | None) -> ModelFolder | None:
    """Return the description and the digest of the model to start from, None where no folder is named.

    Raises
    ------
    TrainingError
        If there is no finished model, or its description is damaged.
    """
    if folder is None:
        return None
    model = read_model(folder)
    if model is None:
        raise TrainingError(
            "there is no finished model to start from", where=str(folder), todo="Set training.warm_start to false"
        )
    return model


def read_trained_model(work_dir: Path, identity: str) -> TrainedModel | None:
    """Return the model that an earlier run of the same request committed.

    None where there is none, and where its files are not those that were committed: the training then runs again.
    """
    folder = work_dir / MODEL_FOLDER
    try:
        model = read_model(folder)
        with model_errors(str(folder)):
            log = json.loads((work_dir / LOSSES_FILE).read_bytes())
            if model is None or (model.description["request"], model.digest) != (identity, log["digest"]):
                return None
            return TrainedModel(
                path=folder,
                digest=model.digest,
                iterations=len(log["losses"]),
                seconds=float(log["seconds"]),
                losses=tuple(log["losses"]),
                warnings=tuple(model.description["warnings"]),
                notes=tuple(log.get("notes", ())),
            )
    except (TrainingError, FileNotFoundError):
        return None


def committed_files(storage: Storage, model: ModelReference) -> tuple[bytes, bytes]:
    """Return the files of a model that a campaign holds: weights and description.

    Raises
    ------
    InferenceError
        If they are not those that the reference's digest names.
    """
    weights = storage.read_bytes(f"{model.path}/{WEIGHTS_FILE}")
    description = storage.read_bytes(f"{model.path}/{DESCRIPTION_FILE}")
    if model_digest(weights, description) != model.digest:
        raise InferenceError(
            "the model is not the one that was trained",
            where=f"{storage.url}/{model.path}",
            todo="Restore the folder from a backup, or train the generation again",
        )
    return weights, description


def read_committed(storage: Storage, model: ModelReference) -> tuple[bytes, dict[str, Any]]:
    """Return weights and parsed description of a model that a campaign holds; see `committed_files` for what it raises."""
    weights, description = committed_files(storage, model)
    parsed: dict[str, Any] = json.loads(description)
    return weights, parsed
