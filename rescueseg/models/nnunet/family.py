"""The family in the registry. Imports neither torch nor nnU-Net."""

from __future__ import annotations

from rescueseg.models.family import TrainerEntry
from rescueseg.models.nnunet.plan import outline
from rescueseg.models.nnunet.settings import NnUNetSettings

NNUNET = TrainerEntry(
    settings=NnUNetSettings,
    module="rescueseg.models.nnunet.trainer",
    trainer="NnUNetTrainer",
    outline=outline,
    requirements=("dynamic_network_architectures", "torch"),
)
