"""Patches in physical space: affines in millimetre, right-handed, shared by NIfTI and NRRD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from rescueseg.annotation.formats.base import Stated
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
    """
    xyz = np.array(spacing_um_zyx[::-1]) / UM_PER_MM
    affine = np.diag([*xyz, 1.0])
    affine[:3, 3] = xyz * offset_zyx[::-1]
    return affine


def straighten(array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], Stated]:
    """Turn an array back into the volume's axes, whatever orientation a tool saved it in.

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
    Stated
        Its spacing and, in the spacing the file states, the position of its first voxel.

    Raises
    ------
    LabelError
        If the axes are oblique, or the affine is none: which voxel is which would be a guess.
    """
    orientations: Any = nibabel.orientations
    turned = np.asarray(affine, float)
    if np.isfinite(turned).all():
        order = orientations.io_orientation(turned)
        if np.isfinite(order).all():
            turned = turned @ orientations.inv_ornt_aff(order, array.shape)
            scale = np.diag(turned)[:3]
            if (scale > 0).all() and np.abs(turned[:3, :3] - np.diag(scale)).max() <= _OBLIQUE * scale.min():
                x, y, z = (float(v) * UM_PER_MM for v in scale)
                i, j, k = (float(v) for v in turned[:3, 3] / scale)
                straight = np.asarray(orientations.apply_orientation(array, order)).T
                return straight, Stated(None, (k, j, i), (z, y, x))
    raise LabelError(
        "the axes are oblique or the position is not valid", todo="Save the mask on the grid of its image, unresampled"
    )


def placed(array: npt.NDArray[Any], stated: Stated, box: Box) -> tuple[npt.NDArray[Any], Stated]:
    """Return a mask that a tool cropped to its segments, put back into the patch, and where it then begins.

    Others are returned as they are.
    """
    if array.shape == box.shape_zyx or stated.offset_zyx is None:
        return array, stated
    inside = Box((0, 0, 0), box.shape_zyx)
    start = [round(o - b) for o, b in zip(stated.offset_zyx, box.offset_zyx, strict=True)]
    cropped = Box.from_bounds(start, [a + n for a, n in zip(start, array.shape, strict=True)])
    if not inside.contains(cropped):
        raise LabelError(
            f"the segmentation has shape {array.shape} at {cropped}, its patch {box.shape_zyx} (z, y, x)",
            todo="Hand in the mask of this patch, unresampled",
        )
    whole = np.zeros(box.shape_zyx, array.dtype)
    whole[cropped.slices] = array
    z, y, x = (o - s for o, s in zip(stated.offset_zyx, start, strict=True))
    return whole, replace(stated, offset_zyx=(z, y, x))
