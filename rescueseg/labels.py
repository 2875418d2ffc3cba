"""Labels of one patch: classes, or numbered objects of one class, with what was not annotated kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import LabelError
from rescueseg.storage import digest_array, digest_json
from rescueseg.voxels.components import label_components

IGNORE = 255
"""Label of voxels that were not annotated."""
_WHOLE = 5e-5
"""How far from a whole number a label may lie: what a file's scale factor leaves of rounding."""


def whole_numbers(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels with floats that mean whole numbers rounded to them; all other values stay.

    Examples
    --------
    A mask that was stored with a scale factor of 1/127:

    >>> whole_numbers(np.array([0.0, 0.99999, 2.00001, 1.4])).tolist()
    [0.0, 1.0, 2.0, 1.4]
    """
    if labels.dtype.kind != "f":
        return labels
    rounded = np.rint(labels)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(np.abs(labels - rounded) <= _WHOLE, rounded, labels))


def most_likely(probability: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the most likely class of each voxel, uint8; of equal ones the first.

    Parameters
    ----------
    probability : ndarray, (K + 1, …)
        Class by class, background first.

    Examples
    --------
    One class in two voxels:

    >>> most_likely(np.array([[[[0.9, 0.2]]], [[[0.1, 0.8]]]])).tolist()
    [[[0, 1]]]
    """
    return np.asarray(probability.argmax(axis=0), np.uint8)


def class_numbers(labels: npt.NDArray[Any], n_classes: int, where: str) -> npt.NDArray[np.uint8]:
    """Return classes as uint8, checked.

    Parameters
    ----------
    labels : ndarray
        Any shape; integers, bool, or floats that hold whole numbers.
    n_classes : int
        K.
    where : str
        File, volume or ticket, for the message.

    Returns
    -------
    ndarray of uint8
        0 background, 1…K classes, 255 ignore.

    Raises
    ------
    LabelError
        If a value is another.

    Examples
    --------
    >>> class_numbers(np.array([0.0, 2.0, 255.0]), 2, "mask.nii").tolist()
    [0, 2, 255]
    """
    if labels.dtype.kind not in "buif":
        raise LabelError(f"labels of type {labels.dtype} are no numbers", where=where, todo="Save them as integers")
    values = whole_numbers(labels)
    wrong = ~np.isin(values, [*range(n_classes + 1), IGNORE])
    if wrong.any():
        found = np.unique(values[wrong])
        shown = ", ".join(f"{v:g}" for v in found[:5].tolist()) + (" …" if len(found) > 5 else "")
        classes = "1 for the class" if n_classes == 1 else f"1 to {n_classes} for the classes"
        raise LabelError(
            f"the labels hold {shown}, which is no class",
            where=where,
            todo=f"Use 0 for background, {classes} and 255 for voxels not annotated; objects with numbers of their own "
            "are of type 'instance'",
        )
    return values.astype(np.uint8)


def object_numbers(labels: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint32]:
    """Return object numbers as uint32, checked.

    Parameters
    ----------
    labels : ndarray
        Any shape; integers, bool, or floats that hold whole numbers.
    where : str
        For the message.

    Raises
    ------
    LabelError
        If a value is negative, broken or 2³² and above.
    """
    if labels.dtype.kind not in "buif":
        raise LabelError(f"labels of type {labels.dtype} are no numbers", where=where, todo="Save them as integers")
    values = whole_numbers(labels)
    with np.errstate(invalid="ignore"):  # what does not fit differs afterwards
        numbers = values.astype(np.uint32)
    wrong = values[numbers != values]
    if wrong.size:
        raise LabelError(
            f"the labels hold {wrong.flat[0]:.10g}, which is no object number",
            where=where,
            todo="Use 0 for background and whole numbers from 1 to 4294967295 for the objects",
        )
    return np.ascontiguousarray(numbers)


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

        Examples
        --------
        >>> numbers = np.array([[[0, 7, 7, 300]]])
        >>> labels = PatchLabels.of_instances(numbers, ignore=np.array([[[True, False, False, False]]]))
        >>> labels.classes.tolist(), labels.instances.tolist()
        ([[[255, 1, 1, 1]]], [[[0, 7, 7, 300]]])
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
        ids, _ = label_components((classes != 0) & (classes != IGNORE), 6)
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

    Examples
    --------
    One of two annotated voxels was drawn anew; the third was not annotated:

    >>> start = PatchLabels(np.array([[[0, 1, 1]]], dtype=np.uint8))
    >>> corrected_voxels(PatchLabels(np.array([[[1, 1, 255]]], dtype=np.uint8)), start)
    1
    """
    changed = labels.classes != start.classes
    if labels.instances is not None and start.instances is not None:
        changed |= (labels.instances > 0) & (predecessors(labels.instances, start.instances) != start.instances)
    return int(np.count_nonzero(changed & ~labels.ignore))


def predecessors(ids: npt.NDArray[np.uint32], start: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return, for each voxel, the object of the start that its object continues (uint32 zyx both); -1 for new objects.

    Examples
    --------
    Object 8 goes on from object 3 under another number; object 9 is new:

    >>> start = np.array([[[3, 3, 0, 0]]], dtype=np.uint32)
    >>> predecessors(np.array([[[8, 8, 8, 9]]], dtype=np.uint32), start).tolist()
    [[[3, 3, 3, -1]]]
    """
    both = (ids > 0) & (start > 0)
    pairs, shared = np.unique(np.stack([ids[both], start[both]]), axis=1, return_counts=True)
    numbers, index = np.unique(ids, return_inverse=True)
    old_numbers = np.full(len(numbers), -1, np.int64)
    successors: dict[int, int] = {}
    for column in np.lexsort((pairs[1], pairs[0], -shared)).tolist():
        row, old = int(np.searchsorted(numbers, pairs[0, column])), int(pairs[1, column])
        if old_numbers[row] < 0 and old not in successors:
            old_numbers[row] = old
            successors[old] = int(numbers[row])
    return old_numbers[index].reshape(ids.shape)


def class_names(classes: Sequence[str], labels: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the names of the classes that a mask holds.

    Parameters
    ----------
    classes : sequence of str
        Names of classes 1…K.
    labels : ndarray of uint8, any shape
        0 background, 1…K classes, 255 not annotated.

    Examples
    --------
    >>> class_names(("nucleus", "vessel"), np.array([0, 2, 2, 255], dtype=np.uint8))
    ('vessel',)
    """
    values = np.unique(labels).tolist()
    return tuple(name for value, name in enumerate(classes, start=1) if value in values)
