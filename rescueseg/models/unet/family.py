"""The family in the registry. Imports neither torch nor MONAI."""

from __future__ import annotations

from dataclasses import replace

from rescueseg.models.family import TrainerEntry
from rescueseg.models.unet.plan import outline
from rescueseg.models.unet.settings import UNetSettings

MONAI_UNET = TrainerEntry(
    settings=UNetSettings,
    module="rescueseg.models.unet.trainer",
    trainer="MonaiUNetTrainer",
    outline=outline,
    requirements=("monai", "torch"),
)
MONAI_UNET_TOPOLOGY = replace(MONAI_UNET, trainer="MonaiUNetTopologyTrainer")
