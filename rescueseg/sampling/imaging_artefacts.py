"""Imaging artefacts in a box, measured on the voxels alone.

==============  =======================================================  =======================================
kind            measured                                                 present from
==============  =======================================================  =======================================
saturation      voxels at the highest value, where values pile up there  0.1 % of the box
blank_plane     spread of a z plane against that of its neighbours       under a quarter, in 3/4 of the plane
repeated_plane  change between z planes against the changes around       under a tenth
drift_step      the same; contrast and noise of planes over all boxes    2.5 times, in 3/4 of the plane; a tenth
stripes         agreement of the line profiles of two opposite sides     correlation 0.4, half the noise high
seam            change between rows or columns against those beside      1.5 times
==============  =======================================================  =======================================

All are ratios: they do not change with the intensity scale. A strength is the measured number over its threshold (or
the other way round where small is bad): from 1 on the imaging artefact is there. It ends at 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

KINDS = ("saturation", "blank_plane", "repeated_plane", "drift_step", "stripes", "seam")
"""Order of the strengths; of two equally strong ones the first names the box."""

_BLANK, _REPEATED = 0.25, 0.1
"""A plane with so little of its neighbours' structure, or of their change, holds no picture of its own."""
_STEP = 2.5
"""The change of real structure varies less than twofold from one interface to the next, once three quarters of the
face have to agree."""
_GAIN = 0.1
"""A tenth more contrast or noise: what a fixed threshold or a network's first layer feels."""
_SEAM, _SEAM_ERRORS = 1.5, 3.0
"""Change at a seam against that at the interfaces beside it, and standard errors over the tiles of the face."""
_SATURATED = 1e-3
"""Share of voxels: a tenth of a percent is the clipped tip of an object."""
_AGREEMENT, _AMPLITUDE = 0.4, 0.5
"""Correlation of two sides, and amplitude in units of the noise: fainter stripes drown in it."""
_SIGNIFICANT = 5.0
"""Standard errors: hundreds of boxes are measured, so that chance would reach fewer somewhere."""
_TILES = 4
"""Tiles along each axis of a face."""
_REACH = 3
"""Interfaces on either side that count as neighbours."""
_STRONGEST = 10.0


@dataclass(frozen=True)
class TopValues:
    """The two highest values of a box and how often each occurs; what `saturated_shares` needs.

    Parameters
    ----------
    values, counts : tuple of float, tuple of int
        Highest first; one entry where the box is constant.
    size : int
        Voxels in the box.
    """

    values: tuple[float, ...]
    counts: tuple[int, ...]
    size: int


def top_values(voxels: npt.NDArray[Any]) -> TopValues:
    """Return the two highest values of an array, as acquired, of any shape and real dtype."""
    flat = voxels.ravel()
    first = flat.max()
    below = flat[flat < first]
    highest = [(first, flat.size - below.size)]
    if below.size:
        second = below.max()
        highest.append((second, int(np.count_nonzero(below == second))))
    values, counts = zip(*highest, strict=True)
    return TopValues(tuple(float(v) for v in values), tuple(int(c) for c in counts), flat.size)


def saturated_shares(boxes: Iterable[TopValues]) -> Floats:
    """Return the share of each box at the saturation level of their volume; 0 everywhere where nothing saturates.

    The tail of a distribution thins out towards its end. Where it does the contrary, the highest value standing for
    at least twice as many voxels as the next one, what lay above was cut off there, whatever the bit depth.

    Parameters
    ----------
    boxes : iterable of TopValues
        All of one volume and channel.

    Returns
    -------
    ndarray of float64, shape (n,)
        Between 0 and 1.

    Examples
    --------
    Of four voxels that two boxes hold each, three and none are at the end of the range:

    >>> boxes = [top_values(np.uint8(v)) for v in ([255, 255, 255, 254], [7, 8, 9, 9])]
    >>> saturated_shares(boxes).tolist()
    [0.75, 0.0]
    """
    boxes = list(boxes)
    counts: dict[float, int] = {}
    for box in boxes:
        for value, count in zip(box.values, box.counts, strict=True):
            counts[value] = counts.get(value, 0) + count
    highest = sorted(counts, reverse=True)[:2]
    if len(highest) < 2 or counts[highest[0]] < 2 * counts[highest[1]]:
        return np.zeros(len(boxes))
    return np.array([b.counts[0] / b.size if b.values[0] == highest[0] else 0.0 for b in boxes])


def saturation_strength(share: Floats) -> Floats:
    """Return the strength of the shares that `saturated_shares` returned."""
    return np.minimum(share / _SATURATED, _STRONGEST)


def structural_strengths(image: Image, smooth: Image, noise: float) -> Floats:
    """Return the strengths of every kind but saturation, in the order of `KINDS[1:]`.

    Parameters
    ----------
    image : ndarray of float32, zyx
        A box of one channel.
    smooth : ndarray of float32, zyx
        The same, smoothed in plane.
    noise : float
        Standard deviation of the noise, above 0, in the units of `image`.

    Returns
    -------
    ndarray of float64, shape (5,)
        Axes too short for a measure (under 5 planes, rows or columns) give 0.
    """
    change = interface_change(image, 0)
    blank, repeated = _inverse(_BLANK, blank_ratio(smooth)), _inverse(_REPEATED, repeated_ratio(change))
    drift = step_strength(interface_change(smooth, 0))
    stripes = max(stripe_strength(image, a, noise) for a in (1, 2))
    seam = max(seam_strength(interface_change(image, a), image.size // image.shape[a]) for a in (1, 2))
    # a blank plane has a step on either side, and stripes are seams too: the more telling name stands
    drift = min(drift, blank) if blank >= 1 else drift
    seam = min(seam, stripes) if stripes >= 1 else seam
    return np.array([blank, repeated, drift, stripes, seam])


def _inverse(threshold: float, ratio: float) -> float:
    return min(threshold / max(ratio, 1e-9), _STRONGEST)


def interface_change(image: Image, axis: int) -> Floats:
    """Return the mean absolute difference across each interface of an axis, tile by tile of the face.

    Returns
    -------
    ndarray of float64, shape (n - 1, tiles, tiles)
        Up to 4 × 4 tiles.
    """
    return _tile_means(np.abs(np.diff(np.moveaxis(image, axis, 0), axis=0)))


def _tile_means(planes: npt.NDArray[Any]) -> Floats:
    for face in (1, 2):
        starts = np.unique(np.linspace(0, planes.shape[face], _TILES, endpoint=False).astype(int))
        lengths = np.diff([*starts, planes.shape[face]])
        planes = np.add.reduceat(planes, starts, axis=face, dtype=np.float64)
        planes /= lengths.reshape([-1 if a == face else 1 for a in range(3)])
    return np.asarray(planes, dtype=np.float64)


def neighbour_median(profile: Floats) -> Floats:
    """Return the median over the up to six neighbours of each entry of the first axis, the entry itself left out."""
    n = len(profile)
    result = np.empty_like(profile)
    for k in range(n):
        near = [i for i in range(max(0, k - _REACH), min(n, k + _REACH + 1)) if i != k]
        result[k] = np.median(profile[near], axis=0)
    return result


def tile_spread(smooth: Image) -> Floats:
    """Return the standard deviation of each tile of each z plane; (planes, tiles, tiles), up to 4 × 4 tiles."""
    planes = np.asarray(smooth, dtype=np.float64)
    mean = _tile_means(planes)
    return np.asarray(np.sqrt(np.maximum(_tile_means(planes**2) - mean**2, 0.0)))


def blank_ratio(smooth: Image) -> float:
    """Return the spread of the emptiest plane against that of its neighbours; 1 where a short box cannot tell.

    Three quarters of the tiles have to be as empty: among sparse objects some always are.
    """
    spread = tile_spread(smooth)
    if len(spread) < 4:
        return 1.0
    near = neighbour_median(spread)
    ratio = np.divide(spread, near, out=np.ones_like(spread), where=near > 0).reshape(len(spread), -1)
    return float(np.quantile(ratio, 0.75, axis=1).min())


def repeated_ratio(change: Floats) -> float:
    """Return the smallest change between two planes against those around it; 1 where a short box cannot tell."""
    if len(change) < 4:
        return 1.0
    profile = change.mean(axis=(1, 2))
    near = neighbour_median(profile)
    ratio = np.divide(profile, near, out=np.ones_like(profile), where=near > 0)
    return float(ratio.min())


def step_strength(change: Floats) -> float:
    """Return the strength of the strongest step in what `interface_change` returned.

    Each tile is compared with itself at the interfaces before and after, whichever change more: structure that ends
    in the box changes less and less. The lower quartile over tiles counts, so that three quarters of the face have to
    show the step.
    """
    n = len(change)
    if n < 4:
        return 0.0
    inner = range(1, n - 1)
    before = np.array([np.median(change[max(0, k - _REACH) : k], axis=0) for k in inner])
    after = np.array([np.median(change[k + 1 : k + 1 + _REACH], axis=0) for k in inner])
    near = np.maximum(before, after)
    ratio = np.divide(change[1:-1], near, out=np.zeros_like(near), where=near > 0).reshape(len(near), -1)
    return min(float(np.quantile(ratio, 0.25, axis=1).max()) / _STEP, _STRONGEST)


def plane_levels(image: Image, smooth: Image) -> Floats:
    """Return the logarithms of contrast and noise of each z plane; what `gain_steps` needs.

    Returns
    -------
    ndarray of float64, shape (2, planes)
        Spread of the smoothed image, and of what the smoothing removed; nan where a plane is constant.
    """
    spread = np.stack([part.std(axis=(1, 2), dtype=np.float64) for part in (smooth, image - smooth)])
    return np.asarray(np.log(spread, out=np.full(spread.shape, np.nan), where=spread > 0))


def gain_steps(first_planes: Sequence[int], levels: Sequence[Floats], depth: int, faces: float) -> Floats:
    """Return the strength of a lasting change of contrast or noise at each interface between z planes of a volume.

    One box cannot tell such a step from structure that ends there; many boxes all over the plane can. Their median
    change has to exceed a tenth, five standard errors, and three times the changes at the interfaces around.

    Parameters
    ----------
    first_planes : sequence of int
        Where each box begins along z.
    levels : sequence of ndarray
        Of each box, from `plane_levels`.
    depth : int
        Planes in the volume.
    faces : float
        Boxes that fit side by side in a plane: more of them overlap and are no further evidence; neighbours share
        structure, so that half as many count.

    Returns
    -------
    ndarray of float64, shape (depth - 1,)
        0 where fewer than 8 boxes lie across an interface.
    """
    strengths = np.zeros(max(0, depth - 1))
    for quantity in range(2):
        changes: list[list[float]] = [[] for _ in strengths]
        for first, level in zip(first_planes, levels, strict=True):
            for k, change in enumerate(np.diff(level[quantity])):
                if np.isfinite(change):
                    changes[first + k].append(float(change))
        strengths = np.maximum(strengths, _gain_step_strengths(changes, faces))
    return strengths


def _gain_step_strengths(changes: Sequence[Sequence[float]], faces: float) -> Floats:
    median = np.array([np.median(c) if len(c) >= 8 else np.nan for c in changes])
    strength = np.zeros(len(changes))
    for k in np.flatnonzero(np.isfinite(median)).tolist():
        near = median[max(0, k - _REACH) : k + _REACH + 1]
        if np.isfinite(near).sum() < 4:
            continue
        usual = float(np.median(np.abs(near[np.isfinite(near)])))
        deviation = float(np.median(np.abs(np.array(changes[k]) - median[k])))
        error = 1.4826 * 1.25 * deviation / np.sqrt(min(len(changes[k]), faces) / 2)
        size = abs(float(median[k]))
        strength[k] = min(size / _GAIN, size / (_SIGNIFICANT * error + 1e-9), size / (3 * usual + 1e-9), _STRONGEST)
    return strength


def seam_strength(change: Floats, pixels: int) -> float:
    """Return the strength of the strongest seam in what `interface_change` returned.

    A seam lies between two voxels; real structure is blurred by the optics, so that the interfaces before and after
    change about as much. `pixels`, those of a face, say how much of a difference is noise; the tiles say whether it
    runs through the face or comes from a single object: their mean has to exceed three standard errors.
    """
    if len(change) < 4:
        return 0.0
    needed = max(_SEAM, 1 + 8 / np.sqrt(pixels))
    profile = change.mean(axis=(1, 2))
    beside = np.maximum(profile[:-2], profile[2:])
    ratio = np.divide(profile[1:-1], beside, out=np.zeros_like(beside), where=beside > 0)
    near = np.maximum(change[:-2], change[2:])
    tiles = np.divide(change[1:-1], near, out=np.ones_like(near), where=near > 0).reshape(len(ratio), -1)
    excess = np.log(np.clip(tiles, 1 / 3, 3))
    error = excess.std(axis=1, ddof=1) / np.sqrt(tiles.shape[1]) if tiles.shape[1] > 1 else np.full(len(ratio), np.inf)
    agreed = excess.mean(axis=1) / (_SEAM_ERRORS * error + 1e-9)
    return min(float(np.minimum(ratio / needed, agreed).max()), _STRONGEST)


def stripe_strength(image: Image, axis: int, noise: float) -> float:
    """Return the strength of stripes along an axis (1: y, 2: x) in planes.

    The profile across the stripes is taken on the first and the last third of the box: noise and structure differ
    between the two, stripes are the same. Second differences leave lines and steps, and no slow shading.
    """
    across = 3 - axis
    length, n = image.shape[axis], image.shape[across]
    third = length // 3
    if third < 4 or n < 12:
        return 0.0
    sides = np.moveaxis(image, axis, 2)
    profiles = [
        np.diff(s.mean(axis=2, dtype=np.float64), n=2, axis=1) for s in (sides[..., :third], sides[..., -third:])
    ]
    first, last = (np.clip(p, -limit, limit) for p in profiles if (limit := 4.5 * np.median(np.abs(p)) + 1e-12))
    common = float(np.mean(first * last))
    if common <= 0:
        return 0.0
    agreement = common / float(np.sqrt(np.mean(first**2) * np.mean(last**2)))
    # second differences of noise are correlated (factor 2), and planes share their content
    error = float(np.sqrt(2 / ((n - 2) * max(1.0, len(image) / 4))))
    amplitude = float(np.sqrt(common / 6)) / noise
    return min(agreement / max(_AGREEMENT, _SIGNIFICANT * error), amplitude / _AMPLITUDE, _STRONGEST)
