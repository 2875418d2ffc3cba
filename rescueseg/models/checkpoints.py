"""Checkpoints and finished models on disk: written atomically, read without unpickling."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import JsonValue
from torch import Tensor

from rescueseg.errors import storage_errors
from rescueseg.models.files import (
    CHECKPOINT_FILE,
    LOSSES_FILE,
    MEMBERS_FOLDER,
    MODEL_FOLDER,
)
from rescueseg.models.trainer import DESCRIPTION_FILE, WEIGHTS_FILE, model_digest
from rescueseg.records import Snapshot
from rescueseg.storage import replace_atomically, write_atomically


def save_checkpoint(work_dir: Path, state: dict[str, Any]) -> None:
    """Write the state of a training: tensors, numbers, strings, and containers of these."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(work_dir / CHECKPOINT_FILE, buffer.getvalue())


def load_checkpoint(work_dir: Path, request_digest: str) -> dict[str, Any] | None:
    """Return the state of the same training, None where there is none; a file that cannot be read counts as none."""
    path = work_dir / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError):
        return None
    return state if state.get("request") == request_digest else None


def describe_model(
    *,
    trainer: str,
    number: int,
    request: str,
    plan: dict[str, JsonValue],
    classes: Sequence[str],
    seed: int,
    snapshot: Snapshot,
    warnings: list[str],
) -> dict[str, Any]:
    """Return what `model.json` says of every model.

    Parameters
    ----------
    trainer : str
        Its name.
    number : int
        Of the format of the family's models.
    request : str
        Identity of the training.
    plan : dict
        As it is read again by the predictor, and by a training that starts from this model.
    classes : sequence of str
        Names of the classes; class 1 is the first.
    seed : int
        Of the request.
    snapshot : Snapshot
        What was learned from.
    warnings : list of str
        What a person should know.
    """
    return {
        "format": number,
        "trainer": trainer,
        "request": request,
        "plan": plan,
        "classes": list(classes),
        "seed": seed,
        "generation": snapshot.generation,
        "snapshot": snapshot.digest,
        "warnings": warnings,
    }


def export_model(work_dir: Path, tensors: dict[str, Tensor], description: dict[str, Any], log: dict[str, Any]) -> None:
    """Commit a finished model: its folder appears whole, in one rename, and the checkpoints are removed.

    Parameters
    ----------
    work_dir : Path
        Gets `model/` with weights and description, and `losses.json` beside it.
    tensors : dict of Tensor
        The weights.
    description : dict
        Goes to `model.json`; no wall-clock value, for it is part of the digest.
    log : dict
        `losses`, an entry per step, `seconds`, and `notes` on the machine; gets the model's digest, by which
        `read_trained_model` checks the files.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    weights = safetensors.torch.save(contiguous)
    text = (json.dumps(description, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    write_atomically(work_dir / LOSSES_FILE, json.dumps(log | {"digest": model_digest(weights, text)}).encode())
    final = work_dir / MODEL_FOLDER
    for stale in work_dir.glob(f".{MODEL_FOLDER}.*.part"):
        shutil.rmtree(stale)
    with storage_errors(str(final)), replace_atomically(final) as part:
        write_atomically(part / WEIGHTS_FILE, weights)
        write_atomically(part / DESCRIPTION_FILE, text)
        if final.exists():
            shutil.rmtree(final)
    shutil.rmtree(work_dir / MEMBERS_FOLDER, ignore_errors=True)
