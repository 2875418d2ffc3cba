"""The steps that clean the mask of a class: what is joined, taken off, dropped and filled. Pure functions on whole arrays.

`rescueseg.delivery.masks` does the same to volumes that do not fit into memory, and is tested against these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Spacing
from rescueseg.postprocessing.distances import Mask, between, opening
from rescueseg.voxels.components import label_components

Numbers = npt.NDArray[Any]
_ROUNDING = 1e-9


class Steps(Protocol):
    """How the mask of one class is cleaned, in this order; 0 leaves a step out. `rescueseg.delivery.records.CleanUp` is one."""

    @property
    def bridge_um(self) -> float:
        """See `bridge`."""
        ...

    @property
    def bridge_probability(self) -> float:
        """See `bridge`."""
        ...

    @property
    def spurs_um(self) -> float:
        """See `spurs`."""
        ...

    @property
    def smallest_um3(self) -> float:
        """See `smallest`."""
        ...

    @property
    def cavities_um3(self) -> float:
        """See `cavities`."""
        ...

    @property
    def largest(self) -> bool:
        """See `largest`."""
        ...


def clean_mask(
    labels: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.float32],
    spacing_um_zyx: Spacing,
    cleanup: Sequence[Steps],
) -> npt.NDArray[np.uint8]:
    """Clean a mask: one step after the other, each for all classes, so that no class overwrites a voxel of another.

    Parameters
    ----------
    labels : ndarray of uint8, zyx
        0 background, 1…K classes; not changed.
    probability : ndarray of float32, (K + 1, z, y, x)
        Background first. A bridge of a class lies where that is the most probable of the classes 1…K.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    cleanup : sequence
        Of classes 1…K.

    Returns
    -------
    ndarray of uint8, zyx
        A new array.
    """
    result = labels.copy()
    classes = list(enumerate(cleanup, start=1))
    if any(s.bridge_um for s in cleanup):
        first = probability[1:].argmax(axis=0) + 1
        for c, s in classes:
            if s.bridge_um:
                free = (labels == 0) & (first == c)
                own = np.where(free, probability[c], np.float32(-1))
                result[bridge(labels == c, own, spacing_um_zyx, s.bridge_um, s.bridge_probability) & free] = c
    for c, s in classes:
        mask = result == c
        kept = spurs(mask, spacing_um_zyx, s.spurs_um) if s.spurs_um else mask
        kept = smallest(kept, spacing_um_zyx, s.smallest_um3) if s.smallest_um3 else kept
        result[mask & ~kept] = 0
    result = _fill(result, spacing_um_zyx, cleanup)
    for c, s in classes:
        if s.largest:
            mask = result == c
            result[mask & ~largest(mask)] = 0
    return result


def bridge(
    mask: Mask,
    probability: npt.NDArray[np.float32],
    spacing_um_zyx: Spacing,
    bridge_um: float,
    bridge_probability: float,
) -> Mask:
    """Return a mask with short gaps between its pieces bridged.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Pieces: voxels that share a face, an edge or a corner.
    probability : ndarray of float32, zyx
        Of the class; negative where no bridge may be.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    bridge_um : float
        Length of the longest gap, from the centre of the last voxel of one piece to that of the first of the other. A bridge
        is made of the voxels whose distances to the two nearest pieces add up to no more. (A closing would need balls of
        several times the gap's length where a branch is thinner than its gap is long.)
    bridge_probability : float
        What each of its voxels needs.

    Returns
    -------
    ndarray of bool, zyx
        The mask and the bridges: connected regions of such voxels that touch at least two pieces.

    Examples
    --------
    >>> mask = np.array([[[1, 1, 0, 0, 1, 0, 1]]], bool)
    >>> probability = np.array([[[1, 1, 0.4, 0.3, 1, 0.1, 1]]], np.float32)
    >>> bridge(mask, probability, (1, 1, 1), 3.0, 0.3).astype(int).tolist()
    [[[1, 1, 1, 1, 1, 0, 1]]]
    """
    pieces = label_components(mask, 26)[0]
    candidates = ~mask & (probability >= max(0.0, bridge_probability))
    regions, count = label_components(between(pieces, candidates, spacing_um_zyx, bridge_um), 26)
    return np.asarray(mask | (touch_counts(touches(regions, pieces), count) >= 2)[regions])


def spurs(mask: Mask, spacing_um_zyx: Spacing, spurs_um: float) -> Mask:
    """Return a mask without its thin protrusions.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Any mask.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    spurs_um : float
        Parts into which no ball of this diameter fits are thin (`rescueseg.postprocessing.distances.opening`).

    Returns
    -------
    ndarray of bool, zyx
        Connected thin parts that touch one piece of the rest are gone. Those that touch several stay: they are necks. Those
        that touch none stay as well: they are pieces of their own, for `smallest` to judge.

    Examples
    --------
    A bar of three voxels' height has a tail, and a thin piece lies beside it:

    >>> mask = np.zeros((3, 3, 9), bool)
    >>> mask[:, :, :4] = mask[1, 1, :6] = mask[1, 1, 8] = True
    >>> spurs(mask, (1, 1, 1), 3.0)[1, 1].astype(int).tolist()
    [1, 1, 1, 1, 0, 0, 0, 0, 1]
    """
    rest = opening(mask, spacing_um_zyx, spurs_um)
    regions, count = label_components(mask & ~rest, 26)
    pieces = label_components(rest, 26)[0]
    return np.asarray(mask & ~(touch_counts(touches(regions, pieces), count) == 1)[regions])


def smallest(mask: Mask, spacing_um_zyx: Spacing, smallest_um3: float) -> Mask:
    """Return a mask without its small pieces.

    Pieces at the array's faces stay whatever is seen of them: how large they are cannot be measured, at a volume's face as
    little as at a patch's.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        Pieces: voxels that share a face, an edge or a corner.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    smallest_um3 : float
        Pieces of this volume and more stay.

    Examples
    --------
    >>> mask = np.zeros((3, 3, 8), bool)
    >>> mask[1, 1, [0, 2, 4, 5]] = True
    >>> smallest(mask, (1, 1, 1), 2.0)[1, 1].astype(int).tolist()
    [1, 0, 0, 0, 1, 1, 0, 0]
    """
    pieces, count = label_components(mask, 26)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    return np.asarray(mask & ~is_small(sizes, at_faces(pieces, count), spacing_um_zyx, smallest_um3)[pieces])


def cavities(mask: Mask, spacing_um_zyx: Spacing, cavities_um3: float) -> Mask:
    """Return a mask with its small cavities filled.

    Parameters
    ----------
    mask : ndarray of bool, zyx
        A cavity is a connected piece of the rest, over faces of voxels, that touches no face of the array.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    cavities_um3 : float
        Cavities up to this volume are filled.

    Examples
    --------
    >>> mask = np.ones((3, 3, 8), bool)
    >>> mask[1, 1, [2, 4, 5, 7]] = False
    >>> cavities(mask, (1, 1, 1), 1.0)[1, 1].astype(int).tolist()
    [1, 1, 1, 1, 0, 0, 1, 0]
    """
    pieces, count = label_components(~mask, 6)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    return np.asarray(mask | is_cavity(sizes, at_faces(pieces, count), spacing_um_zyx, cavities_um3)[pieces])


def largest(mask: Mask) -> Mask:
    """Return the largest piece of a mask; of equal ones the first in z, y, x order.

    Examples
    --------
    >>> largest(np.array([[[1, 0, 1, 1, 0, 1, 1]]], bool)).astype(int).tolist()
    [[[0, 0, 1, 1, 0, 0, 0]]]
    """
    pieces, count = label_components(mask, 26)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    return np.asarray(mask & (pieces == sizes[1:].argmax() + 1)) if count else mask.copy()


def _fill(labels: npt.NDArray[np.uint8], spacing: Spacing, cleanup: Sequence[Steps]) -> npt.NDArray[np.uint8]:
    """Fill the cavities of all classes; what several surround goes to the class of the smallest cavity."""
    result, size_of_filled = labels.copy(), np.full(labels.shape, np.iinfo(np.int64).max)
    for c, s in enumerate(cleanup, start=1):
        if s.cavities_um3:
            pieces, count = label_components(labels != c, 6)
            sizes = np.bincount(pieces.ravel(), minlength=count + 1)
            filled = is_cavity(sizes, at_faces(pieces, count), spacing, s.cavities_um3)
            fill_smaller(result, size_of_filled, labels == 0, (filled * sizes)[pieces], c)
    return result


def fill_smaller(
    result: npt.NDArray[np.uint8],
    size_of_filled: npt.NDArray[np.int64],
    free: Mask,
    sizes: npt.NDArray[np.int64],
    class_index: int,
) -> None:
    """Give free voxels to a class whose cavity is smaller than any that was filled before; changes the first two arrays.

    Parameters
    ----------
    result : ndarray of uint8, zyx
        Classes.
    size_of_filled : ndarray of int64, zyx
        Size of the cavity by which a voxel was filled.
    free : ndarray of bool, zyx
        Voxels without a class before any was filled.
    sizes : ndarray of int64, zyx
        Size of the class's cavity that is to be filled, 0 elsewhere.
    class_index : int
        The class.
    """
    filled = free & (sizes > 0) & (sizes < size_of_filled)
    result[filled] = class_index
    size_of_filled[filled] = sizes[filled]


def is_small(sizes: npt.NDArray[np.int64], at_face: Mask, spacing_um_zyx: Spacing, smallest_um3: npt.ArrayLike) -> Mask:
    """Tell which pieces are to be dropped, given their voxels and whether they touch a face of the array; 0 is none."""
    limit = np.asarray(smallest_um3) / math.prod(spacing_um_zyx) * (1 - _ROUNDING)
    small = (sizes < limit) & ~at_face
    small[0] = False
    return np.asarray(small)


def is_cavity(sizes: npt.NDArray[np.int64], at_face: Mask, spacing_um_zyx: Spacing, cavities_um3: float) -> Mask:
    """Tell which pieces of the rest are to be filled, given their voxels and whether they touch a face; 0 is none."""
    filled = (sizes <= cavities_um3 / math.prod(spacing_um_zyx) * (1 + _ROUNDING)) & ~at_face
    filled[0] = False
    return np.asarray(filled)


def at_faces(pieces: Numbers, count: int) -> Mask:
    """Tell which of the numbers 0…count occur at the faces of an array."""
    result = np.zeros(count + 1, np.bool_)
    for axis, side in itertools.product(range(pieces.ndim), (0, -1)):
        result[np.take(pieces, side, axis).ravel()] = True
    return result


def touches(regions: Numbers, pieces: Numbers) -> npt.NDArray[np.int64]:
    """Return which regions touch which pieces over faces, edges or corners.

    Parameters
    ----------
    regions, pieces : ndarray of int, zyx
        Numbered, 0 elsewhere; no voxel is in both.

    Returns
    -------
    ndarray of int64, (n, 2)
        Pairs of a region and a piece, sorted, each once.

    Examples
    --------
    >>> touches(np.array([[[0, 7, 0, 8]]]), np.array([[[3, 0, 4, 0]]])).tolist()
    [[7, 3], [7, 4], [8, 4]]
    """
    at = np.argwhere(regions > 0)
    numbers = regions[tuple(at.T)].astype(np.int64)
    padded = np.pad(pieces, 1).astype(np.int64, copy=False)
    flat, base = padded.reshape(-1), np.int64(padded.max(initial=0) + 1)
    places = np.ravel_multi_index(tuple(at.T + 1), padded.shape)
    pairs = [np.empty(0, np.int64)]
    for shift in itertools.product((-1, 0, 1), repeat=3):
        neighbours = flat[places + np.dot(shift, [padded.shape[1] * padded.shape[2], padded.shape[2], 1])]
        hit = neighbours > 0
        pairs.append(np.unique(numbers[hit] * base + neighbours[hit]))
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), base), axis=1)


def touch_counts(pairs: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return how many pieces each of the regions 0…count touches."""
    return np.bincount(pairs[:, 0], minlength=count + 1)
