"""One mask of several annotators: STAPLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from rescueseg.labels import IGNORE, PatchLabels, most_likely

DOI = "10.1109/TMI.2004.828354"


def staple(versions: Sequence[PatchLabels], n_classes: int) -> tuple[PatchLabels, dict[str, Any]]:
    """Return the consensus of several annotators, and how reliable each was.

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
        What one person did not annotate is taken from the others; 255 where nobody annotated. The dict names the method and
        gives, per class, each annotator's estimated sensitivity and specificity.

    Notes
    -----
    Expectation maximisation over the annotators' performance [1]_ as in ITK, class by class. Of two annotators it can
    only decide for a whole class, not place by place, whether what one alone drew belongs to it.

    References
    ----------
    .. [1] Warfield, Zou, Wells: Simultaneous truth and performance level estimation. IEEE TMI 23 (2004) 903-921,
       doi:10.1109/TMI.2004.828354.
    """
    stack = np.stack([v.classes for v in versions])
    annotated = (stack != IGNORE).all(axis=0)
    performance: dict[str, Any] = {}
    probability = np.zeros((n_classes + 1, np.count_nonzero(annotated)), np.float64)
    probability[0] = 0.5
    for value in range(1, n_classes + 1):
        masks = (stack[:, annotated] == value).astype(np.uint8)
        if masks.any():
            probability[value], performance[str(value)] = _one_class(masks)
    classes = _first_annotation(stack)
    classes[annotated] = most_likely(probability)
    provenance = {"method": "staple", "doi": DOI, "performance": performance}
    return PatchLabels(classes, _objects(versions, classes)), provenance


def _first_annotation(stack: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return each voxel's class by the first person who annotated it."""
    classes: npt.NDArray[np.uint8] = stack[0].copy()
    for other in stack[1:]:
        classes = np.where(classes == IGNORE, other, classes)
    return classes


def _one_class(masks: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], list[dict[str, float]]]:
    """Run STAPLE on the masks of one class, shape (annotators, voxels), unless all are the same."""
    if (masks == masks[0]).all():
        return masks[0].astype(np.float64), [{"sensitivity": 1.0, "specificity": 1.0}] * len(masks)

    staple_filter: Any = SimpleITK.STAPLEImageFilter()  # type: ignore[no-untyped-call]
    staple_filter.SetForegroundValue(1)
    image = staple_filter.Execute([SimpleITK.GetImageFromArray(mask[None]) for mask in masks])
    performance = [
        {"sensitivity": round(p, 4), "specificity": round(q, 4)}
        for p, q in zip(staple_filter.GetSensitivity(), staple_filter.GetSpecificity(), strict=True)
    ]
    return SimpleITK.GetArrayFromImage(image)[0].astype(np.float64), performance


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
                overlap = ids[mask & (ids > 0)]
                target = int(np.bincount(overlap).argmax()) if overlap.size else int(ids.max()) + 1
                ids[mask & inside & (ids == 0)] = target
    return ids
