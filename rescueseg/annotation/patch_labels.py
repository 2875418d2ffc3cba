"""Labels of one patch: classes, or numbered objects of one class, with what was not annotated kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.storage import digest_array, digest_json

IGNORE = 255
"""Label of voxels that were not annotated."""


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

    @classmethod
    def of_components(cls, classes: npt.NDArray[np.uint8]) -> PatchLabels:
        """Return labels of one class whose objects are its connected components (by faces)."""
        from scipy import ndimage

        ids, _ = ndimage.label((classes != 0) & (classes != IGNORE))
        return cls(classes, np.asarray(ids, np.uint32))

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


def corrected_voxels(labels: PatchLabels, start: PatchLabels) -> int:
    """Count the annotated voxels that differ from the mask they started from.

    Of numbered objects the numbers do not matter: each object continues the one of the start that it shares most
    voxels with, and where two continue the same one the larger share does.
    """
    changed = labels.classes != start.classes
    if labels.instances is not None and start.instances is not None:
        changed |= (labels.instances > 0) & (continued(labels.instances, start.instances) != start.instances)
    return int(np.count_nonzero(changed & ~labels.ignore))


def continued(ids: npt.NDArray[np.uint32], start: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return, for each voxel, the object of the start that its object continues (uint32 zyx both); -1 for new objects."""
    both = (ids > 0) & (start > 0)
    pairs, shared = np.unique(np.stack([ids[both], start[both]]), axis=1, return_counts=True)
    known, index = np.unique(ids, return_inverse=True)
    continued = np.full(len(known), -1, np.int64)
    taken: set[int] = set()
    for column in np.lexsort((pairs[1], pairs[0], -shared)).tolist():
        row, old = int(np.searchsorted(known, pairs[0, column])), int(pairs[1, column])
        if continued[row] < 0 and old not in taken:
            continued[row] = old
            taken.add(old)
    return continued[index].reshape(ids.shape)
