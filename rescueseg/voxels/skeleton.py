"""Middle lines of masks: Lee's thinning, with what it loses of solids that are an even number of voxels wide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.morphology import skeletonize

from rescueseg.voxels.components import label_components

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_MOST_VOXELS = 8_000_000
_SPUR = 1.5
"""Longest branch that is no arm, over the depth of the object where it branches off."""


def skeleton_of(mask: Mask) -> Mask:
    """Return the middle lines of a mask, at least one voxel of each connected component.

    Thinning as scikit-image does it [1]_ also shortens solids that are an even number of voxels wide: of a rod of 4 × 4
    voxels nothing is left, and of such an arm of a larger object little [2]_. Where a voxel of a
    component lies farther from its skeleton than twice the component's depth, and one more, the component is thinned at
    twice the resolution instead, where every width is odd. Sheets are thinned to lines too, or to a point. Components
    whose bounding box holds more than 8 million voxels are not looked at twice where they have a skeleton.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Connected where voxels share a face, an edge or a corner; may be empty.

    Returns
    -------
    ndarray of bool, zyx
        Voxels of the mask; as scikit-image returns them wherever these come near all of a component.

    References
    ----------
    .. [1] Lee, Kashyap & Chu 1994, doi:10.1006/cgip.1994.1042.
    .. [2] https://github.com/scikit-image/scikit-image/issues/3757

    Examples
    --------
    >>> rod = np.zeros((8, 8, 30), bool)
    >>> rod[2:6, 2:6, 5:25] = True
    >>> int(skeletonize(rod).sum()), int(skeleton_of(rod).sum())
    (0, 17)
    """
    if not mask.any():
        return np.zeros(mask.shape, np.bool_)
    lines = np.asarray(skeletonize(mask), np.bool_)
    numbers, _ = label_components(mask, 26)
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        part = numbers[place] == number
        if part.size > _MOST_VOXELS and (lines[place] & part).any():
            continue
        line = _line_of(part, lines[place] & part)
        lines[place] = np.where(part, line, lines[place])
    return lines


def _line_of(part: Mask, thinned: Mask) -> Mask:
    """Return the skeleton of one component: the first that comes near all of it, another only where that comes nearer."""
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
    deepest = float(depth.max())
    nearest = np.inf
    best: Mask = depth == deepest
    for line in _attempts(part, thinned, depth):
        reach = float(ndimage.distance_transform_edt(~line)[part].max()) if line.any() else np.inf
        if reach < nearest - deepest:
            best, nearest = line, reach
        if nearest <= 2 * deepest + 1:
            break
    return best


def _attempts(part: Mask, thinned: Mask, depth: Floats) -> Iterator[Mask]:
    """Yield the skeleton of a component, and that at twice the resolution, whose steps are thinned once more."""
    yield thinned
    finer = _at_half(np.asarray(skeletonize(_doubled(part)), np.bool_), part)
    line = np.asarray(skeletonize(finer), np.bool_)
    yield without_spurs(line if line.any() else finer, depth)


def without_spurs(line: Mask, depth: Floats, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Mask:
    """Return a skeleton without branches that end within, or just beyond, the ball around a branch point.

    They lead to the corners of an object, or to what is rough about its surface.

    Parameters
    ----------
    line : ndarray of bool, zyx
        The skeleton.
    depth : ndarray of float, zyx
        Distance of its voxels to the outside of the object, in the unit of the spacing.
    spacing : tuple of float
        Voxel size; voxels as units where it is left out.

    Examples
    --------
    >>> line = np.zeros((3, 5, 20), bool)
    >>> line[1, 1, 1:19] = line[1, 1:4, 10] = True
    >>> np.argwhere(line & ~without_spurs(line, np.full(line.shape, 2.0))).tolist()
    [[1, 3, 10]]

    (1, 2, 10) is a joint itself: four voxels touch it.
    """
    joints = line & (_neighbours(line) > 2)
    if not joints.any():
        return line
    scale = np.array(spacing)
    places = np.argwhere(line)
    reach = _SPUR * depth[joints] + max(spacing)
    near = KDTree(places * scale).query_ball_point(np.argwhere(joints) * scale, reach)
    short = np.zeros_like(line)
    short[tuple(places[np.unique(np.concatenate(near).astype(np.intp))].T)] = True
    short &= ~joints
    rest = line.copy()
    while (ends := rest & short & (_neighbours(rest) < 2)).any():
        rest &= ~ends
    return rest


def _neighbours(line: Mask) -> npt.NDArray[np.uint8]:
    counts = ndimage.convolve(line.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant")
    return np.asarray(counts - 1, np.uint8)


def _doubled(part: Mask) -> Mask:
    """Return a mask at twice the resolution, n voxels as 2n + 1: closed cubes, so that they touch where voxels do."""
    cubes = np.zeros([2 * n + 1 for n in part.shape], np.bool_)
    cubes[1::2, 1::2, 1::2] = part
    return np.asarray(ndimage.binary_dilation(cubes, np.ones((3, 3, 3), np.bool_)), np.bool_)


def _at_half(line: Mask, part: Mask) -> Mask:
    """Return a line through `_doubled` in voxels of the mask; what lies between several goes to the first inside."""
    cells = np.argwhere(line) - 1
    result = np.zeros_like(part)
    for corner in itertools.product((0, 1), repeat=3):
        voxels = cells // 2 + (cells % 2) * np.array(corner)
        exists = ((voxels >= 0) & (voxels < part.shape)).all(axis=1)
        exists[exists] = part[tuple(voxels[exists].T)]
        result[tuple(voxels[exists].T)] = True
        cells = cells[~exists]
    return result
