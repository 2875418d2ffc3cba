"""The table ``[training.unet]``. Imports neither torch nor MONAI."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from rescueseg.config import Positive
from rescueseg.models.settings import FamilySettings

_OTHERS = {"nnunet_planner": "default", "nnunet_configuration": "3d_fullres"}
"""What the names of trainings hold beside the family's own settings: until 0.2 every training was named by all of them."""


class UNetSettings(FamilySettings):
    """What `monai_unet` and `monai_unet_topology` read."""

    family: ClassVar[str] = "unet"

    channels: tuple[Positive, ...] | None = None
    """Feature channels per level, three levels at least; the profile's default when omitted."""
    deep_supervision: bool = False
    """Give coarse decoder stages a loss of their own."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the moving average of the weights that becomes the model; 0 takes the last weights."""
    balanced_classes: bool = False
    """Let rare classes weigh more in the cross-entropy; windows are drawn around all classes alike anyway."""
    border_distance: bool = False
    """Learn the distance of each voxel to the border of its own object too, so that touching objects can be told apart; needs
    numbered objects (``annotation.labels = "instance"``). Not shown to be better than the distance to the mask's border
    (``tests/benchmarks/delivery_objects.py``)."""
    cldice_weight: Annotated[float, Field(ge=0.0)] = 0.5
    """Of `monai_unet_topology`: weight of soft clDice, in the second half of the steps."""
    betti_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Of `monai_unet_topology`: weight of Betti matching in the same steps; needs the extra 'topology'."""

    @property
    def tells_objects_apart(self) -> bool:
        """Whether the border distance is learned."""
        return self.border_distance

    def identity(self) -> dict[str, Any]:
        """Return the settings under the names that trainings were named by before the family had a table."""
        exclude = None if self.border_distance else {"border_distance"}
        return self.model_dump(mode="json", exclude=exclude) | _OTHERS
