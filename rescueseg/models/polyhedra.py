"""Star-convex polyhedra: rays, suppression of those that overlap, and their voxels, by the StarDist library without TensorFlow.

A polyhedron is a centre and the lengths of rays to its corners. Rays are the corners of an octahedron whose faces were
divided: mirrored, or with axes exchanged, they are the same rays in another order, so that what a network says of a turned
window can be turned back.

References
----------
Weigert, Schmidt, Haase, Sugawara & Myers 2020, doi:10.1109/WACV45572.2020.9093435.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.errors import ConfigError
from rescueseg.geometry import ZYX, Box, Spacing, partition, zyx
from rescueseg.voxels.peaks import find_peaks

Float32 = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.uint32]

RAY_COUNTS = (18, 66, 258)
"""Of an octahedron whose faces are divided once, twice and three times."""
MOST_OVERLAP = 0.3
"""Share of the smaller of two polyhedra that both may cover; else the less probable one is dropped."""


GROWTH = 1.25
"""Of polyhedra, for the voxels of the mask that lie in none. On nuclei it took panoptic quality from 0.42 to 0.53; grown by
half, 0.49: crumbs between objects."""
_PART_ZYX: ZYX = (32, 64, 64)
"""Rays are read in parts of so many voxels."""


def star_directions(count: int) -> Float32:
    """Return the directions of rays, unit vectors zyx.

    Parameters
    ----------
    count : int
        One of `RAY_COUNTS`.

    Returns
    -------
    ndarray of float32, (count, 3)

    Raises
    ------
    ConfigError
        If the package `stardist` is not installed.
    """
    directions: Float32 = _rays(count).vertices.astype(np.float32)
    return directions


def suppress_overlaps(
    points: npt.NDArray[np.integer], probabilities: Float32, lengths_um: Float32, spacing_um_zyx: Spacing
) -> npt.NDArray[np.bool_]:
    """Return which polyhedra stay: of two that overlap by more than `MOST_OVERLAP` the more probable one, that one first.

    Parameters
    ----------
    points : ndarray of integers, (n, 3)
        Centres, voxels zyx.
    probabilities : ndarray of float32, (n,)
        How probable each is.
    lengths_um : ndarray of float32, (n, rays)
        Lengths of the rays of `star_directions`, micrometre, above zero.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of bool, (n,)
    """
    if not len(points):
        return np.zeros(0, np.bool_)
    from stardist.nms import non_maximum_suppression_3d_inds

    rays, per_um = _rays_in_voxels(lengths_um.shape[1], spacing_um_zyx)
    stays: npt.NDArray[np.bool_] = non_maximum_suppression_3d_inds(
        lengths_um * per_um, points, rays=rays, scores=probabilities, thresh=MOST_OVERLAP, verbose=False
    )
    return stays


def bounds(points: npt.NDArray[np.integer], lengths_um: Float32, spacing_um_zyx: Spacing) -> tuple[Any, Any]:
    """Return the first voxels of polyhedra and those behind their last ones, ndarrays of int64, (n, 3) each."""
    corners = lengths_um[:, :, None] * (star_directions(lengths_um.shape[1]) / np.asarray(spacing_um_zyx, np.float32))
    low, high = np.floor(corners.min(axis=1)).astype(np.int64), np.ceil(corners.max(axis=1)).astype(np.int64)
    return points + low, points + high + 1


def voxels_of(lengths_um: Float32, spacing_um_zyx: Spacing) -> tuple[Box, npt.NDArray[np.bool_]]:
    """Return the voxels of one polyhedron whose centre is voxel (0, 0, 0).

    Parameters
    ----------
    lengths_um : ndarray of float32, (rays,)
        As for `suppress_overlaps`.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    box : Box
        Around it; its offset is negative.
    mask : ndarray of bool, zyx
        Of the box's voxels. They do not depend on where in a volume it lies.
    """
    from stardist.geometry import polyhedron_to_label

    low, high = bounds(np.zeros((1, 3), np.int64), lengths_um[np.newaxis], spacing_um_zyx)
    box = Box.from_bounds(low[0].tolist(), high[0].tolist())
    rays, per_um = _rays_in_voxels(len(lengths_um), spacing_um_zyx)
    drawn = polyhedron_to_label((lengths_um * per_um)[np.newaxis], -low, rays, box.shape_zyx, verbose=False)
    mask: npt.NDArray[np.bool_] = drawn > 0
    mask[zyx(-low[0])] = True
    return box, mask


@dataclass(frozen=True)
class Polyhedra:
    """Star-convex polyhedra of a volume.

    Parameters
    ----------
    points : ndarray of int64, (n, 3)
        Centres, voxels zyx.
    probabilities : ndarray of float32, (n,)
        How probable each is.
    lengths_um : ndarray of float32, (n, rays)
        Of the rays of `star_directions`.
    """

    points: npt.NDArray[np.int64]
    probabilities: Float32
    lengths_um: Float32

    def __len__(self) -> int:
        return len(self.points)

    def chosen(self, which: npt.NDArray[Any]) -> Polyhedra:
        """Return some of them, by index or mask."""
        return Polyhedra(self.points[which], self.probabilities[which], self.lengths_um[which])

    def without_overlaps(self, spacing_um_zyx: Spacing) -> Polyhedra:
        """Return those that stay, the least probable first; of equals the one whose centre comes first is more probable."""
        order = np.lexsort((*self.points.T[::-1], -self.probabilities))
        ranked = self.chosen(order)
        rank = np.arange(len(order), 0, -1, dtype=np.float32)  # no two are equal
        stays = suppress_overlaps(ranked.points, rank, ranked.lengths_um, spacing_um_zyx)
        return ranked.chosen(np.flatnonzero(stays)[::-1])

    def drawn(self, box: Box, spacing_um_zyx: Spacing) -> Numbers:
        """Return which polyhedron each voxel of a box lies in, 1…n, 0 none; of several the last one.

        A voxel that lies in none belongs to the one that holds it when all are grown by `GROWTH`.
        """
        labels = np.zeros(box.shape_zyx, np.uint32)
        for growth in (GROWTH, 1.0):
            self._draw(labels, box, self.lengths_um * np.float32(growth), spacing_um_zyx)
        return labels

    def _draw(self, labels: Numbers, box: Box, lengths_um: Float32, spacing_um_zyx: Spacing) -> None:
        if not len(self):
            return
        reach = lengths_um.max(axis=1, keepdims=True) / np.asarray(spacing_um_zyx) + 1
        near = (self.points - reach < box.stop_zyx) & (self.points + reach >= box.offset_zyx)
        for index in np.flatnonzero(near.all(axis=1)):
            around, mask = voxels_of(lengths_um[index], spacing_um_zyx)
            place = Box(
                zyx(a + b for a, b in zip(around.offset_zyx, self.points[index], strict=True)), around.shape_zyx
            )
            inside = place.intersection(box)
            if inside is not None:
                part = labels[inside.relative_to(box).slices]
                part[mask[inside.relative_to(place).slices]] = index + 1


def propose(
    probability: npt.NDArray[Any], inner: Box, least_probability: float, read_lengths: Callable[[Box], npt.NDArray[Any]]
) -> Polyhedra:
    """Return what the peaks of a box propose; centres are places in the array.

    Parameters
    ----------
    probability : ndarray of float, zyx
        The object's probability in the box and one voxel more on each side that is no border of the volume.
    inner : Box
        The box in the array.
    least_probability : float
        Less probable peaks propose nothing.
    read_lengths : callable
        Returns the lengths of the rays, (rays, z, y, x), in a part of the array. It is asked for parts that hold peaks alone:
        there are many rays.
    """
    peaks = find_peaks(probability) & (probability >= np.float32(least_probability))
    places, lengths = [np.zeros((0, 3), np.int64)], [np.zeros((0, 0), np.float32)]
    for part in partition(inner.shape_zyx, _PART_ZYX):
        box = Box(zyx(a + b for a, b in zip(part.offset_zyx, inner.offset_zyx, strict=True)), part.shape_zyx)
        at = np.argwhere(peaks[box.slices])
        if len(at):
            z, y, x = at.T
            places.append(at + np.asarray(box.offset_zyx))
            lengths.append(read_lengths(box)[:, z, y, x].T.astype(np.float32))
    points = np.concatenate(places)
    order = np.lexsort(points.T[::-1])
    rays = np.concatenate(lengths[1:])[order] if len(lengths) > 1 else lengths[0]
    points = points[order]
    seen = np.flatnonzero((rays > 0).all(axis=1))
    z, y, x = points.T
    return Polyhedra(points, probability[z, y, x].astype(np.float32), rays).chosen(seen)


def _library() -> ModuleType:
    """Import what tells the rays; TensorFlow stays out."""
    try:
        from stardist import rays3d
    except ImportError as error:
        raise ConfigError(
            "star-convex objects need the package stardist",
            where="rescueseg[stardist]",
            todo="Install it with: pip install 'rescueseg[stardist]'",
        ) from error
    module: ModuleType = rays3d
    return module


@lru_cache(maxsize=4)
def _rays(count: int) -> Any:
    return _library().Rays_Octo(RAY_COUNTS.index(count) + 2)


@lru_cache(maxsize=16)
def _rays_in_voxels(count: int, spacing_um_zyx: Spacing) -> tuple[Any, Float32]:
    """Return the rays as unit vectors in voxels, as StarDist has them, and how many voxels a micrometre is along each."""
    rays = _rays(count)
    in_voxels = rays.vertices / np.asarray(spacing_um_zyx, np.float32)
    per_um = np.linalg.norm(in_voxels, axis=1).astype(np.float32)
    return _library().Rays_Explicit(in_voxels / per_um[:, np.newaxis], rays.faces), per_um
