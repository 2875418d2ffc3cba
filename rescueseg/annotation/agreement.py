"""How well two annotators agree on a patch: pure functions on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.evaluation.instances import compare_instances
from rescueseg.evaluation.metrics import count_voxels
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.records import Record


class Agreement(Record):
    """Agreement of two annotators, on one patch or on several together."""

    dice: dict[int, float]
    """By class, of the classes that at least one of the two drew."""
    objects: float | None = None
    """F1 of the objects, where they are numbered."""
    common: bool = True
    """Whether there is a voxel that both annotated."""

    @property
    def value(self) -> float:
        """The mean Dice, 1 where nobody drew anything; where objects are numbered, their F1 if that is lower.

        0 where there is no voxel that both annotated.
        """
        if not self.common:
            return 0.0
        dice = sum(self.dice.values()) / len(self.dice) if self.dice else 1.0
        return dice if self.objects is None else min(dice, self.objects)


def agreement(first: PatchLabels, second: PatchLabels, n_classes: int) -> Agreement:
    """Compare the labels of two people.

    Parameters
    ----------
    first, second : PatchLabels, zyx
        Of the same patch. A voxel that either did not annotate is not counted.
    n_classes : int
        Number of classes K.

    Examples
    --------
    One of two voxels in common, so the Dice of class 1 is 2 · 1 / (2 + 1):

    >>> first = PatchLabels(np.array([[[1, 1, 0, 0]]], np.uint8))
    >>> second = PatchLabels(np.array([[[1, 0, 0, 0]]], np.uint8))
    >>> agreement(first, second, n_classes=1).dice
    {1: 0.666667}
    """
    unannotated = first.ignore | second.ignore
    counts = count_voxels(first.classes, np.where(unannotated, np.uint8(IGNORE), second.classes), n_classes)
    objects = None
    if first.instances is not None and second.instances is not None:
        objects = object_f1(np.where(unannotated, 0, first.instances), np.where(unannotated, 0, second.instances))
    dice = {c: round(n.dice, 6) for c, n in enumerate(counts, start=1) if n.dice is not None}
    return Agreement(dice=dice, objects=objects, common=not bool(unannotated.all()))


def object_f1(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the F1 of objects: two are the same where their intersection over union is above one half.

    Parameters
    ----------
    first, second : ndarray of integers, zyx
        Object numbers, 0 background.

    Returns
    -------
    float
        From 0 (no object in common) to 1 (all; also where there is none).

    Examples
    --------
    The first person drew two objects, the second one of them, under another number:

    >>> first = np.array([[[1, 1, 1, 0, 2, 2]]])
    >>> second = np.array([[[7, 7, 0, 0, 0, 0]]])
    >>> object_f1(first, second)
    0.666667
    """
    one, other = (np.searchsorted(np.unique(np.append(ids, 0)), ids) for ids in (first, second))
    pairs = compare_instances(one, other)
    objects = pairs.found + pairs.true
    return round(2 * pairs.matched[0] / objects, 6) if objects else 1.0
