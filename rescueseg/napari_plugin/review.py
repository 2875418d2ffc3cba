"""A reviewer's work without the window: two versions side by side, and a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import AnnotationClient, PatchView
from rescueseg.errors import QueueError
from rescueseg.geometry import ZYX, zyx
from rescueseg.labels import PatchLabels
from rescueseg.napari_plugin.drafts import Drafts
from rescueseg.napari_plugin.session import TOOL, ActiveClock, Clock, top_spots
from rescueseg.queue.records import AnnotationRecord


def choose_pair(versions: Sequence[AnnotationRecord]) -> list[AnnotationRecord]:
    """Return the versions to compare, oldest first: the latest two that wait, else the latest two."""
    waiting = [record for record in versions if record.verdict == "submitted"]
    return list((waiting if len(waiting) > 1 else versions)[-2:])


def disagreement(a: PatchLabels, b: PatchLabels) -> npt.NDArray[np.bool_]:
    """Return where two people disagree; a voxel that either did not annotate does not count.

    Numbers of objects differ from version to version, so that outlines are compared: whether a voxel and its next
    neighbour along each axis have the same number.

    Examples
    --------
    >>> first = PatchLabels(np.array([[[1, 1, 0, 255]]], np.uint8))
    >>> second = PatchLabels(np.array([[[1, 0, 0, 1]]], np.uint8))
    >>> disagreement(first, second).tolist()
    [[[False, True, False, False]]]
    """
    annotated = ~(a.ignore | b.ignore)
    differs = a.classes != b.classes
    if a.instances is not None and b.instances is not None:
        for axis in range(3):
            if a.classes.shape[axis] > 1:
                cut_a, cut_b = (np.diff(numbers, axis=axis) != 0 for numbers in (a.instances, b.instances))
                here, there = [slice(None)] * 3, [slice(None)] * 3
                here[axis], there[axis] = slice(0, -1), slice(1, None)
                differs[tuple(here)] |= (cut_a != cut_b) & annotated[tuple(there)]
    return np.asarray(differs & annotated)


@dataclass(frozen=True, eq=False)
class ReviewWork:
    """A ticket that a reviewer has opened."""

    view: PatchView
    versions: tuple[AnnotationRecord, ...]
    pair: tuple[AnnotationRecord, ...]
    """The versions to compare, one or two, the older first."""
    labels: tuple[PatchLabels, ...]
    """Of `pair`."""
    differs: npt.NDArray[np.bool_] | None
    """Where the two versions disagree; None with one version."""
    spots: list[ZYX]
    """Middle of the largest disagreements, in voxels of the volume."""
    fix: PatchLabels | None
    """A correction from before that was not handed in."""


class Review:
    """A reviewer's session.

    Parameters
    ----------
    client : AnnotationClient
        The reviewer's client of the campaign.
    drafts : Drafts
        Drafts on this machine.
    now : callable
        Seconds of a clock that only goes forward.
    """

    def __init__(self, client: AnnotationClient, drafts: Drafts, now: Clock = time.monotonic) -> None:
        self.client, self.drafts = client, drafts
        self.work: ReviewWork | None = None
        self.active = ActiveClock(now)
        self._last_draft: PatchLabels | None = None

    def open(self, ticket_id: str) -> ReviewWork:
        """Open a submitted ticket."""
        self.work, self._last_draft = None, None
        versions = tuple(self.client.versions(ticket_id))
        view = self.client.review_view(ticket_id)
        pair = tuple(choose_pair(versions))
        labels = tuple(self.client.version_labels(ticket_id, record.version) for record in pair)
        differs = disagreement(*labels) if len(labels) == 2 else None
        spots: list[ZYX] = []
        if differs is not None:
            peaks = top_spots(differs.astype(np.float32), view.spacing_um_zyx)
            spots = [zyx(np.add(spot, view.ticket.box.offset_zyx)) for spot in peaks]
        fix = self.drafts.load(self._draft(ticket_id), labels[-1])
        self.work = ReviewWork(view, versions, pair, labels, differs, spots, fix)
        self._last_draft = fix
        self.active.restart()
        return self.work

    @staticmethod
    def _draft(ticket_id: str) -> str:
        return f"{ticket_id}.fix"

    @property
    def ticket_id(self) -> str:
        """The open ticket.

        Raises
        ------
        QueueError
            If there is none.
        """
        if self.work is None:
            raise QueueError("no ticket is open", todo="Open one of those that wait")
        return self.work.view.ticket.ticket_id

    def keep(self, labels: PatchLabels) -> bool:
        """Write a correction to this machine when it changed; return whether it did."""
        if self.work is None or labels == self._last_draft:
            return False
        self.drafts.save(self._draft(self.ticket_id), self.work.labels[-1], labels)
        self._last_draft = labels
        return True

    def accept(self, version: int) -> AnnotationRecord:
        """Accept one version."""
        annotation = self.client.accept(self.ticket_id, version)
        self._close()
        return annotation

    def reject(self, comment: str) -> None:
        """Send the ticket back."""
        self.client.reject(self.ticket_id, comment)
        self._close()

    def fix(self, labels: PatchLabels) -> AnnotationRecord:
        """Hand in and accept a correction; it stays on this machine until the server or campaign has it."""
        self.keep(labels)
        annotation = self.client.fix(self.ticket_id, labels, TOOL, active_seconds=self.active.total)
        self._close()
        return annotation

    def _close(self) -> None:
        name = self._draft(self.ticket_id)
        self.work, self._last_draft = None, None
        self.drafts.remove(name)
