"""The family in the registry. Imports neither torch nor StarDist."""

from __future__ import annotations

from rescueseg.models.family import TrainerEntry
from rescueseg.models.stardist.plan import outline
from rescueseg.models.stardist.settings import StarDistSettings

STARDIST = TrainerEntry(
    settings=StarDistSettings,
    module="rescueseg.models.stardist.trainer",
    trainer="StarDistTrainer",
    outline=outline,
    requirements=("csbdeep", "monai", "stardist", "torch"),
    needs=("stardist",),
    extra="stardist",
    needs_instances=True,
)
