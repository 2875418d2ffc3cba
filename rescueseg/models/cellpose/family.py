"""The family in the registry. Imports neither torch nor Cellpose."""

from __future__ import annotations

from rescueseg.models.cellpose.plan import outline
from rescueseg.models.cellpose.settings import CellposeSettings
from rescueseg.models.family import TrainerEntry

CELLPOSE = TrainerEntry(
    settings=CellposeSettings,
    module="rescueseg.models.cellpose.trainer",
    trainer="CellposeTrainer",
    outline=outline,
    requirements=("cellpose", "torch"),
    needs=("cellpose",),
    extra="cellpose",
    needs_instances=True,
)
