"""The work folder of a training, its checkpoints and its finished model. Imports no torch.

::

    members/0/checkpoint.pt     the last checkpoint of each network, until the model is finished
    losses.json                 losses, seconds and warnings
    model/                      the finished model: weights and description, checked by their digest
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rescueseg.campaign import Campaign
from rescueseg.errors import InferenceError, storage_errors
from rescueseg.records import ModelReference
from rescueseg.training.base import DESCRIPTION_FILE, WEIGHTS_FILE, model_digest

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


def read_model(folder: Path) -> tuple[dict[str, Any], str] | None:
    """Return the description and the digest of a finished model, None where there is none."""
    weights, description = folder / WEIGHTS_FILE, folder / DESCRIPTION_FILE
    if not (weights.exists() and description.exists()):
        return None
    text = description.read_bytes()
    parsed: dict[str, Any] = json.loads(text)
    return parsed, model_digest(weights.read_bytes(), text)


def read_committed(campaign: Campaign, model: ModelReference) -> tuple[bytes, dict[str, Any]]:
    """Return weights and description of a model that a campaign holds.

    Raises
    ------
    InferenceError
        If the files are not those that the reference's digest names.
    """
    weights = campaign.storage.read_bytes(f"{model.path}/{WEIGHTS_FILE}")
    description = campaign.storage.read_bytes(f"{model.path}/{DESCRIPTION_FILE}")
    if model_digest(weights, description) != model.digest:
        raise InferenceError(
            "the model is not the one that was trained",
            where=f"{campaign.url}/{model.path}",
            todo="Restore the folder from a backup, or train the generation again",
        )
    parsed: dict[str, Any] = json.loads(description)
    return weights, parsed
