"""Trainers by name, and the tables of settings of their families. Importing this imports neither torch nor MONAI.

The families that come with rescueseg stand in `OWN`: a source checkout has them, and so has an editable install whose
metadata are older than the code, where an entry point would be missing or lead to a module that has moved. Every other
family is a package of its own that names its trainers in the entry points of the group `GROUP`, each of which leads to a
`TrainerEntry`; nothing here changes for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from rescueseg.campaign import VolumeFolder
from rescueseg.errors import ConfigError
from rescueseg.models.cellpose.family import CELLPOSE
from rescueseg.models.family import TrainerEntry
from rescueseg.models.nnunet.family import NNUNET
from rescueseg.models.settings import FamilySettings
from rescueseg.models.stardist.family import STARDIST
from rescueseg.models.trainer import Outline, Trainer
from rescueseg.models.unet.family import MONAI_UNET, MONAI_UNET_TOPOLOGY
from rescueseg.storage import Storage

if TYPE_CHECKING:
    from rescueseg.config import CampaignConfig, InferenceConfig, TrainingConfig
    from rescueseg.models.predictor import Predictor
    from rescueseg.records import ModelReference, Snapshot

GROUP = "rescueseg.trainers"
"""Group of the entry points by which other packages offer trainers."""

OWN: Mapping[str, TrainerEntry] = MappingProxyType(
    {
        "cellpose": CELLPOSE,
        "monai_unet": MONAI_UNET,
        "monai_unet_topology": MONAI_UNET_TOPOLOGY,
        "nnunet": NNUNET,
        "stardist": STARDIST,
    }
)
"""The trainers that come with rescueseg."""


def trainer_names() -> tuple[str, ...]:
    """Return the names of all trainers that are installed, sorted; none is loaded.

    Raises
    ------
    ConfigError
        If two packages offer a trainer of the same name.
    """
    own = [name for name, entry in OWN.items() if entry.is_installed]
    return tuple(sorted({*own, *_offered(tuple(sys.path))}))


@lru_cache(maxsize=8)
def _offered(path: tuple[str, ...]) -> Mapping[str, EntryPoint]:  # noqa: ARG001  # packages are looked for along it
    """Return what other packages offer, by name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in OWN or found.setdefault(point.name, point).value != point.value:
            raise ConfigError(
                f"the {_package(point)} offers a trainer '{point.name}', and there is another of that name",
                where=f"entry points '{GROUP}'",
                todo="Uninstall the package, or ask its authors for another name",
            )
    return MappingProxyType(found)


def _package(point: EntryPoint) -> str:
    return f"package '{point.dist.name}'" if point.dist else f"module '{point.module}'"


def find_entry(name: str) -> TrainerEntry:
    """Return what the registry knows of a trainer.

    Raises
    ------
    ConfigError
        If there is none of that name, what it needs is not installed, or the package that offers it is broken.
    """
    if name in OWN:
        return _installed(name, OWN[name])
    point = _offered(tuple(sys.path)).get(name)
    if point is None:
        raise ConfigError(
            f"unknown trainer '{name}'", where="training.trainer", todo=f"Known: {', '.join(trainer_names())}"
        )
    try:
        entry = point.load()
    except Exception as error:
        raise ConfigError(
            f"the trainer '{name}' of the {_package(point)} cannot be loaded: {error}",
            where=point.value,
            todo="Repair or uninstall the package",
        ) from error
    if not isinstance(entry, TrainerEntry):
        raise ConfigError(
            f"the {_package(point)} offers as trainer '{name}' what is none",
            where=point.value,
            todo="Let the entry point lead to a rescueseg.models.family.TrainerEntry",
        )
    return entry


def _installed(name: str, entry: TrainerEntry) -> TrainerEntry:
    if not entry.is_installed:
        raise ConfigError(
            f"the trainer '{name}' is not installed",
            where="training.trainer",
            todo=f"Install it with: pip install 'rescueseg[{entry.extra}]'",
        )
    return entry


def get_trainer(name: str) -> Trainer:
    """Return a trainer.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    entry = find_entry(name)
    return cast(Trainer, getattr(importlib.import_module(entry.module), entry.trainer)())


def suited_to(route: str) -> tuple[str, ...]:
    """Return the trainers of other packages that name a route of the triage as theirs, sorted."""
    return tuple(name for name in trainer_names() if route in find_entry(name).routes)


def find_families() -> Mapping[str, type[FamilySettings]]:
    """Return the settings of every family that is installed, by the name of its table.

    Raises
    ------
    ConfigError
        If a package that offers a trainer is broken, or two families have one name.
    """
    families = _own_families()
    for name in trainer_names():
        model = find_entry(name).settings
        if families.setdefault(model.family, model) is not model:
            raise ConfigError(
                f"the trainer '{name}' is of a family '{model.family}', and there is another of that name",
                where=f"{model.__module__}.{model.__qualname__}",
                todo="Uninstall its package, or ask its authors for another name",
            )
    return families


def _own_families() -> dict[str, type[FamilySettings]]:
    return {entry.settings.family: entry.settings for entry in OWN.values()}


def check_families(config: TrainingConfig, where: str) -> None:
    """Make sure that every table of a family is one of an installed family, and valid.

    Parameters
    ----------
    config : TrainingConfig
        With the tables as they were written.
    where : str
        Where they stand, for the error message.

    Raises
    ------
    ConfigError
        It names the key and what is allowed.
    """
    families: Mapping[str, type[FamilySettings]] = _own_families()
    if config.families.keys() - families.keys():  # only then can a broken package be to blame
        families = find_families()
    for family in config.families:
        if family not in families:
            raise ConfigError(
                f"there is no model family '{family}' for the table [training.{family}]",
                where=where,
                todo=f"Installed families: {', '.join(sorted(families))}",
            )
        families[family].of(config, where)


def complete_families(config: CampaignConfig, where: str) -> CampaignConfig:
    """Return the settings of a new campaign with the families' tables checked and written in full.

    The campaign file then holds every default, so that a later version with others changes nothing in the campaign. That
    goes for the families that come with rescueseg, that of the trainer named, and those that have a table already.

    Parameters
    ----------
    config : CampaignConfig
        As a person gave them.
    where : str
        Where that was, for the error message.

    Raises
    ------
    ConfigError
        If a table is of no installed family, holds an unknown key or a value out of range, there is no trainer of the name,
        or it learns from numbered objects and the campaign numbers none.
    """
    training = config.training
    check_families(training, where)
    models = _own_families()
    if training.trainer != "auto":
        entry = find_entry(training.trainer)
        if entry.needs_instances and config.annotation.labels != "instance":
            raise ConfigError(
                f"the trainer '{training.trainer}' learns from numbered objects, and the campaign numbers none",
                where=where,
                todo="Set annotation.labels=instance too, or choose another trainer",
            )
        models[entry.settings.family] = entry.settings
    models |= {family: find_families()[family] for family in training.families.keys() - models.keys()}
    tables = {name: models[name].of(training).model_dump(mode="json", exclude_none=True) for name in sorted(models)}
    return config.model_copy(update={"training": training.model_copy(update=tables)})


def outline(name: str, config: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Outline:
    """Return what a training would be, without starting it and without torch.

    Raises
    ------
    ConfigError
        If there is no trainer of that name.
    TrainingError
        If the snapshot cannot be trained on.
    """
    return find_entry(name).outline(config, volumes, snapshot)


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Predictor:
    """Load a finished model for inference with the loader of the trainer that made it.

    Parameters
    ----------
    storage : Storage
        The root of the campaign that holds it.
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
    module = importlib.import_module(find_entry(model.trainer).module)
    return cast("Predictor", module.load_predictor(storage, model, config, resolve_device(device)))


def resolve_device(device: str) -> str:
    """Return `device`, or for "auto" the GPU when this process sees one and the CPU otherwise."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
