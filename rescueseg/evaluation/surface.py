"""Surface Dice and HD95 of one class in one box. Imports MONAI."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy import ndimage

from rescueseg.geometry import Spacing
from rescueseg.labels import IGNORE


def surface_scores(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], class_index: int, spacing_um_zyx: Spacing
) -> tuple[float, float] | None:
    """Compare the surfaces of one class in one box.

    Parameters
    ----------
    prediction, truth : ndarray, zyx
        Class indices. Where the truth is 255 the class is unknown: surface voxels that touch such a voxel do not count,
        for the border of what was annotated is no surface.
    class_index : int
        The class, 1…K.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    (surface Dice, HD95) or None
        The share of both surfaces closer than `tolerance_um` to the other one [1]_, and the larger of the two 95th
        percentiles of the distances between them in micrometre. None when neither holds the class, or when every surface
        touches voxels without truth: such a box says nothing about surfaces. When only one holds the class, (0, diagonal
        of the box). Where an object is cut by the face of the box, the cut counts as surface in both. Surfaces and
        distances are MONAI's.

    References
    ----------
    .. [1] Nikolov et al., arXiv:1809.04430; Seidlitz et al., doi:10.1016/j.media.2022.102488.

    Examples
    --------
    A slab of 4 planes, and the same moved by 1 plane of 0.5 µm, which is within the tolerance of 2 voxels:

    >>> truth = np.zeros((12, 8, 8), np.uint8)
    >>> truth[4:8] = 1
    >>> surface_scores(np.roll(truth, 1, axis=0), truth, 1, (0.5, 0.5, 0.5))
    (1.0, 0.5)
    """
    has_truth = truth != IGNORE
    predicted, true = (prediction == class_index) & has_truth, (truth == class_index) & has_truth
    if not predicted.any() and not true.any():
        return None
    diagonal = math.hypot(*(n * s for n, s in zip(truth.shape, spacing_um_zyx, strict=True)))
    if not predicted.any() or not true.any():
        return 0.0, diagonal

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clear = ~ndimage.binary_dilation(~has_truth, ndimage.generate_binary_structure(3, 1))
        surfaces = [np.asarray(edges, dtype=bool) & clear for edges in get_mask_edges(predicted, true, crop=False)]
        distances = [
            np.minimum(get_surface_distance(mine, other, spacing=list(spacing_um_zyx)), diagonal)
            for mine, other in (surfaces, surfaces[::-1])
        ]
    both = np.concatenate(distances)
    if not both.size:
        return None
    close = float((both <= tolerance_um(spacing_um_zyx) * (1 + 1e-6)).mean())  # distances are float32
    return close, max(float(np.percentile(d, 95)) for d in distances if d.size)


def tolerance_um(spacing_um_zyx: Spacing) -> float:
    """Return how far two surfaces may lie apart and still agree: two voxels of the finest axis, in micrometre.

    Examples
    --------
    >>> tolerance_um((2.0, 0.5, 0.5))
    1.0
    """
    return 2 * min(spacing_um_zyx)
