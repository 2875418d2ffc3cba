"""The table ``[training.stardist]``. Imports neither torch nor StarDist."""

from __future__ import annotations

from typing import ClassVar, Literal

from rescueseg.config import Positive
from rescueseg.models.settings import FamilySettings


class StarDistSettings(FamilySettings):
    """What `stardist` reads."""

    family: ClassVar[str] = "stardist"

    channels: tuple[Positive, ...] | None = None
    """Feature channels per level, three levels at least; the profile's default when omitted."""
    rays: Literal[18, 66, 258] = 66
    """Rays of a polyhedron: more follow a shape more closely, and take more time and memory."""

    @property
    def tells_objects_apart(self) -> bool:
        """Always."""
        return True

    @property
    def samples_objects(self) -> bool:
        """Never: nothing is dropped in the object's probability and the rays."""
        return False
