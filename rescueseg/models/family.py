"""What a trainer says of itself before it is loaded. Imports neither torch nor MONAI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

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
    needs : tuple of str
        Modules that must be installed for it, beside those that rescueseg needs itself; where one is not, there is no such
        trainer.
    extra : str
        The extra of rescueseg that installs them.
    needs_instances : bool
        It learns from numbered objects; classes alone do not do. As its `TrainerCapabilities` say.
    routes : tuple of str
        Names of the triage's routes (`rescueseg.triage.tree.ROUTES`) on which it comes before the trainers named there.
    """

    settings: type[FamilySettings]
    module: str
    trainer: str
    outline: Callable[[CampaignConfig, VolumeFolder, Snapshot], Outline]
    requirements: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str = ""
    needs_instances: bool = False
    routes: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether what it needs is installed; nothing is imported."""
        return all(find_spec(name) is not None for name in self.needs)
