"""What may be done to a mask without harm, by the triage's route: drop specks, fill cavities, keep broken pieces together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.campaign.route import Profile
from rescueseg.geometry import Spacing
from rescueseg.voxels.components import fill_holes, label_components

_SPECK = 0.5
"""Diameter of the largest speck in multiples of the structure's thickness."""


def clean(
    labels: npt.NDArray[np.uint8], spacing_um_zyx: Spacing, profile: Profile, thickness_um: float
) -> npt.NDArray[np.uint8]:
    """Clean a predicted mask, class by class.

    Parameters
    ----------
    labels : ndarray of uint8, zyx
        0 background, 1…K classes; not changed.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    profile : {"none", "specks", "filled", "connected"}
        ``specks`` drops pieces smaller than a ball of half the structure's thickness; ``filled`` also fills the cavities
        of what remains with its class; ``connected`` keeps a small piece that lies within one thickness of another: a
        broken branch, not a speck. Pieces at the border of the mask are kept: how large they are cannot be measured.
    thickness_um : float
        Of the structure.

    Returns
    -------
    ndarray of uint8, zyx
        A new array.

    Examples
    --------
    A cube of 5³ voxels with a cavity of two, and a single voxel near it. The structure is 4 µm thick, so that a speck is
    what is smaller than a ball of 2 µm:

    >>> labels = np.zeros((9, 9, 12), np.uint8)
    >>> labels[2:7, 2:7, 2:7], labels[4, 4, 4:6], labels[4, 4, 9] = 1, 0, 1
    >>> {p: int(clean(labels, (1, 1, 1), p, 4.0).sum()) for p in ("none", "specks", "filled", "connected")}
    {'none': 124, 'specks': 123, 'filled': 125, 'connected': 124}
    """
    result = labels.copy()
    if profile == "none":
        return result
    speck = math.pi / 6 * (_SPECK * thickness_um) ** 3 / math.prod(spacing_um_zyx)
    for value in np.unique(labels[labels > 0]).tolist():
        mask = labels == value
        pieces, count = label_components(mask, 26)
        small = np.bincount(pieces.ravel(), minlength=count + 1) < speck
        small[
            np.unique(np.concatenate([np.take(pieces, side, axis).ravel() for axis in range(3) for side in (0, -1)]))
        ] = False
        small[0] = False
        if profile == "connected":
            small[_near_another(pieces, small, spacing_um_zyx, thickness_um)] = False
        result[small[pieces]] = 0
    if profile == "filled":  # after all specks are gone: one class may have been a speck inside another
        for value in np.unique(result[result > 0]).tolist():
            result[fill_holes(result == value) & (result == 0)] = value
    return result


def _near_another(pieces: npt.NDArray[Any], small: npt.NDArray[np.bool_], spacing: Spacing, reach: float) -> list[int]:
    """Return the numbers of small pieces that lie within `reach` of another piece."""
    margin = [math.ceil(reach / s) for s in spacing]
    near = []
    for number, place in enumerate(ndimage.find_objects(pieces), start=1):
        if not small[number]:
            continue
        around = tuple(slice(max(0, p.start - m), p.stop + m) for p, m in zip(place, margin, strict=True))
        mine = pieces[around] == number
        others = (pieces[around] > 0) & ~mine
        if others.any() and ndimage.distance_transform_edt(~mine, sampling=spacing)[others].min() <= reach:
            near.append(number)
    return near
