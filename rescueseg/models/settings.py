"""Settings of one family of models. Imports neither torch nor MONAI."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from rescueseg.config import TrainingConfig
from rescueseg.sections import Section, check_section


class FamilySettings(Section):
    """The table ``[training.<family>]`` of a campaign file: settings that one family reads alone.

    A family subclasses it, names itself in `family` and gives every setting a default.
    """

    family: ClassVar[str]
    """Name of the family and of its table."""

    @property
    def tells_objects_apart(self) -> bool:
        """Whether models with these settings say which voxels belong together.

        They do by one of the outputs `STAR_DISTANCE`, `FLOW` and `BORDER_DISTANCE` of `rescueseg.models.predictor`.
        """
        return False

    @property
    def samples_objects(self) -> bool:
        """Whether dropout samples differ in what they say of objects: see `rescueseg.models.predictor.Output.sampled`."""
        return True

    @classmethod
    def of(cls, config: TrainingConfig, where: str = "") -> Self:
        """Return the family's settings of a campaign, checked.

        Parameters
        ----------
        config : TrainingConfig
            Its training settings.
        where : str
            Where they stand, for the error message; ``[training.<family>]`` when empty.

        Raises
        ------
        ConfigError
            If a key is unknown or a value out of range.
        """
        table = config.families.get(cls.family, {})
        return check_section(cls, table, where or f"[training.{cls.family}]", f"training.{cls.family}.")

    def identity(self) -> dict[str, Any]:
        """Return what stands for these settings where a training is named by the digest of all that decides it."""
        return {self.family: self.model_dump(mode="json")}
