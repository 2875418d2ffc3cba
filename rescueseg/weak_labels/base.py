"""What a weak labeller is: image in, first mask and its confidence out; and how it goes over a box block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, Spacing, partition, zyx
from rescueseg.labels import most_likely
from rescueseg.records import Normalisation
from rescueseg.volumes.normalise import Array, normalise, read_box

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint32]

BLOCK_ZYX: ZYX = (64, 128, 128)
"""Largest block that is labelled at a time; bounds the memory of the feature stacks (about 200 bytes per voxel)."""


@dataclass(frozen=True)
class WeakLabel:
    """A first mask.

    Parameters
    ----------
    labels : ndarray of uint8, zyx
        0 background, 1…K classes.
    confidence : ndarray of float32, zyx
        In [0, 1]: by how much the label leads over the next one, 0 on the boundary between two.
    """

    labels: Labels
    confidence: Float32


@runtime_checkable
class WeakLabeller(Protocol):
    """Makes a first mask of an image; all that had to be fitted or trained lies behind it.

    The same image gives the same mask, the image is not changed, and whatever lies farther away than the margin
    does not matter: blocks read with the margin give what the whole image gives. Methods that flood (watershed) keep
    this but for single voxels.
    """

    @property
    def name(self) -> str:
        """Name of the method."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of classes it tells apart; 1 for a method that knows foreground alone."""
        ...

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the context it needs around a block, in voxels."""
        ...

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image.

        Parameters
        ----------
        image : ndarray of float32, czyx
            Normalised as `rescueseg.volumes.normalise` does.
        spacing_um_zyx : tuple of float
            Voxel size in micrometre.
        """
        ...


@runtime_checkable
class ObjectLabeller(WeakLabeller, Protocol):
    """A weak labeller that tells objects apart."""

    def label_objects(self, image: Float32, spacing_um_zyx: Spacing) -> tuple[WeakLabel, Numbers]:
        """Label an image, and number its objects, uint32 zyx, 0 outside of the mask; parameters as those of `label`."""
        ...


def from_decision(decision: npt.NDArray[np.floating], width: float) -> WeakLabel:
    """Return the weak label of a decision function: foreground where it is above 0.

    Parameters
    ----------
    decision : ndarray, zyx
        Distance from the threshold, in the units of what was thresholded.
    width : float
        Distance at which the foreground's probability is that of a logistic curve at 1; above 0.

    Returns
    -------
    WeakLabel
        Its confidence is |2P − 1| with P = 1 / (1 + exp(−decision / width)).

    Examples
    --------
    >>> weak = from_decision(np.array([[[-50.0, 0.0, 0.1, 50.0]]]), width=1.0)
    >>> weak.labels.tolist()
    [[[0, 0, 1, 1]]]
    >>> [round(float(c), 2) for c in weak.confidence[0, 0]]
    [1.0, 0.0, 0.05, 1.0]
    """
    confidence = np.tanh(np.abs(decision, dtype=np.float32) / np.float32(2 * width))
    return WeakLabel((decision > 0).astype(np.uint8), np.asarray(confidence, np.float32))


def from_probabilities(probabilities: Float32) -> WeakLabel:
    """Return the most likely class of each voxel, and its lead over the second one as confidence.

    Parameters
    ----------
    probabilities : ndarray of float32, (K + 1, z, y, x)
        Background first.

    Examples
    --------
    Three voxels of background and two classes:

    >>> probabilities = np.array([[0.75, 0.25, 0.0], [0.25, 0.5, 0.5], [0.0, 0.25, 0.5]], np.float32)
    >>> weak = from_probabilities(probabilities.reshape(3, 1, 1, 3))
    >>> weak.labels.tolist(), weak.confidence.tolist()
    ([[[0, 1, 1]]], [[[0.5, 0.25, 0.0]]])
    """
    labels = most_likely(probabilities)
    second, first = np.sort(probabilities, axis=0)[-2:]
    return WeakLabel(labels, np.clip(first - second, 0, 1).astype(np.float32))


def empty_label(shape_zyx: tuple[int, ...]) -> WeakLabel:
    """Return the weak label of an image without structure: background, confidence 0."""
    return WeakLabel(np.zeros(shape_zyx, np.uint8), np.zeros(shape_zyx, np.float32))


def label_box(
    labeller: WeakLabeller,
    array: Array,
    box: Box,
    normalisation: Normalisation,
    spacing_um_zyx: Spacing,
    *,
    block_zyx: ZYX = BLOCK_ZYX,
    progress: Callable[[], None] | None = None,
) -> WeakLabel:
    """Label a box of a volume block by block, each read with the labeller's margin.

    Parameters
    ----------
    labeller : WeakLabeller
        What labels.
    array : zarr.Array or ndarray
        The volume, ``czyx``; beyond its border it is mirrored.
    box : Box
        Inside the volume.
    normalisation : Normalisation
        The volume's.
    spacing_um_zyx : tuple of float
        Its voxel size in micrometre.
    block_zyx : tuple of int
        Shape of a block without its margin.
    progress : callable, optional
        Called after each block.
    """
    margin = labeller.margin_zyx(spacing_um_zyx)
    result = empty_label(box.shape_zyx)
    for block in partition(box.shape_zyx, block_zyx):
        start = zyx(a + b for a, b in zip(box.offset_zyx, block.offset_zyx, strict=True))
        image = normalise(read_box(array, Box(start, block.shape_zyx).expand(margin)), normalisation)
        weak = labeller.label(image, spacing_um_zyx)
        inner = tuple(slice(m, m + n) for m, n in zip(margin, block.shape_zyx, strict=True))
        result.labels[block.slices] = weak.labels[inner]
        result.confidence[block.slices] = weak.confidence[inner]
        if progress is not None:
            progress()
    return result


def label_box_objects(
    labeller: ObjectLabeller, array: Array, box: Box, normalisation: Normalisation, spacing_um_zyx: Spacing
) -> tuple[WeakLabel, Numbers]:
    """Label a box of a volume and number its objects, read at once with the labeller's margin.

    Parameters
    ----------
    labeller, array, box, normalisation, spacing_um_zyx
        As of `label_box`.

    Returns
    -------
    WeakLabel, ndarray of uint32, zyx
        Objects are numbered 1…N in the order of their first voxels in the box.
    """
    margin = labeller.margin_zyx(spacing_um_zyx)
    image = normalise(read_box(array, box.expand(margin)), normalisation)
    weak, numbers = labeller.label_objects(image, spacing_um_zyx)
    inner = tuple(slice(m, m + n) for m, n in zip(margin, box.shape_zyx, strict=True))
    return WeakLabel(weak.labels[inner].copy(), weak.confidence[inner].copy()), renumber_by_place(numbers[inner])


def renumber_by_place(numbers: npt.NDArray[np.integer]) -> Numbers:
    """Return objects numbered 1…N in the order of their first voxels; 0 stays.

    Examples
    --------
    >>> renumber_by_place(np.array([[[0, 7, 7, 3, 0, 7]]])).tolist()
    [[[0, 1, 1, 2, 0, 1]]]
    """
    found, first, index = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(np.where(found == 0, -1, first))
    new = np.zeros(len(found), np.uint32)
    new[order] = np.arange(len(found), dtype=np.uint32) + np.uint32(0 not in found)
    return new[index].reshape(numbers.shape)
