"""The table ``[training.cellpose]``. Imports neither torch nor Cellpose."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat

from rescueseg.config import Positive
from rescueseg.models.settings import FamilySettings


class CellposeSettings(FamilySettings):
    """What `cellpose` reads."""

    family: ClassVar[str] = "cellpose"

    channels: tuple[Positive, ...] | None = None
    """Feature channels per level; the profile's default when omitted."""
    diameter_um: PositiveFloat | None = None
    """Diameter of a typical object in a plane, in micrometre: volumes are resampled so that it has as many pixels as the
    profile says. Measured in the annotated patches when omitted, or that of the model to start from."""

    @property
    def tells_objects_apart(self) -> bool:
        """Always."""
        return True
