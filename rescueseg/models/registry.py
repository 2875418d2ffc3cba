"""Trainers by name. Importing this imports neither torch nor MONAI."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rescueseg.errors import ConfigError
from rescueseg.models.trainer import Outline, Trainer

if TYPE_CHECKING:
    from rescueseg.campaign import Campaign
    from rescueseg.config import InferenceConfig
    from rescueseg.models.predictor import Predictor
    from rescueseg.records import ModelReference, Snapshot


@dataclass(frozen=True)
class Entry:
    """Where a trainer lives: a module with a class and with a `load_predictor` function.

    Parameters
    ----------
    module, trainer : str
        The module, and the class in it.
    plan : str
        Module with a function `outline`, which imports no torch.
    """

    module: str
    trainer: str
    plan: str = "rescueseg.models.unet.plan"


TRAINERS: dict[str, Entry] = {
    "monai_unet": Entry("rescueseg.models.unet.trainer", "MonaiUNetTrainer"),
    "monai_unet_topology": Entry("rescueseg.models.unet.trainer", "MonaiUNetTopologyTrainer"),
    "nnunet": Entry("rescueseg.models.nnunet.trainer", "NnUNetTrainer", "rescueseg.models.nnunet.plan"),
}
"""A new trainer is one more line here; `tests/contracts/test_trainer.py` then runs on it."""


def _entry(name: str) -> Entry:
    if name not in TRAINERS:
        raise ConfigError(
            f"unknown trainer '{name}'", where="training.trainer", todo=f"Known: {', '.join(sorted(TRAINERS))}"
        )
    return TRAINERS[name]


def get_trainer(name: str) -> Trainer:
    """Return a trainer.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    entry = _entry(name)
    return cast(Trainer, getattr(importlib.import_module(entry.module), entry.trainer)())


def outline(name: str, campaign: Campaign, snapshot: Snapshot) -> Outline:
    """Return what a training would be, without starting it and without torch.

    Raises
    ------
    ConfigError
        If there is no trainer of that name.
    TrainingError
        If the snapshot cannot be trained on.
    """
    return cast(Outline, importlib.import_module(_entry(name).plan).outline(campaign, snapshot))


def load_predictor(campaign: Campaign, model: ModelReference, config: InferenceConfig, device: str) -> Predictor:
    """Load a finished model for inference with the loader of the trainer that made it.

    Parameters
    ----------
    campaign : Campaign
        Where the model lies.
    model : ModelReference
        Which model.
    config : InferenceConfig
        Window, Monte-Carlo samples and symmetries.
    device : str
        A torch device, or "auto": see `resolve_device`.

    Raises
    ------
    ConfigError
        If the trainer is unknown.
    InferenceError
        If the model is missing or not the one the digest names.
    """
    module = importlib.import_module(_entry(model.trainer).module)
    return cast("Predictor", module.load_predictor(campaign, model, config, resolve_device(device)))


def resolve_device(device: str) -> str:
    """Return `device`, or for "auto" the GPU when this process sees one and the CPU otherwise."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
