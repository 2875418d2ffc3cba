"""An annotator that draws ground truth: it takes tickets from the queue like a person, and errs like one on request."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_files import starting_patch
from rescueseg.campaign import Campaign
from rescueseg.errors import LabelError
from rescueseg.labels import IGNORE, PatchLabels, corrected_voxels
from rescueseg.queue.records import Lease, NewTicket
from rescueseg.queue.store import QueueStore
from rescueseg.queue.submission import Work
from rescueseg.randomness import random_generator
from rescueseg.records import Record
from rescueseg.voxels.components import label_components

_DISPLACEMENT_SMOOTHNESS = 3.0

Labels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
L = TypeVar("L", Labels, Numbers)


class AnnotatorOptions(Record):
    """How the annotator differs from the truth.

    Parameters
    ----------
    jitter_voxels : float
        Typical displacement of boundaries, in voxels; neighbouring voxels move together.
    missed_objects : float
        Probability with which a connected object is not drawn at all.
    grown_voxels : int
        How far every object is drawn too large.
    smallest_voxels : int
        Connected objects of fewer voxels are overlooked.
    seconds_per_voxel : float
        Working time per voxel that differs from the mask the annotator started from.
    seconds_per_patch : float
        Working time that every patch costs.
    abandoned : float
        Probability that the first lease on a ticket is left to run out.
    """

    jitter_voxels: float = 0.0
    missed_objects: float = 0.0
    grown_voxels: int = 0
    smallest_voxels: int = 0
    seconds_per_voxel: float = 0.002
    seconds_per_patch: float = 10.0
    abandoned: float = 0.0

    def seconds(self, corrected: int) -> float:
        """Return the working time of a patch of which so many voxels were corrected.

        Examples
        --------
        >>> AnnotatorOptions().seconds(5000)
        20.0
        """
        return self.seconds_per_patch + self.seconds_per_voxel * corrected


class LabelDrawer:
    """Draws the labels of patches in a campaign whose volumes came with truth.

    What it draws depends on the campaign's seed and the ticket alone: a killed and repeated run draws the same.
    Where objects are numbered, they are those of the truth, touching or not; where the truth is of classes, the connected parts.

    Parameters
    ----------
    campaign : Campaign
        Its volumes carry ``labels/truth``.
    options : AnnotatorOptions, optional
        How it errs.
    """

    def __init__(self, campaign: Campaign, options: AnnotatorOptions | None = None) -> None:
        self.campaign = campaign
        self.options = options or AnnotatorOptions()

    def draw(self, ticket: NewTicket) -> Labels:
        """Return the classes of a ticket, uint8 zyx; see `draw_labels`."""
        return self.draw_labels(ticket).classes

    def draw_labels(self, ticket: NewTicket) -> PatchLabels:
        """Return the labels of a ticket: the truth inside its box, with the errors asked for.

        Raises
        ------
        LabelError
            If its volume came without truth.
        """
        if self.campaign.volumes.record(ticket.volume_id).truth is None:
            raise LabelError(
                "the simulated annotator needs ground truth",
                where=f"volume {ticket.volume_id}",
                todo="Import the volume with --truth",
            )
        numbered = self.campaign.config.annotation.labels == "instance"
        rng = random_generator(self.campaign.config.seed, "annotator", ticket.ticket_id)
        objects = numbered and self.campaign.volumes.record(ticket.volume_id).truth == "instance"
        truth = np.asarray(
            volumes.open_truth(self.campaign.volumes, ticket.volume_id, instances=objects)[ticket.box.slices]
        )
        if objects:
            return PatchLabels.of_instances(_renumbered(self._drawn_objects(_renumbered(truth), rng)))
        classes = self._drawn_classes(truth.astype(np.uint8), rng)
        return PatchLabels.of_components(classes) if numbered else PatchLabels(classes)

    def _drawn_objects(self, numbers: Numbers, rng: np.random.Generator) -> Numbers:
        """Return object numbers with the errors asked for; every number is one object, in one piece or not."""
        options, size = self.options, int(numbers.max(initial=0)) + 1
        if options.missed_objects:
            is_missed = np.concatenate([[False], rng.random(size - 1) < options.missed_objects])
            numbers = np.where(is_missed[numbers], 0, numbers)
        if options.jitter_voxels:
            numbers = jitter_boundaries(numbers, options.jitter_voxels, rng)
        if options.smallest_voxels:
            numbers = np.where(np.bincount(numbers.ravel())[numbers] < options.smallest_voxels, 0, numbers)
        if options.grown_voxels:
            numbers = _grown(numbers, numbers > 0, options.grown_voxels)
        return numbers

    def _drawn_classes(self, labels: Labels, rng: np.random.Generator) -> Labels:
        """Return classes with the errors asked for; a connected part is an object."""
        if self.options.missed_objects:
            labels = miss_objects(labels, self.options.missed_objects, rng)
        if self.options.jitter_voxels:
            labels = jitter_boundaries(labels, self.options.jitter_voxels, rng)
        if self.options.smallest_voxels:
            labels = overlook_small(labels, self.options.smallest_voxels)
        if self.options.grown_voxels:
            labels = grow(labels, self.options.grown_voxels)
        return labels


class SimulatedAnnotator(LabelDrawer):
    """Works through the queue of a campaign whose volumes came with truth; see `LabelDrawer`.

    Parameters
    ----------
    campaign : Campaign
        Its volumes carry ``labels/truth``.
    store : QueueStore
        The queue.
    name : str
        Annotator's name in the queue.
    options : AnnotatorOptions, optional
        How it errs.
    """

    def __init__(
        self, campaign: Campaign, store: QueueStore, name: str = "simulated", options: AnnotatorOptions | None = None
    ) -> None:
        super().__init__(campaign, options)
        self.store = store
        self.name = name

    def drain(self) -> int:
        """Annotate until no ticket is left to claim.

        Returns
        -------
        int
            Number of tickets handed in.

        Raises
        ------
        LabelError
            If a ticket lies in a volume without truth.
        """
        n_submitted = 0
        seconds = self.campaign.config.annotation.lease_minutes * 60
        while (lease := self.store.leases.claim(self.name, seconds, resume=True)) is not None:
            if self._abandons(lease):
                self.store.leases.expire(lease.expires_at + timedelta(seconds=1))
                continue
            self.annotate(lease)
            n_submitted += 1
        return n_submitted

    def annotate(self, lease: Lease) -> None:
        """Draw the labels of one leased ticket and hand them in."""
        labels = self.draw_labels(lease.ticket)
        corrected = corrected_voxels(labels, starting_patch(self.campaign.storage, lease, self.campaign.config))
        seconds = self.options.seconds(corrected)
        submit_labels(self.campaign, self.store, lease, self.name, labels, Work("simulated", seconds))

    def _abandons(self, lease: Lease) -> bool:
        if not self.options.abandoned:
            return False
        events = [entry.event for entry in self.store.views.history(lease.ticket.ticket_id)]
        if "expired" in events:
            return False
        rng = random_generator(self.campaign.config.seed, "abandon", lease.ticket_id)
        return bool(rng.random() < self.options.abandoned)


def miss_objects(labels: Labels, probability: float, rng: np.random.Generator) -> Labels:
    """Return the labels with each connected object of each class left out by chance.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Not changed.
    probability : float
        Of an object to be left out.
    rng : numpy.random.Generator
        Decides.
    """
    result = labels.copy()
    for value in np.unique(labels):
        if value in (0, IGNORE):
            continue
        objects, count = label_components(labels == value, 6)
        is_missed = np.concatenate([[False], rng.random(count) < probability])
        result[is_missed[objects]] = 0
    return result


def overlook_small(labels: Labels, voxels: int) -> Labels:
    """Return the labels without the connected objects of fewer voxels.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Not changed.
    voxels : int
        The smallest size that is drawn.

    Examples
    --------
    >>> overlook_small(np.array([[[1, 0, 1, 1, 0, 255]]], np.uint8), 2).tolist()
    [[[0, 0, 1, 1, 0, 255]]]
    """
    result = labels.copy()
    for value in np.unique(labels[(labels > 0) & (labels != IGNORE)]):
        objects, _ = label_components(labels == value, 6)
        is_small = np.bincount(objects.ravel()) < voxels
        is_small[0] = False
        result[is_small[objects]] = 0
    return result


def grow(labels: Labels, voxels: int) -> Labels:
    """Return the labels with every class grown into the background.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Not changed; what is 255 stays, and of two classes that meet the nearer one gets a voxel.
    voxels : int
        How far, in voxels along each axis and diagonal.

    Examples
    --------
    >>> grow(np.array([[[0, 0, 0, 1, 0, 255]]], np.uint8), 2).tolist()
    [[[0, 1, 1, 1, 1, 255]]]
    """
    return _grown(labels, (labels > 0) & (labels != IGNORE), voxels)


def _grown(labels: L, is_object: npt.NDArray[np.bool_], voxels: int) -> L:
    if not is_object.any():
        return labels.copy()
    distance, nearest = ndimage.distance_transform_cdt(~is_object, "chessboard", return_indices=True)
    grown: L = np.where((labels == 0) & (distance <= voxels), labels[tuple(nearest)], labels)
    return grown


def _renumbered(numbers: npt.NDArray[np.integer[Any]]) -> Numbers:
    """Return object numbers (zyx) as 1, 2, … in their order; 0 stays.

    Examples
    --------
    >>> _renumbered(np.array([[[0, 300, 7, 7]]])).tolist()
    [[[0, 2, 1, 1]]]
    """
    present, index = np.unique(numbers, return_inverse=True)
    first = 0 if present.size and present[0] == 0 else 1
    return np.asarray(index.reshape(numbers.shape) + first, np.int64)


def jitter_boundaries(labels: L, voxels: float, rng: np.random.Generator) -> L:
    """Return the labels warped by a smooth random field, so that boundaries move by about `voxels`.

    Parameters
    ----------
    labels : ndarray of uint8 or int64, shape (z, y, x)
        Not changed; values are kept, none is interpolated.
    voxels : float
        Standard deviation of the displacement along each axis, in voxels.
    rng : numpy.random.Generator
        Draws the field.
    """
    field = np.empty((3, *labels.shape), np.float32)
    for axis in range(3):
        noise = ndimage.gaussian_filter(rng.standard_normal(labels.shape, np.float32), _DISPLACEMENT_SMOOTHNESS)
        field[axis] = noise * (voxels / max(float(noise.std()), 1e-6))
    where = np.indices(labels.shape, np.float32) + field
    return np.asarray(ndimage.map_coordinates(labels, where, order=0, mode="nearest"), labels.dtype)
