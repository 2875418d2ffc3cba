"""The table ``[training.nnunet]``. Imports neither torch nor nnU-Net."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from rescueseg.config import Positive
from rescueseg.models.settings import FamilySettings

_OTHERS = {
    "deep_supervision": False,
    "ema": 0.0,
    "balanced_classes": False,
    "cldice_weight": 0.5,
    "betti_weight": 0.0,
}
"""What the names of trainings hold beside the family's own settings: until 0.2 every training was named by all of them."""


class NnUNetSettings(FamilySettings):
    """What `nnunet` reads."""

    family: ClassVar[str] = "nnunet"

    channels: tuple[Positive, ...] | None = None
    """Feature channels per level; the profile's default when omitted."""
    planner: Literal["default", "resenc_m", "resenc_l", "resenc_xl"] = "default"
    """nnU-Net's planner: its default, or a preset with a residual encoder."""
    configuration: Literal["3d_fullres", "3d_lowres"] = "3d_fullres"
    """nnU-Net's configuration; the second only where nnU-Net plans one, for patches much larger than its window."""

    def flat(self) -> dict[str, Any]:
        """Return the settings under the names that they had before the family had a table: digests are made of them."""
        return {
            "channels": None if self.channels is None else list(self.channels),
            "nnunet_planner": self.planner,
            "nnunet_configuration": self.configuration,
        }

    def identity(self) -> dict[str, Any]:
        """Return what trainings were named by before the family had a table."""
        return self.flat() | _OTHERS
