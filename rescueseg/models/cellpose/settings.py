"""The table ``[training.cellpose]``. Imports neither torch nor Cellpose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, field_validator

from rescueseg.config import Positive
from rescueseg.errors import TrainingError
from rescueseg.models.settings import FamilySettings

if TYPE_CHECKING:
    from rescueseg.models.cellpose.weights_file import CellposeWeights


class CellposeSettings(FamilySettings):
    """What `cellpose` reads."""

    family: ClassVar[str] = "cellpose"

    channels: tuple[Positive, ...] | None = None
    """Feature channels per level; the profile's default when omitted."""
    diameter_um: PositiveFloat | None = None
    """Diameter of a typical object in a plane, in micrometre: volumes are resampled so that it has as many pixels as the
    profile says. Measured in the annotated patches when omitted, or that of the model to start from."""
    weights: str | None = None
    """Whole path of a weights file of Cellpose 3, such as cyto3, where a training starts that starts from no earlier model; its
    channels are then the network's, and objects become as wide as the file says."""

    @field_validator("weights")
    @classmethod
    def _path_is_whole(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute():
            raise ValueError("it must be a whole path, for a training may run in another folder")
        return value

    def identity(self) -> dict[str, Any]:
        """Return what stands for these settings; for the weights their content does, wherever the file lies.

        Where the file does not say how wide objects are, its name does, and so the width stands there too.

        Raises
        ------
        TrainingError
            If the weights cannot be read; only to read them torch is imported.
        StorageError
            If the file cannot be read.
        """
        own = self.model_dump(mode="json", exclude={"weights"})
        if weights := self.read_weights():
            own |= {"weights": weights.digest} | ({} if weights.says_pixels else {"pixels": weights.pixels})
        return {self.family: own}

    def read_weights(self) -> CellposeWeights | None:
        """Return what the weights file holds, None where none is named. Raises as `identity`."""
        if self.weights is None:
            return None
        from rescueseg.models.cellpose.weights_file import read_weights

        return read_weights(self.weights, TrainingError)

    @property
    def tells_objects_apart(self) -> bool:
        """Always."""
        return True
