"""Its table of settings, its plan, and what the registry knows of it. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.models.family import TrainerEntry
from rescueseg.models.settings import FamilySettings
from rescueseg.models.survey import survey_snapshot
from rescueseg.models.trainer import Outline
from rescueseg.records import Record, Snapshot


class ToySettings(FamilySettings):
    """The table ``[training.toy]``."""

    family: ClassVar[str] = "toy"

    scales_um: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 0.3)
    """Standard deviations of the Gaussians that smooth the image."""
    spread: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the noise on the weights of each Monte-Carlo sample."""


class ToyPlan(Record):
    """Everything a training depends on beside its data and its seed."""

    in_channels: int
    n_classes: int
    scales_um: tuple[float, ...]
    spread: float
    spacing_um_zyx: Spacing
    window_zyx: ZYX
    batch_size: int
    iterations: int
    learning_rate: float


def make_plan(settings: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> ToyPlan:
    """Return the plan of a training; no image is read."""
    config, survey = settings.training, survey_snapshot(settings, volumes, snapshot)
    own = ToySettings.of(config)
    return ToyPlan(
        in_channels=survey.in_channels,
        n_classes=snapshot.n_classes,
        scales_um=own.scales_um,
        spread=own.spread,
        spacing_um_zyx=survey.spacing_um_zyx,
        window_zyx=config.window_zyx or survey.field_zyx,
        batch_size=config.batch_size or 4,
        iterations=config.iterations or 100,
        learning_rate=config.learning_rate or 0.3,
    )


def outline(settings: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Outline:
    """Return what a training would be."""
    plan = make_plan(settings, volumes, snapshot)
    return Outline(len(snapshot.items), plan.window_zyx, plan.iterations, 1, "one model learns from all patches")


TOY_LOGISTIC = TrainerEntry(
    settings=ToySettings,
    module="toy_logistic.trainer",
    trainer="ToyTrainer",
    outline=outline,
    requirements=("scipy", "torch"),
)
