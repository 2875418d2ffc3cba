"""What a trainer says of itself before it is loaded. Imports neither torch nor MONAI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.models.settings import FamilySettings
from rescueseg.models.trainer import Outline
from rescueseg.records import Snapshot


@dataclass(frozen=True)
class TrainerEntry:
    """What the registry knows of a trainer; the module that holds it imports no torch.

    Parameters
    ----------
    settings : type of FamilySettings
        The family's table; trainers of one family share it.
    module, trainer : str
        The module to import when the trainer is used, and the class in it. The module has a function
        ``load_predictor`` too; see `rescueseg.models.registry.load_predictor`.
    outline : callable
        Says what a training on a snapshot would be; no image is read.
    requirements : tuple of str
        Distributions that its models need beside those of every model, for whoever loads one from MLflow.
    routes : tuple of str
        Names of the triage's routes (`rescueseg.triage.tree.ROUTES`) on which it comes before the trainers named there.
    """

    settings: type[FamilySettings]
    module: str
    trainer: str
    outline: Callable[[CampaignConfig, VolumeFolder, Snapshot], Outline]
    requirements: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
