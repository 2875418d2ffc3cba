"""Patches in physical space: affines in millimetre, right-handed, shared by NIfTI and NRRD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.formats.base import PatchMetadata
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Spacing, zyx
from rescueseg.image_files.placement import Placement, turn_onto

UM_PER_MM = 1000.0


def affine_mm(spacing_um_zyx: Spacing, offset_zyx: tuple[int, int, int] = (0, 0, 0)) -> npt.NDArray[np.float64]:
    """Return the affine of a patch: x, y, z voxel indices to millimetre in the volume, all axes positive (RAS).

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    offset_zyx : tuple of int
        First voxel of the patch.

    Examples
    --------
    Voxels of 2 × 0.5 × 0.5 µm, and a patch that begins at z 10, y 0, x 4:

    >>> affine_mm((2.0, 0.5, 0.5), (10, 0, 4)).tolist()[2]
    [0.0, 0.0, 0.002, 0.02]
    """
    xyz = np.array(spacing_um_zyx[::-1]) / UM_PER_MM
    affine = np.diag([*xyz, 1.0])
    affine[:3, 3] = xyz * offset_zyx[::-1]
    return affine


def straighten(array: npt.NDArray[Any], placement: Placement) -> tuple[npt.NDArray[Any], PatchMetadata]:
    """Bring an array back to the volume's axes, whatever orientation a tool saved it in.

    Parameters
    ----------
    array : ndarray, xyz
        As the file holds it.
    placement : Placement
        Of its file; a header without a unit means millimetre.

    Returns
    -------
    ndarray, zyx
        Axes permuted and flipped so that all grow.
    PatchMetadata
        Its spacing, and the position of its first voxel in units of that spacing.

    Raises
    ------
    LabelError
        If the axes are oblique: which voxel is which would be a guess.
    """
    factor = UM_PER_MM if placement.um_per_unit is None else placement.um_per_unit
    matrix = placement.affine.copy()
    matrix[:3] *= factor
    sizes = np.abs(matrix[:3, :3]).max(axis=1)  # along x, y, z of the volume
    straight = Placement(np.diag([*sizes, 1.0]), 1.0)
    from_origin = matrix.copy()
    from_origin[:3, 3] = 0
    try:
        turn = turn_onto(straight, Placement(from_origin, 1.0), zyx(array.shape[::-1]))
    except LabelError as error:
        raise LabelError("the axes are oblique", todo="Save the mask on the grid of its image, unresampled") from error
    first = matrix[:3, 3] / sizes + np.array(turn.start_zyx[::-1])
    z, y, x = (float(v) for v in sizes[::-1])
    k, j, i = (float(v) for v in first[::-1])
    return turn.apply(array.T), PatchMetadata(None, (k, j, i), (z, y, x))


def uncrop(array: npt.NDArray[Any], metadata: PatchMetadata, box: Box) -> tuple[npt.NDArray[Any], PatchMetadata]:
    """Return a mask that a tool cropped to its segments at its place in the whole patch, and its new metadata.

    A mask that is not cropped is returned as it is.
    """
    if array.shape == box.shape_zyx or metadata.offset_zyx is None:
        return array, metadata
    start = [round(o - b) for o, b in zip(metadata.offset_zyx, box.offset_zyx, strict=True)]
    cropped = Box.from_bounds(start, [a + n for a, n in zip(start, array.shape, strict=True)])
    covered = cropped.intersection(Box((0, 0, 0), box.shape_zyx))
    inside = np.zeros(0, array.dtype) if covered is None else array[covered.relative_to(cropped).slices]
    outside = int(np.count_nonzero(array)) - int(np.count_nonzero(inside))
    if outside or covered is None:
        raise LabelError(
            f"{outside} labelled voxels of the segmentation, at {cropped}, lie outside of its patch {box.shape_zyx} (z, y, x)",
            todo="Hand in the mask of this patch, unresampled",
        )
    whole = np.zeros(box.shape_zyx, array.dtype)
    whole[covered.slices] = inside
    z, y, x = (o - s for o, s in zip(metadata.offset_zyx, start, strict=True))
    return whole, replace(metadata, offset_zyx=(z, y, x))
