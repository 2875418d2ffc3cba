"""Choices of patches that a benchmark compares query strategies with: by the truth, or by a whole predicted volume.

Those that see the truth are for simulations alone: they stand here and not among `rescueseg.active_learning.strategies.STRATEGIES`,
so that no live campaign can name them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg.active_learning.strategies import descending
from rescueseg.geometry import ZYX, Box, Floats, Integers, Patch, box_bounds, partition, zyx
from rescueseg.inference.box_means import box_sums
from rescueseg.labels import IGNORE, most_likely
from rescueseg.sampling.free_places import choose_apart

Weights = npt.NDArray[Any]
"""Of the voxels of a volume (z, y, x), not negative: bool or float."""
_VOLUME = ""
"""A simulation has one volume, whatever it is called."""


@dataclass(frozen=True)
class Pool:
    """Where in a volume patches may be chosen.

    Parameters
    ----------
    shape_zyx : tuple of int
        Of the volume.
    patch_zyx : tuple of int
        Of every patch.
    blocked : tuple of Box
        What no patch may touch: the holdout with its guard band, and what is annotated.
    candidates : tuple of Box
        Patches on a grid that touch none of that; they overlap each other.
    """

    shape_zyx: ZYX
    patch_zyx: ZYX
    blocked: tuple[Box, ...]
    candidates: tuple[Box, ...]


@dataclass(frozen=True)
class Choice:
    """A patch that was chosen, its score and why."""

    box: Box
    score: float
    reason: str


@dataclass(frozen=True)
class Targets:
    """Voxels that patches are drawn around, for each class 1…K: how likely each is to be drawn.

    Parameters
    ----------
    objects, borders : tuple of ndarray, (z, y, x)
        Voxels of the class, and those at its border.
    """

    objects: tuple[Weights, ...]
    borders: tuple[Weights, ...]


def label_targets(labels: npt.NDArray[np.uint8], n_classes: int) -> Targets:
    """Return the voxels of each class, all alike, and those of its border.

    Parameters
    ----------
    labels : ndarray of uint8, (z, y, x)
        0 background, 1…K classes, 255 unknown.
    n_classes : int
        K.

    Returns
    -------
    Targets
        The border is the class without its erosion by a ball of one voxel; where the volume ends is no border.

    Examples
    --------
    A slab of three planes: its middle one is no border.

    >>> labels = np.zeros((5, 3, 3), np.uint8)
    >>> labels[1:4] = 1
    >>> targets = label_targets(labels, 1)
    >>> [int(border) for border in targets.borders[0].sum(axis=(1, 2))]
    [0, 9, 0, 9, 0]
    """
    masks = tuple(labels == c for c in range(1, n_classes + 1))
    return Targets(masks, tuple(mask & ~ndimage.binary_erosion(mask, border_value=1) for mask in masks))


def predicted_targets(probability: npt.NDArray[Any]) -> Targets:
    """Return what `label_targets` does of the predicted classes.

    A class that is the likeliest nowhere is drawn by its probability, and its border by the steepness of that.

    Parameters
    ----------
    probability : ndarray, (K + 1, z, y, x)
        Class by class, background first.

    Examples
    --------
    >>> probability = np.array([0.9, 0.6, 0.4], np.float32).reshape(1, 3, 1, 1)
    >>> targets = predicted_targets(np.concatenate([probability, 1 - probability]))
    >>> targets.objects[0].ravel().tolist()
    [False, False, True]
    """
    n_classes = len(probability) - 1
    found = label_targets(most_likely(probability), n_classes)
    objects, borders = list(found.objects), list(found.borders)
    for index, mask in enumerate(found.objects):
        if not mask.any():
            objects[index] = np.asarray(probability[index + 1], np.float32)
            borders[index] = _steepness(objects[index])
    return Targets(tuple(objects), tuple(borders))


def _steepness(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the length of the gradient, in units per voxel; an axis of one voxel has none."""
    axes = [axis for axis in range(3) if values.shape[axis] > 1]
    squares = [np.gradient(values, axis=axis) ** 2 for axis in axes]
    return np.sqrt(np.sum(squares, axis=0)).astype(np.float32) if squares else np.zeros_like(values)


def foreground_patches(
    targets: Targets, share: float, count: int, pool: Pool, rng: np.random.Generator
) -> list[Choice]:
    """Draw patches at random, a share of them around voxels of a class: foreground-aware random, as nnActive's.

    Of that share one half is centred on a voxel of an object, the other on one of a border; an odd one is either by chance. For
    each patch a class is drawn, all alike, then one of its voxels around which a patch fits. A voxel near the end of the volume
    gets the nearest patch that lies inside. Where nothing is left around any voxel, and for the rest, patches are drawn from the
    candidates, all alike.

    Parameters
    ----------
    targets : Targets
        By the truth, `label_targets`, or by a prediction, `predicted_targets`.
    share : float
        From 0 to 1; the number of patches is rounded.
    count : int
        Patches in all.
    pool : Pool
        Where they may lie; no two of them share a voxel.
    rng : numpy.random.Generator
        Only source of chance.

    References
    ----------
    nnActive, arXiv 2511.19183.
    """
    starts = _Starts(pool)
    chosen: list[Choice] = []
    at_border = rng.permutation(np.arange(round(share * count)) % 2 == rng.integers(2))
    for border in at_border:
        found = _draw_around(targets, bool(border), starts, rng)
        if found is not None:
            chosen.append(found)
            starts.block(found.box)
    rest = (pool.candidates[i] for i in rng.permutation(len(pool.candidates)))
    drawn = choose_clear(rest, count - len(chosen), [c.box for c in chosen])
    return chosen + [Choice(box, 0.0, "random") for box in drawn]


def error_patches(
    predicted: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], count: int, pool: Pool, rng: np.random.Generator
) -> list[Choice]:
    """Choose the candidates with the largest share of voxels that the prediction has wrong: a ceiling for every strategy.

    Parameters
    ----------
    predicted, truth : ndarray of uint8, (z, y, x)
        Classes of the volume; where the truth is 255 nothing is wrong.
    count : int
        Patches in all, of which no two share a voxel.
    pool : Pool
        Where they may lie.
    rng : numpy.random.Generator
        Decides between equal ones.
    """
    wrong = (predicted != truth) & (truth != IGNORE)
    sizes = np.array([box.size for box in pool.candidates])
    share = box_sums(wrong, (0, 0, 0), *box_bounds(pool.candidates)) / sizes
    order = descending(share, rng)
    scores = {pool.candidates[i]: float(share[i]) for i in order}
    best = choose_clear((pool.candidates[i] for i in order), count, [])
    return [Choice(box, scores[box], "highest true error") for box in best]


def choose_clear(ordered: Iterable[Box], count: int, taken: Sequence[Box]) -> list[Box]:
    """Return the first boxes of an order that share no voxel with each other or with those that are taken.

    Examples
    --------
    >>> boxes = [Box((0, 0, x), (4, 4, 4)) for x in (0, 2, 4, 8)]
    >>> [box.offset_zyx[2] for box in choose_clear(boxes, 3, [Box((0, 0, 0), (4, 4, 2))])]
    [2, 8]
    """
    clear = [Patch(_VOLUME, box) for box in ordered if not any(box.intersects(other) for other in taken)]
    return [patch.box for patch in choose_apart(clear, count)]


def clear_pieces(shape_zyx: ZYX, block_zyx: ZYX, blocked: Sequence[Box]) -> list[Box]:
    """Return boxes without overlap that hold every voxel of a volume outside of what is blocked, and no other.

    Parameters
    ----------
    shape_zyx, block_zyx : tuple of int
        Shape of the volume, and of the blocks that it is cut into; those that touch what is blocked are cut further.
    blocked : sequence of Box
        May overlap each other and reach beyond the volume.

    Examples
    --------
    >>> [str(box) for box in clear_pieces((4, 4, 8), (4, 4, 4), [Box((0, 0, 6), (4, 4, 2))])]
    ['[0:4, 0:4, 0:4]', '[0:4, 0:4, 4:6]']
    """
    return [piece for block in partition(shape_zyx, block_zyx) for piece in _outside(block, blocked)]


def _outside(box: Box, blocked: Sequence[Box]) -> Iterator[Box]:
    """Yield the parts of a box that lie outside of others."""
    hole = next((inside for other in blocked if (inside := box.intersection(other)) is not None), None)
    if hole is None:
        yield box
        return
    start, stop = list(box.offset_zyx), list(box.stop_zyx)
    for axis in range(3):
        below, above = hole.offset_zyx[axis], hole.stop_zyx[axis]
        if start[axis] < below:
            yield from _outside(
                Box.from_bounds(start, [below if a == axis else n for a, n in enumerate(stop)]), blocked
            )
        if above < stop[axis]:
            yield from _outside(
                Box.from_bounds([above if a == axis else n for a, n in enumerate(start)], stop), blocked
            )
        start[axis], stop[axis] = below, above


class _Starts:
    """Where patches of a pool may begin, at any voxel."""

    def __init__(self, pool: Pool) -> None:
        self.patch = np.array(pool.patch_zyx)
        self.last = np.array(pool.shape_zyx) - self.patch
        self.free = np.ones(self.last + 1, np.bool_)
        for box in pool.blocked:
            self.block(box)

    def block(self, box: Box) -> None:
        """Let no patch touch a box."""
        first = np.maximum(np.array(box.offset_zyx) - self.patch + 1, 0)
        stop = np.maximum(box.stop_zyx, 0)
        self.free[tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True))] = False

    def around(self, voxels: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """Return where the patch around each voxel (n, 3) begins, and whether it touches nothing that is blocked."""
        starts = np.clip(voxels - self.patch // 2, 0, self.last)
        return starts, self.free[tuple(starts.T)]


def _draw_around(targets: Targets, border: bool, starts: _Starts, rng: np.random.Generator) -> Choice | None:
    """Draw a class, then a patch around one of its voxels; None where no class has one left."""
    for index in rng.permutation(len(targets.objects)):
        weights = (targets.borders if border else targets.objects)[index]
        voxels = np.argwhere(weights > 0)
        begin, is_free = starts.around(voxels)
        begin, chances = begin[is_free], np.asarray(weights[tuple(voxels[is_free].T)], np.float64)
        if len(begin):
            summed: Floats = np.cumsum(chances)
            row = int(np.searchsorted(summed, rng.random() * summed[-1], side="right"))
            box = Box(zyx(begin[min(row, len(begin) - 1)]), zyx(starts.patch))
            return Choice(box, 1.0, f"class {index + 1}, {'border' if border else 'object'}")
    return None
