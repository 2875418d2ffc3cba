"""Labels of one patch: classes, or numbered objects of one class, with what was not annotated kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.labels import IGNORE
from rescueseg.storage import digest_array, digest_json


@dataclass(frozen=True, eq=False)
class PatchLabels:
    """What was annotated in a patch.

    Parameters
    ----------
    classes : ndarray of uint8, zyx
        0 background, 1…K classes, 255 ignore.
    instances : ndarray of uint32, zyx, optional
        In campaigns that annotate instances: object numbers, 0 where `classes` is 0 or 255.
    """

    classes: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint32] | None = None

    @classmethod
    def of_instances(cls, instances: npt.NDArray[Any], ignore: npt.NDArray[np.bool_] | None = None) -> PatchLabels:
        """Return labels of one class from object numbers and an ignore mask of its own.

        Parameters
        ----------
        instances : ndarray of integers, zyx
            Object numbers, 0 background; any number may occur, 255 too.
        ignore : ndarray of bool, zyx, optional
            Voxels that were not annotated.
        """
        ids = np.ascontiguousarray(instances, np.uint32)
        classes = (ids > 0).astype(np.uint8)
        if ignore is not None:
            ids = np.where(ignore, np.uint32(0), ids)
            classes[ignore] = IGNORE
        return cls(classes, ids)

    @property
    def ignore(self) -> npt.NDArray[np.bool_]:
        """Voxels that were not annotated."""
        return np.asarray(self.classes == IGNORE)

    @property
    def digest(self) -> str:
        """The sha256 of the classes; of both arrays where objects are numbered."""
        plain = digest_array(self.classes)
        return plain if self.instances is None else digest_json([plain, digest_array(self.instances)])

    def __eq__(self, other: object) -> bool:
        """Compare voxel by voxel."""
        if not isinstance(other, PatchLabels) or (self.instances is None) != (other.instances is None):
            return NotImplemented if not isinstance(other, PatchLabels) else False
        same = np.array_equal(self.classes, other.classes)
        return same and (self.instances is None or np.array_equal(self.instances, other.instances))  # type: ignore[arg-type]
