"""One mask of several annotators: STAPLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from rescueseg.labels import IGNORE, PatchLabels

DOI = "10.1109/TMI.2004.828354"


def staple(versions: Sequence[PatchLabels], n_classes: int) -> tuple[PatchLabels, dict[str, Any]]:
    """Return the consensus of several annotators, and how much each was trusted.

    Parameters
    ----------
    versions : sequence of PatchLabels, zyx
        At least two of the same patch.
    n_classes : int
        Number of classes K.

    Returns
    -------
    (PatchLabels, dict)
        The consensus: of each voxel the class of the highest probability, background where none reaches one half.
        What one person left out is taken from the others; 255 where nobody annotated. The dict names the method and
        gives, per class, each annotator's estimated sensitivity and specificity.

    Notes
    -----
    Expectation maximisation over the annotators' performance [1]_ as in ITK, class by class. Of two annotators it can
    only decide for each class whether what one alone drew belongs to it, everywhere alike: they are weighed, not the
    places.

    References
    ----------
    .. [1] Warfield, Zou, Wells: Simultaneous truth and performance level estimation. IEEE TMI 23 (2004) 903-921,
       doi:10.1109/TMI.2004.828354.
    """
    stack = np.stack([v.classes for v in versions])
    known = (stack != IGNORE).all(axis=0)
    filled = _first_known(stack)
    performance: dict[str, Any] = {}
    likely = np.zeros((n_classes + 1, np.count_nonzero(known)), np.float64)
    likely[0] = 0.5
    for value in range(1, n_classes + 1):
        drawn = (stack[:, known] == value).astype(np.uint8)
        if drawn.any():
            likely[value], performance[str(value)] = _one_class(drawn)
    classes = filled.copy()
    classes[known] = likely.argmax(axis=0).astype(np.uint8)
    provenance = {"method": "staple", "doi": DOI, "performance": performance}
    return PatchLabels(classes, _objects(versions, classes)), provenance


def _first_known(stack: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return what the first annotator who looked at a voxel saw there."""
    filled: npt.NDArray[np.uint8] = stack[0].copy()
    for classes in stack[1:]:
        filled = np.where(filled == IGNORE, classes, filled)
    return filled


def _one_class(drawn: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], list[dict[str, float]]]:
    """Run STAPLE on what each annotator drew of a class (annotators, voxels); where all agree there is nothing to weigh."""
    if (drawn == drawn[0]).all():
        return drawn[0].astype(np.float64), [{"sensitivity": 1.0, "specificity": 1.0}] * len(drawn)

    staple: Any = SimpleITK.STAPLEImageFilter()  # type: ignore[no-untyped-call]
    staple.SetForegroundValue(1)
    image = staple.Execute([SimpleITK.GetImageFromArray(mask[None]) for mask in drawn])
    trusted = [
        {"sensitivity": round(p, 4), "specificity": round(q, 4)}
        for p, q in zip(staple.GetSensitivity(), staple.GetSpecificity(), strict=True)
    ]
    return SimpleITK.GetArrayFromImage(image)[0].astype(np.float64), trusted


def _objects(versions: Sequence[PatchLabels], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32] | None:
    """Return the objects of a consensus: those of the first annotator, grown by what the others drew of them.

    A part of another annotator's object that overlaps none of the objects numbered before becomes one of its own.
    """
    if versions[0].instances is None:
        return None
    inside = (classes != 0) & (classes != IGNORE)
    ids = np.where(inside, versions[0].instances, np.uint32(0))
    for version in versions[1:]:
        assert version.instances is not None, "versions of one campaign carry the same"
        for number in np.unique(version.instances[inside & (ids == 0)]).tolist():
            if number:
                mask = version.instances == number
                met = ids[mask & (ids > 0)]
                joined = int(np.bincount(met).argmax()) if met.size else int(ids.max()) + 1
                ids[mask & inside & (ids == 0)] = joined
    return ids
