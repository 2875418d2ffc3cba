"""The work folder of a training, its checkpoints and its finished model. Imports no torch.

::

    members/0/checkpoint.pt     the last checkpoint of each network, until the model is finished
    losses.json                 losses, seconds, and notes on the machine
    model/                      the finished model: weights and description, checked by their digest
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rescueseg.campaign import Campaign
from rescueseg.errors import InferenceError, RescuesegError, TrainingError, storage_errors
from rescueseg.models.trainer import DESCRIPTION_FILE, WEIGHTS_FILE, TrainedModel, model_digest
from rescueseg.records import ModelReference

MODEL_FOLDER = "model"
LOSSES_FILE = "losses.json"
MEMBERS_FOLDER = "members"
CHECKPOINT_FILE = "checkpoint.pt"


def member_folder(work_dir: Path, member: int) -> Path:
    """Return where one network of an ensemble keeps its checkpoint."""
    return work_dir / MEMBERS_FOLDER / f"{member}"


def checkpoints(work_dir: Path) -> dict[str, Path]:
    """Return the last checkpoint of each network by its path below the work folder; none once the model is finished."""
    found = sorted((work_dir / MEMBERS_FOLDER).glob(f"*/{CHECKPOINT_FILE}"))
    return {str(path.relative_to(work_dir)): path for path in found}


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a rerun after a kill, finds the old or the new one, never a part.

    Raises
    ------
    StorageError
        If the disk is full or not writable.
    """
    part = path.with_name(f".{path.name}.part")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


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


def read_model(folder: Path) -> tuple[dict[str, Any], str] | None:
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
    return parsed, model_digest(weights.read_bytes(), text)


def read_start(folder: Path | None) -> tuple[dict[str, Any], str] | None:
    """Return the description and the digest of the model to start from, None where none is named.

    Raises
    ------
    TrainingError
        If there is no finished model, or its description is damaged.
    """
    if folder is None:
        return None
    found = read_model(folder)
    if found is None:
        raise TrainingError(
            "there is no finished model to start from", where=str(folder), todo="Set training.warm_start to false"
        )
    return found


def read_finished(work_dir: Path, identity: str) -> TrainedModel | None:
    """Return the model that an earlier run of the same request committed.

    None where there is none, and where its files are not those that were committed: the training is then done again.
    """
    folder = work_dir / MODEL_FOLDER
    try:
        found = read_model(folder)
        with model_errors(str(folder)):
            log = json.loads((work_dir / LOSSES_FILE).read_bytes())
            if found is None or (found[0]["request"], found[1]) != (identity, log["digest"]):
                return None
            return TrainedModel(
                path=folder,
                digest=found[1],
                iterations=len(log["losses"]),
                seconds=float(log["seconds"]),
                losses=tuple(log["losses"]),
                warnings=tuple(found[0]["warnings"]),
                notes=tuple(log.get("notes", ())),
            )
    except (TrainingError, FileNotFoundError):
        return None


def committed_files(campaign: Campaign, model: ModelReference) -> tuple[bytes, bytes]:
    """Return the files of a model that a campaign holds: weights and description.

    Raises
    ------
    InferenceError
        If they are not those that the reference's digest names.
    """
    weights = campaign.storage.read_bytes(f"{model.path}/{WEIGHTS_FILE}")
    description = campaign.storage.read_bytes(f"{model.path}/{DESCRIPTION_FILE}")
    if model_digest(weights, description) != model.digest:
        raise InferenceError(
            "the model is not the one that was trained",
            where=f"{campaign.url}/{model.path}",
            todo="Restore the folder from a backup, or train the generation again",
        )
    return weights, description


def read_committed(campaign: Campaign, model: ModelReference) -> tuple[bytes, dict[str, Any]]:
    """Return weights and parsed description of a model that a campaign holds; see `committed_files` for what it raises."""
    weights, description = committed_files(campaign, model)
    parsed: dict[str, Any] = json.loads(description)
    return weights, parsed
