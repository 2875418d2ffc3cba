"""Patches in physical space: affines in millimetre, right-handed, shared by NIfTI and NRRD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from rescueseg.annotation.formats.base import PatchMetadata
from rescueseg.errors import LabelError
from rescueseg.geometry import Box, Spacing

UM_PER_MM = 1000.0
_OBLIQUE = 1e-3


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


def straighten(array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], PatchMetadata]:
    """Bring an array back to the volume's axes, whatever orientation a tool saved it in.

    Parameters
    ----------
    array : ndarray, xyz
        As the file holds it.
    affine : ndarray, 4×4
        Its voxel indices to RAS millimetre.

    Returns
    -------
    ndarray, zyx
        Axes permuted and flipped so that all grow.
    PatchMetadata
        Its spacing, and the position of its first voxel in units of that spacing.

    Raises
    ------
    LabelError
        If the axes are oblique, or the affine is not finite: which voxel is which would be a guess.
    """
    orientations: Any = nibabel.orientations
    matrix = np.asarray(affine, float)
    if np.isfinite(matrix).all():
        order = orientations.io_orientation(matrix)
        if np.isfinite(order).all():
            matrix = matrix @ orientations.inv_ornt_aff(order, array.shape)
            scale = np.diag(matrix)[:3]
            if (scale > 0).all() and np.abs(matrix[:3, :3] - np.diag(scale)).max() <= _OBLIQUE * scale.min():
                x, y, z = (float(v) * UM_PER_MM for v in scale)
                i, j, k = (float(v) for v in matrix[:3, 3] / scale)
                straight = np.asarray(orientations.apply_orientation(array, order)).T
                return straight, PatchMetadata(None, (k, j, i), (z, y, x))
    raise LabelError(
        "the axes are oblique or the position is not valid", todo="Save the mask on the grid of its image, unresampled"
    )


def uncrop(array: npt.NDArray[Any], metadata: PatchMetadata, box: Box) -> tuple[npt.NDArray[Any], PatchMetadata]:
    """Return a mask that a tool cropped to its segments at its place in the whole patch, and its new metadata.

    A mask that is not cropped is returned as it is.
    """
    if array.shape == box.shape_zyx or metadata.offset_zyx is None:
        return array, metadata
    inside = Box((0, 0, 0), box.shape_zyx)
    start = [round(o - b) for o, b in zip(metadata.offset_zyx, box.offset_zyx, strict=True)]
    cropped = Box.from_bounds(start, [a + n for a, n in zip(start, array.shape, strict=True)])
    if not inside.contains(cropped):
        raise LabelError(
            f"the segmentation has shape {array.shape} at {cropped}, its patch {box.shape_zyx} (z, y, x)",
            todo="Hand in the mask of this patch, unresampled",
        )
    whole = np.zeros(box.shape_zyx, array.dtype)
    whole[cropped.slices] = array
    z, y, x = (o - s for o, s in zip(metadata.offset_zyx, start, strict=True))
    return whole, replace(metadata, offset_zyx=(z, y, x))
