"""Sections of objects in the planes of a patch: which are whole, and how wide. Imports neither torch nor Cellpose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.label_arrays import read_classes, read_objects
from rescueseg.geometry import Spacing
from rescueseg.labels import IGNORE
from rescueseg.records import Snapshot

Sections = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def number_sections(objects: npt.NDArray[np.integer], axis: int) -> Sections:
    """Return the sections of objects in the planes perpendicular to an axis.

    Parameters
    ----------
    objects : ndarray of integers, zyx
        Numbers of the objects, 0 background.
    axis : int
        0 for yx planes, 1 for zx, 2 for zy.

    Returns
    -------
    ndarray of int64, zyx
        1…n, one number for each object of each plane; 0 background.
    """
    per_plane = np.arange(objects.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
    both = np.where(objects > 0, objects.astype(np.int64) + per_plane * (int(objects.max(initial=0)) + 1), 0)
    values, numbers = np.unique(both, return_inverse=True)
    return numbers.reshape(objects.shape) + (0 if len(values) and values[0] == 0 else 1)


def cut_sections(sections: Sections, unlabelled: npt.NDArray[np.bool_], axis: int) -> npt.NDArray[np.bool_]:
    """Return which sections touch, in their plane, what nobody labelled or what lies beyond the patch.

    Parameters
    ----------
    sections : ndarray of int64, zyx
        From `number_sections`.
    unlabelled : ndarray of bool, zyx
        Voxels that nobody labelled.
    axis : int
        What the planes are perpendicular to.

    Returns
    -------
    ndarray of bool, (n + 1,)
        By number; False for the background.

    Examples
    --------
    Of two objects in a plane, one ends at its edge:

    >>> plane = np.array([[[0, 0, 0, 0, 0], [1, 1, 0, 2, 0], [0, 0, 0, 0, 0]]])
    >>> cut_sections(number_sections(plane, 0), np.zeros(plane.shape, bool), 0).tolist()
    [False, True, False]
    """
    in_plane = [0 if a == axis else 1 for a in range(3)]
    beyond = np.pad(unlabelled, [(n, n) for n in in_plane], constant_values=True)
    near = ndimage.binary_dilation(beyond, np.ones([2 * n + 1 for n in in_plane]))
    inner = tuple(slice(n, length - n) for n, length in zip(in_plane, beyond.shape, strict=True))
    cut = np.zeros(int(sections.max(initial=0)) + 1, np.bool_)
    cut[sections[near[inner]]] = True
    cut[0] = False
    return cut


def section_diameters(
    objects: npt.NDArray[np.integer], unlabelled: npt.NDArray[np.bool_], spacing_um_zyx: Spacing, axis: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the diameters of the sections in micrometre, and which of them the patch cuts.

    The diameter is that of the disc of equal area, as Cellpose measures it.

    Examples
    --------
    >>> objects = np.zeros((1, 9, 9), int)
    >>> objects[0, 2:6, 2:6] = 3
    >>> widths, cut = section_diameters(objects, np.zeros(objects.shape, bool), (1.0, 0.5, 0.5), 0)
    >>> widths.round(2).tolist(), cut.tolist()
    ([2.26], [False])
    """
    numbers = number_sections(np.where(unlabelled, 0, objects), axis)
    cut = cut_sections(numbers, unlabelled, axis)
    pixel = math.prod(s for a, s in enumerate(spacing_um_zyx) if a != axis)
    widths = 2 * np.sqrt(np.bincount(numbers.ravel(), minlength=len(cut)) * (pixel / math.pi))
    return widths[1:], cut[1:]


def median_width(widths: Floats, cut: npt.NDArray[np.bool_]) -> float:
    """Return the median of widths of which some are least ones; the largest, where that lies beyond it.

    In small patches most wide sections are cut: the median of the whole ones would be that of the narrow ones. The
    product-limit estimate counts a cut one as wider than what is seen of it.

    References
    ----------
    Kaplan and Meier 1958, doi:10.1080/01621459.1958.10501452.

    Examples
    --------
    >>> median_width(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, False]))
    3.0
    """
    order = np.lexsort((cut, widths))
    at_risk = len(widths) - np.arange(len(widths))
    wider = np.cumprod(np.where(cut[order], 1.0, 1.0 - 1.0 / at_risk))
    reached = np.flatnonzero(wider <= 0.5)
    return float(widths[order][reached[0] if len(reached) else -1])


def read_sections(volumes: VolumeFolder, snapshot: Snapshot) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the diameters of the sections of all annotated objects in micrometre, and which of them a patch cuts.

    Planes are those of all three orientations, but none that contain an axis that is much coarser than both others.

    Raises
    ------
    StorageError
        If a label array is missing, damaged, or not the one that the snapshot names.
    """
    widths, cuts = [np.empty(0)], [np.empty(0, np.bool_)]
    for item in snapshot.items:
        objects: npt.NDArray[Any] | None = read_objects(volumes.storage, item)
        if objects is None:
            continue
        unlabelled = read_classes(volumes.storage, item) == IGNORE
        spacing = volumes.record(item.volume_id).spacing_um_zyx
        for axis in plane_axes(spacing):
            found, cut = section_diameters(objects, unlabelled, spacing, axis)
            widths.append(found)
            cuts.append(cut)
    return np.concatenate(widths), np.concatenate(cuts)


def measure_diameter(volumes: VolumeFolder, snapshot: Snapshot) -> float | None:
    """Return the median diameter of the sections in micrometre; None where there is no object. Raises as `read_sections`."""
    widths, cut = read_sections(volumes, snapshot)
    return float(f"{median_width(widths, cut):.4g}") if len(widths) else None


def cut_warnings(volumes: VolumeFolder, snapshot: Snapshot) -> list[str]:
    """Return a sentence where nearly all sections are cut: nobody has seen where flows lead to. Raises as `read_sections`."""
    _, cut = read_sections(volumes, snapshot)
    if not len(cut) or np.mean(~cut) >= _LEAST_WHOLE:
        return []
    return [
        f"the patches cut {np.mean(cut):.0%} of the objects' sections, whose middles are unknown: "
        "hardly any flow can be learned; annotate larger patches"
    ]


_LEAST_WHOLE = 0.05
"""Share of whole sections below which a person is warned."""
_FLAT = 3.0
"""An axis that is so many times as coarse as both others lies in no plane."""
_ROUNDING = 1e-3
"""Share of a spacing by which it may be rounded: a ratio of exactly three is the same in any unit."""


def plane_axes(spacing_um_zyx: Spacing) -> tuple[int, ...]:
    """Return which axes the planes are perpendicular to: all three, or only the one that is much coarser than the others.

    Examples
    --------
    >>> plane_axes((0.5, 0.2, 0.2)), plane_axes((1.0, 0.2, 0.2))
    ((0, 1, 2), (0,))
    """
    _, second, coarsest = sorted(spacing_um_zyx)
    return (spacing_um_zyx.index(coarsest),) if coarsest > _FLAT * (1 + _ROUNDING) * second else (0, 1, 2)
