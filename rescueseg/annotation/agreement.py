"""How well two annotators agree on a patch: pure functions on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.evaluation.metrics import count_voxels
from rescueseg.labels import IGNORE, PatchLabels
from rescueseg.records import Record


class Agreement(Record):
    """Of two annotators on one patch, or on several together."""

    dice: dict[int, float]
    """By class, those that either drew."""
    objects: float | None = None
    """F1 of the objects, where they are numbered."""
    common: bool = True
    """Whether both annotated any voxel."""

    @property
    def value(self) -> float:
        """The mean Dice, 1 where nobody drew anything; where objects are numbered, their F1 if that is lower.

        0 where there is no voxel that both annotated: nothing says that they agree.
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
        Of the same patch. What either did not annotate is not counted.
    n_classes : int
        Number of classes K.
    """
    unknown = first.ignore | second.ignore
    counts = count_voxels(first.classes, np.where(unknown, np.uint8(IGNORE), second.classes), n_classes)
    objects = None
    if first.instances is not None and second.instances is not None:
        objects = object_f1(np.where(unknown, 0, first.instances), np.where(unknown, 0, second.instances))
    dice = {c: round(n.dice, 6) for c, n in enumerate(counts, start=1) if n.occurs}
    return Agreement(dice=dice, objects=objects, common=not bool(unknown.all()))


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
    """
    sizes = [dict(zip(*(a.tolist() for a in np.unique(ids[ids > 0], return_counts=True)), strict=True))
             for ids in (first, second)]  # fmt: skip
    total = len(sizes[0]) + len(sizes[1])
    both = (first > 0) & (second > 0)
    if not total or not both.any():
        return float(not total)
    pairs, shared = np.unique(np.stack([first[both], second[both]]), axis=1, return_counts=True)
    same = sum(2 * n > sizes[0][a] + sizes[1][b] - n for a, b, n in zip(*pairs.tolist(), shared.tolist(), strict=True))
    return round(2 * int(same) / total, 6)
