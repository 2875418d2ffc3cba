"""Surface Dice and HD95 of one class in one box. Pure functions on arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from rescueseg.geometry import Floats, Spacing
from rescueseg.labels import IGNORE

Mask = npt.NDArray[np.bool_]

_ROUNDING = 1 + 1e-9
"""A distance of exactly the tolerance is within it, however it was added up."""
_FACES = ndimage.generate_binary_structure(3, 1)


class SurfaceScores(NamedTuple):
    """How near the outlines of one class lie to each other in one box."""

    dice: float
    """Share of both outlines within `tolerance_um` of the other one."""
    hd95_um: float | None
    """The larger of the two 95th percentiles of the distances, micrometre; None where one side has no outline."""


def surface_scores(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], class_index: int, spacing_um_zyx: Spacing
) -> SurfaceScores | None:
    """Compare the outlines of one class in one box.

    The outline is the voxels of the class that share a face with a voxel of another class. Beyond the box, and where the
    truth is unknown, the class is taken to go on: the cut is no outline, at the volume's end neither, where the
    imaging made it.

    Nobody knows whether the other mask's outline lies just beyond. So voxels are not counted within the tolerance of the
    unknown, of what is beyond the box, and of the voxels that share a face with either: by place alone, in both masks,
    whatever the distance is. Surface Dice is then what it would be with all known and the box cut nowhere. The voxels that
    count are measured to the whole outline of the other mask in the box. Along an axis of which this would leave less than
    half of the planes, as in stacks of a few slices, all are counted: there a shift out of the box costs a little too much.

    Parameters
    ----------
    prediction, truth : ndarray, zyx
        Class indices. Where the truth is 255 the class is unknown.
    class_index : int
        The class, 1…K.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    SurfaceScores or None
        Surface Dice [1]_ and HD95 [2]_. None where the box says nothing: neither holds the class, or both do and no voxel of
        an outline counts, as when both fill the box. Where only one holds the class, at a voxel that counts, or only one has
        an outline in the box, surface Dice is 0 and there is no HD95: a distance to nothing has no value.

    References
    ----------
    .. [1] Nikolov et al., arXiv:1809.04430; Seidlitz et al., doi:10.1016/j.media.2022.102488.
    .. [2] Huttenlocher et al., doi:10.1109/34.232073, with the 95th percentile in place of the largest distance.

    Examples
    --------
    A slab of 4 planes, and the same moved by 1 plane of 0.5 µm, which is within the tolerance of 2 voxels:

    >>> truth = np.zeros((12, 8, 8), np.uint8)
    >>> truth[4:8] = 1
    >>> surface_scores(np.roll(truth, 1, axis=0), truth, 1, (0.5, 0.5, 0.5))
    SurfaceScores(dice=1.0, hd95_um=0.5)
    """
    known = truth != IGNORE
    masks = [(labels == class_index) & known for labels in (prediction, truth)]
    counts = _counted(known, spacing_um_zyx)
    if not all(mask.any() for mask in masks):
        return SurfaceScores(0.0, None) if any((mask & counts).any() for mask in masks) else None
    outlines = [_outline(mask, known) for mask in masks]
    distances = [
        _distances(mine & counts, other, spacing_um_zyx) for mine, other in (tuple(outlines), tuple(outlines[::-1]))
    ]
    both = np.concatenate(distances)
    if not both.size:
        return None
    close = float((both <= tolerance_um(spacing_um_zyx) * _ROUNDING).mean())
    if np.isinf(both).any():
        return SurfaceScores(close, None)
    return SurfaceScores(close, max(float(np.percentile(d, 95)) for d in distances if d.size))


def tolerance_um(spacing_um_zyx: Spacing) -> float:
    """Return how far two surfaces may lie apart and still agree: two voxels of the finest axis, in micrometre.

    Examples
    --------
    >>> tolerance_um((2.0, 0.5, 0.5))
    1.0
    """
    return 2 * min(spacing_um_zyx)


def _outline(mask: Mask, known: Mask) -> Mask:
    """Return the voxels of a mask that share a face with a known voxel outside of it."""
    outline: Mask = mask & ~ndimage.binary_erosion(mask | ~known, _FACES, border_value=1)
    return outline


def _counted(known: Mask, spacing: Spacing) -> Mask:
    """Return where no outline within the tolerance can hide in, or beside, what nobody knows."""
    reach = tolerance_um(spacing) * _ROUNDING
    margins = [int(n - 2 * (1 + reach // s) >= n / 2) for n, s in zip(known.shape, spacing, strict=True)]
    if known.all() and not any(margins):
        return known
    clear = ~ndimage.binary_dilation(~np.pad(known, [(m, m) for m in margins]), _FACES)
    counted: Mask = ndimage.distance_transform_edt(clear, sampling=spacing) > reach
    return counted[tuple(slice(m, m + n) for m, n in zip(margins, known.shape, strict=True))]


def _distances(outline: Mask, other: Mask, spacing: Spacing) -> Floats:
    """Return how far each voxel of an outline lies from the other one, micrometre; infinite where there is none."""
    places, others = (np.argwhere(mask) * spacing for mask in (outline, other))
    if not len(others):
        return np.full(len(places), np.inf)
    return np.asarray(KDTree(others).query(places)[0], np.float64)
