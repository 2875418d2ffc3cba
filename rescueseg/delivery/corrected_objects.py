"""Which numbers the objects of a corrected box get, so that those that nobody changed keep theirs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.geometry import Box, Spacing
from rescueseg.voxels.components import label_components

Numbers = npt.NDArray[np.uint32]
Pair = tuple[int, int]


def corrected_numbers(
    before: Numbers, box: Box, drawn: Numbers, ignore: npt.NDArray[np.bool_], largest: int
) -> tuple[Numbers, int]:
    """Return the objects of a box after a correction.

    An object that was drawn as it was keeps its number. One that was changed and goes on beyond the box, or into what was
    not annotated, has the number of that part: of the object with which it shares most faces of voxels there, where these
    were of that object or of none before. No two drawn objects get one number. All others get new ones, in the order of
    their first voxels.

    Parameters
    ----------
    before : ndarray of uint32, zyx
        Objects before the correction, with a rim of one voxel around the box where the volume has one.
    box : Box
        The box within `before`.
    drawn : ndarray of uint32, zyx
        Objects as a person drew them in the box, under any numbers.
    ignore : ndarray of bool, zyx
        Voxels of the box that were not annotated: they stay as they are.
    largest : int
        The largest number of the volume.

    Returns
    -------
    numbers : ndarray of uint32, zyx
        Of the box.
    largest : int
        The largest number from now on.

    Examples
    --------
    Object 3 goes on beyond the box of the three middle voxels and loses one of them; another one appears:

    >>> before = np.array([[[3, 3, 3, 0, 0]]], np.uint32)
    >>> drawn = np.array([[[8, 0, 5]]], np.uint32)
    >>> nothing = np.zeros((1, 1, 3), bool)
    >>> corrected_numbers(before, Box((0, 0, 1), (1, 1, 3)), drawn, nothing, 7)
    (array([[[3, 0, 8]]], dtype=uint32), 8)
    """
    drawn = np.where(ignore, np.uint32(0), drawn)
    stays = before.copy()
    stays[box.slices] = np.where(ignore, before[box.slices], np.uint32(0))
    numbers = _unchanged(np.where(ignore, np.uint32(0), before[box.slices]), drawn)
    used = set(numbers.values())
    for one, number in _continued(before, stays, box, drawn):
        if one not in numbers and number not in used:
            numbers[one] = number
            used.add(number)
    ids, first = np.unique(drawn, return_index=True)
    for one in ids[np.argsort(first)].tolist():
        if one and one not in numbers:
            largest += 1
            numbers[one] = largest
    table = np.array([numbers.get(one, 0) for one in ids.tolist()], np.uint32)
    after = table[np.searchsorted(ids, drawn)]
    return np.where(ignore, before[box.slices], after), largest


def _unchanged(old: Numbers, drawn: Numbers) -> dict[int, int]:
    """Return the old number of each object that was drawn voxel by voxel as it was."""
    pairs, shared = _count(drawn, old)
    voxels = {int(n): int(c) for n, c in zip(*np.unique(drawn, return_counts=True), strict=True)}
    old_voxels = {int(n): int(c) for n, c in zip(*np.unique(old, return_counts=True), strict=True)}
    return {
        one: number
        for (one, number), count in zip(pairs, shared, strict=True)
        if one and number and count == voxels[one] == old_voxels[number]
    }


def _continued(before: Numbers, stays: Numbers, box: Box, drawn: Numbers) -> list[Pair]:
    """Return drawn objects with the number that each shares most faces with, those that share most first."""
    framed = np.zeros(before.shape, np.uint32)
    framed[box.slices] = drawn
    found: list[tuple[Numbers, Numbers]] = []
    for axis in range(3):
        inner, was, fixed = (np.moveaxis(array, axis, 0) for array in (framed, before, stays))
        for here, there in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            touch = (inner[here] > 0) & (fixed[there] > 0) & ((was[here] == 0) | (was[here] == fixed[there]))
            found.append((inner[here][touch], fixed[there][touch]))
    pairs, shared = _count(np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found]))
    best: dict[int, tuple[int, int]] = {}
    for (one, number), count in zip(pairs, shared, strict=True):
        if one not in best or (-count, number) < best[one]:
            best[one] = (-count, number)
    return [(one, number) for one, (_, number) in sorted(best.items(), key=lambda item: (item[1][0], item[0]))]


def _count(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer]) -> tuple[list[Pair], list[int]]:
    """Return the pairs of numbers of two arrays that occur, and how often."""
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    return [(int(x), int(y)) for x, y in pairs.T], counts.tolist()


def drawn_objects(old: Numbers, foreground: npt.NDArray[np.bool_], spacing_um_zyx: Spacing) -> Numbers:
    """Return the objects of a corrected mask, where people drew classes and no objects.

    What stays foreground keeps its object, what became foreground joins the nearest one of its connected piece, or is a new
    one where the piece has none. Where a connected part of an object falls apart, the largest piece of it stays the object
    and the others become new ones.

    Parameters
    ----------
    old : ndarray of uint32, zyx
        Objects before.
    foreground : ndarray of bool, zyx
        What objects are made of, after.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Returns
    -------
    ndarray of uint32, zyx
        Numbers of no meaning beyond this box.

    Examples
    --------
    >>> old = np.array([[[4, 4, 0, 6, 6]]], np.uint32)
    >>> drawn_objects(old, np.array([[[True, True, True, True, False]]]), (1.0, 1.0, 1.0)).tolist()
    [[[1, 1, 1, 2, 0]]]
    """
    pieces, count = label_components(foreground, 6)
    belongs = np.where(foreground, old, 0).astype(np.int64)
    for number, where in enumerate(ndimage.find_objects(pieces, max_label=count), start=1):
        piece = pieces[where] == number
        inside = np.where(piece, belongs[where], 0)
        missing = piece & (inside == 0)
        if not missing.any():
            continue
        if inside.any():
            nearest = ndimage.distance_transform_edt(
                inside == 0, spacing_um_zyx, return_distances=False, return_indices=True
            )
            belongs[where][missing] = inside[tuple(nearest)][missing]
        else:
            belongs[where][missing] = int(old.max()) + number
    parts, _ = label_components(belongs, 6)
    stays = belongs == old
    pairs, shared = _count(np.where(stays, parts, 0), label_components(old, 6)[0])
    largest: dict[int, Pair] = {}
    for (part, old_part), count in zip(pairs, shared, strict=True):
        if part and old_part and (old_part not in largest or count > largest[old_part][1]):
            largest[old_part] = (part, count)
    main = np.isin(parts, [part for part, _ in largest.values()])
    apart = np.where(main | (parts == 0), belongs, parts + int(belongs.max()))
    return np.unique(apart, return_inverse=True)[1].reshape(old.shape).astype(np.uint32) + np.uint32(apart.min() > 0)
