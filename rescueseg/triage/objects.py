"""Shape evidence from a rough mask: how thick, how long, how round, how branched. Pure functions on arrays.

Lengths are in micrometre; what decides is without units: lengths in multiples of the structure's own thickness. Masks are
measured as they are, with the spacing: bringing flat voxels to cubes would invent steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from rescueseg.evaluation.topology import betti_numbers
from rescueseg.geometry import Spacing
from rescueseg.triage.lines import close_slits, filled_shell, inner_share, line_tips, skeleton_branches, smooth_mask
from rescueseg.triage.slenderness import faces_of, slender_parts
from rescueseg.triage.thickness import Faces, depth_within, radii_of, typical_radius
from rescueseg.triage.unannotated import extended, visible_object
from rescueseg.voxels.components import label_components
from rescueseg.voxels.skeleton import skeleton_of, without_spurs

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

MOST_VOXELS = 1_000_000
"""Voxels of a mask that are measured; a larger one is thinned out."""
SMALLEST = 27
"""Cubic voxels below which an object tells nothing of its shape."""
MOST_OBJECTS = 60
"""Objects measured one by one, the largest."""
_RAYS = 128
_NECK = 0.7
"""Depth of a neck over that of the objects on both sides, below which they are two."""
_ROUND = 0.5
"""Tubularity plus plateness below which the part of an object is round."""
LONG = 12.5
"""Length over thickness that is seen of a network: half of what a long mitochondrion has, of which a patch that cuts it
through shows half."""
_SLITS = 0.05
"""Share of an object's volume up to which its slits do not matter."""
_LARGER = 1.25
"""Thickness over the longest side of what is seen, above which an object that the patch cuts has no thickness."""
_WHOLE = ((False, False),) * 3


@dataclass(frozen=True)
class ObjectShape:
    """Shape of one object.

    Parameters
    ----------
    volume : float
        Cubic micrometre.
    thickness : float
        Micrometre: the median of its local thickness, see `typical_radius`. nan, and with it all that
        follows from it, where the patch shows no border, or less of the object than it is thick.
    extent : float
        How many balls of its thickness the object would fill: 1 for a ball, 1.5 L/T for a rod of length L and
        thickness T, about 2 A/T² for a sheet of area A.
    branches, loops : int
        Branch points of the skeleton, and tunnels.
    skeleton : float
        Length of the skeleton, micrometre.
    tubularity, plateness : float
        0 to 1: from the eigenvalues of the Hessian of the smoothed mask along the middle of the object.
    sphericity : float
        Surface of the ball of the same volume over the object's own (Wadell 1935, doi:10.1086/624298).
    star_convexity : float
        Overlap (IoU) of the object with what 128 rays from its centre can describe, see `star_convexity`.
    cut : bool
        Whether the patch's border cuts the object, so that it is longer than it seems.
    tips : int
        Ends of the skeleton that lie in the patch, not where it cuts the object.
    inner : float
        Share of the skeleton on which an end would count as one.
    is_shell : bool
        Whether it is the wall around one cavity; skeleton, loops and roundness are then those of the filled object.
    is_network : bool
        Whether the patch cuts it, and it is `LONG` times as long as thick, also once slits that are narrower than it is
        thick are closed: organelles that lie side by side and touch here and there are then one thick lump.
    """

    volume: float
    thickness: float
    extent: float
    branches: int
    loops: int
    skeleton: float
    tubularity: float
    plateness: float
    sphericity: float
    star_convexity: float
    cut: bool
    tips: int = 0
    inner: float = 1.0
    is_shell: bool = False
    is_network: bool = False

    @property
    def slenderness(self) -> float:
        """0 for a ball to 1 for a tube or sheet; the wall around one cavity is as slender as what it encloses."""
        return 1 - self.sphericity if self.is_shell else min(self.tubularity + self.plateness, 1.0)


def coarsen(numbers: Numbers, spacing_um_zyx: Spacing) -> tuple[Numbers, Spacing]:
    """Thin out numbered objects of more than `MOST_VOXELS` voxels, the finest axes first.

    Parameters
    ----------
    numbers : ndarray of int32, zyx
        0 is background.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    numbers : ndarray of int32, zyx
        Every n-th voxel along each axis.
    spacing : tuple of float
        Its voxel size.

    Examples
    --------
    Of two million voxels every second one along x stays, the finest axis:

    >>> numbers, spacing = coarsen(np.zeros((20, 100, 1000), np.int32), (0.5, 0.2, 0.1))
    >>> numbers.shape, spacing
    ((20, 100, 500), (0.5, 0.2, 0.2))
    """
    step = [1, 1, 1]
    while numbers.size / math.prod(step) > MOST_VOXELS:
        finest = min(range(3), key=lambda a: step[a] * spacing_um_zyx[a])
        step[finest] += 1
    z, y, x = (s * n for s, n in zip(spacing_um_zyx, step, strict=True))
    return numbers[:: step[0], :: step[1], :: step[2]], (z, y, x)


def split_at_necks(mask: Mask, spacing_um_zyx: Spacing, unknown: Mask | None = None) -> Numbers:
    """Part the objects of a class mask that have become one where they touch.

    Connected voxels are parted where they are less than 0.7 times as deep as on both sides, by a watershed on the
    distance to the outside from the maxima that persist (Soille 2003, doi:10.1007/978-3-662-05088-0) on a logarithmic
    scale, less one voxel for rounding. The parts stand only where they are round: clumped nuclei become nuclei, while a
    vessel stays one vessel where its calibre changes.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        A class.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    unknown : ndarray of bool, zyx, optional
        Not annotated, which is no border of an object either.

    Returns
    -------
    ndarray of int32, zyx
        Numbered objects; 0 outside.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    # the patch's own faces are no border of the object
    solid = mask if unknown is None else extended(mask, unknown, spacing_um_zyx)
    depth = ndimage.distance_transform_edt(np.pad(solid, 1, mode="edge"), sampling=spacing_um_zyx)[1:-1, 1:-1, 1:-1]
    if solid.all():
        depth = np.ones(mask.shape)
    heights = np.where(mask, np.log(depth + max(spacing_um_zyx)), np.log(max(spacing_um_zyx)))
    peaks = h_maxima(heights, -math.log(_NECK))
    markers = label_components(peaks & mask, 26)[0]
    parts = np.asarray(watershed(-heights, markers, mask=mask), np.int32)
    return _round_parts(label_components(mask, 26)[0], parts, spacing_um_zyx, unknown)


def _round_parts(whole: Numbers, parts: Numbers, spacing: Spacing, unknown: Mask | None) -> Numbers:
    """Return the parts of those connected objects whose parts are round by volume, the others whole."""
    numbers, count = np.zeros(whole.shape, np.int32), 0
    places = ndimage.find_objects(parts)
    for index, place in enumerate(ndimage.find_objects(whole), start=1):
        mine = whole[place] == index
        inside = np.where(mine, parts[place], 0)
        values, sizes = np.unique(inside[mine], return_counts=True)
        main = [v for v, n in zip(values, sizes, strict=True) if n >= SMALLEST]
        slender = sum(
            n
            for v, n in zip(values, sizes, strict=True)
            if len(main) > 1
            and v in main
            and not _is_round(*visible_object(parts, v, places[v - 1], unknown, spacing)[:2], spacing)
        )
        part_values = values if len(main) > 1 and slender < sizes.sum() / 2 else [0]
        for value in part_values:
            count += 1
            numbers[place][mine if len(part_values) == 1 else inside == value] = count
    return numbers


def _is_round(part: Mask, faces: Faces, spacing: Spacing) -> bool:
    """Tell whether a part of an object is round, given in its bounding box with the sides on which it may go on."""
    depth = depth_within(part, spacing, faces)
    if depth is None:
        return False
    radius = typical_radius(depth, spacing)
    return sum(slender_parts(part, spacing, faces, depth, radius, radius)) < _ROUND


def describe_objects(
    numbers: Numbers,
    spacing_um_zyx: Spacing,
    open_faces: Sequence[tuple[bool, bool]] = ((True, True),) * 3,
    unknown: Mask | None = None,
) -> list[ObjectShape]:
    """Measure the shape of the numbered objects of a patch, the largest 60.

    Parameters
    ----------
    numbers : ndarray of int32, zyx
        0 is background.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    open_faces : sequence of (bool, bool)
        For each axis, whether the image goes on beyond the patch's near and far face: an object that touches such a
        face is cut.
    unknown : ndarray of bool, zyx, optional
        Not annotated: an object that touches it is cut as well.

    Returns
    -------
    list of ObjectShape
        Largest first; objects of fewer than 27 cubic voxels are left out.
    """
    thin, spacing = coarsen(numbers, spacing_um_zyx)
    hidden = None if unknown is None else coarsen(unknown.astype(np.int32), spacing_um_zyx)[0] > 0
    slices = ndimage.find_objects(thin)
    sizes = np.bincount(thin.ravel(), minlength=len(slices) + 1)[1:]
    order = sorted((i for i, n in enumerate(sizes) if n >= SMALLEST), key=lambda i: (-sizes[i], i))
    shapes = []
    for i in order[:MOST_OBJECTS]:
        pairs = zip(faces_of(slices[i], thin.shape), open_faces, strict=True)
        cut = any(a and b for face, opened in pairs for a, b in zip(face, opened, strict=True))
        mask, faces, is_hidden = visible_object(thin, i + 1, slices[i], hidden, spacing)
        shape = describe_object(mask, spacing, faces, cut or is_hidden)
        shapes.append(replace(shape, volume=float(sizes[i]) * math.prod(spacing)))
    return shapes


def describe_object(mask: Mask, spacing: Spacing, faces: Faces = _WHOLE, cut: bool | None = None) -> ObjectShape:
    """Measure one object.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Its bounding box.
    spacing : tuple of float
        Voxel size in micrometre.
    faces : sequence of (bool, bool)
        Sides of the box that are faces of the patch: no border of the object is seen there.
    cut : bool, optional
        Whether the image goes on beyond one of these; where it is not told, it does.
    """
    cut = any(map(any, faces)) if cut is None else cut
    volume = float(mask.sum()) * math.prod(spacing)
    sides = [n * s for n, s in zip(mask.shape, spacing, strict=True)]
    depth = depth_within(mask, spacing, faces)
    coarse, radius = (math.inf, math.inf) if depth is None else radii_of(mask, depth, spacing, faces)
    if depth is None or (any(map(any, faces)) and 2 * radius > _LARGER * max(sides)):
        return ObjectShape(volume, *(math.nan,) * 2, 0, 0, 0.0, *(math.nan,) * 4, cut=True)
    solid, is_shell = filled_shell(mask, faces)
    whole = np.pad(solid, 1)
    tube, plate = slender_parts(mask, spacing, faces, depth, coarse, radius)
    if is_shell:
        depth = depth_within(solid, spacing, faces)
    smooth, bones = middle_line(solid, depth, radius, spacing)
    branches, length = skeleton_branches(bones, spacing)
    is_long = cut and length >= LONG * 2 * radius
    return ObjectShape(
        volume=volume,
        thickness=2 * radius,
        extent=volume / (4 / 3 * math.pi * radius**3),
        branches=branches,
        loops=betti_numbers(smooth)[1],
        skeleton=length,
        tubularity=tube,
        plateness=plate,
        sphericity=sphericity(whole, spacing),
        star_convexity=math.nan if depth is None else star_convexity(whole, depth, spacing),
        cut=cut,
        tips=line_tips(bones, spacing, faces, 1.5 * radius),
        inner=inner_share(bones, spacing, faces, 1.5 * radius),
        is_shell=is_shell,
        is_network=is_long and _is_long_without_slits(solid, spacing, faces, radius),
    )


def middle_line(solid: Mask, depth: Floats | None, radius: float, spacing: Spacing) -> tuple[Mask, Mask]:
    """Return an object without the roughness of its surface, and its skeleton without spurs, each with a voxel of margin."""
    smooth = smooth_mask(np.pad(solid, 1), [0.15 * 2 * radius / s for s in spacing])
    bones = skeleton_of(smooth)
    return smooth, bones if depth is None else without_spurs(bones, depth, spacing)


def _is_long_without_slits(mask: Mask, spacing: Spacing, faces: Faces, radius: float) -> bool:
    """Tell whether a long object is long as well once slits that are narrower than it is thick are closed."""
    closed = close_slits(mask, spacing, faces, radius)
    if closed.sum() <= (1 + _SLITS) * mask.sum():
        return True
    depth = depth_within(closed, spacing, faces)
    if depth is None:
        return False
    _, thick = radii_of(closed, depth, spacing, faces)
    _, bones = middle_line(closed, depth, thick, spacing)
    return skeleton_branches(bones, spacing)[1] >= LONG * 2 * thick


def sphericity(mask: Mask, spacing: Spacing) -> float:
    """Return the surface of the ball of the same volume over the mask's own: 1 for a ball, less for all else."""
    finest = min(spacing)
    smooth = ndimage.gaussian_filter(np.pad(mask, 3).astype(np.float32), [0.8 * finest / s for s in spacing])
    level = min(0.5, 0.5 * float(smooth.max()))
    corners, faces, *_ = marching_cubes(smooth, level, spacing=spacing)
    volume = float(mask.sum()) * math.prod(spacing)
    return float(min(1.0, math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / mesh_surface_area(corners, faces)))


def star_convexity(mask: Mask, depth: Floats, spacing: Spacing) -> float:
    """Return how much of an object 128 rays from its centre describe, as intersection over union.

    What StarDist can represent at best (Weigert et al. 2020, doi:10.1109/WACV45572.2020.9093435). The centre is the
    voxel nearest to the centroid among the deep ones.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Not touching its border.
    depth : ndarray of float, zyx
        Distance to the outside in micrometre.
    spacing : tuple of float
        Voxel size in micrometre.
    """
    scale = np.array(spacing)
    deep = np.argwhere(depth >= 0.8 * depth.max())
    centroid = np.array(ndimage.center_of_mass(mask))
    centre = deep[np.argmin((((deep - centroid) * scale) ** 2).sum(axis=1))].astype(np.float64)
    turn = np.arange(_RAYS) * math.pi * (3 - math.sqrt(5))
    z = 1 - (2 * np.arange(_RAYS) + 1) / _RAYS
    flat = np.sqrt(1 - z**2)
    rays = np.stack([z, flat * np.sin(turn), flat * np.cos(turn)], axis=1)
    finest = min(spacing)
    steps = np.arange(0.0, float(np.linalg.norm(mask.shape * scale)), finest / 4)
    places = np.rint(centre[:, None, None] + (rays / scale).T[:, :, None] * steps).astype(np.intp)
    last = np.array(mask.shape)[:, None, None] - 1
    inside = mask[tuple(np.clip(places, 0, last))] & (places >= 0).all(axis=0) & (places <= last).all(axis=0)
    reach = np.where(inside.all(axis=1), steps[-1], steps[(~inside).argmax(axis=1)])
    voxels = (np.argwhere(np.ones(mask.shape, bool)) - centre) * scale
    nearest = np.concatenate(
        [(part @ rays.T).argmax(axis=1) for part in np.array_split(voxels, len(voxels) // 65536 + 1)]
    )
    star = (np.linalg.norm(voxels, axis=1) < reach[nearest]).reshape(mask.shape)
    return float((star & mask).sum() / (star | mask).sum())


def touching_fraction(numbers: Numbers) -> float:
    """Return the share of objects that touch another one (26-neighbourhood).

    Parameters
    ----------
    numbers : ndarray of int32, zyx
        Instances; 0 is background.

    Examples
    --------
    Objects 1 and 2 touch, object 3 stands alone:

    >>> round(touching_fraction(np.array([[[1, 1, 2, 2, 0, 0, 3]]], np.int32)), 2)
    0.67
    """
    high = ndimage.maximum_filter(numbers, size=3)
    big = np.iinfo(np.int32).max
    low = ndimage.minimum_filter(np.where(numbers > 0, numbers, big), size=3)
    meets = (numbers > 0) & ((high != numbers) | (low != numbers))
    total = np.unique(numbers[numbers > 0])
    return len(np.unique(numbers[meets])) / len(total) if len(total) else 0.0
