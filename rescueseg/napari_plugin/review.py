"""What a reviewer's window does at a desk, without the window: two versions side by side, and a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import Desk, PatchView
from rescueseg.errors import QueueError
from rescueseg.geometry import ZYX, zyx
from rescueseg.labels import PatchLabels
from rescueseg.napari_plugin.drafts import Drafts
from rescueseg.napari_plugin.session import TOOL, ActiveClock, Clock, top_spots
from rescueseg.queue.records import AnnotationRecord


def choose_pair(versions: Sequence[AnnotationRecord]) -> list[AnnotationRecord]:
    """Return the versions to look at first, oldest first: the latest two that wait, else the last two."""
    waiting = [record for record in versions if record.verdict == "submitted"]
    return list((waiting if len(waiting) > 1 else versions)[-2:])


def disagreement(a: PatchLabels, b: PatchLabels) -> npt.NDArray[np.bool_]:
    """Return where two people say different things; where one did not look, nobody disagrees.

    Objects carry numbers of their own in each version: there it is their outlines that are compared, by whether a voxel
    and its next neighbour along each axis belong together.
    """
    looked = ~(a.ignore | b.ignore)
    differs = a.classes != b.classes
    if a.instances is not None and b.instances is not None:
        for axis in range(3):
            if a.classes.shape[axis] > 1:
                cut_a, cut_b = (np.diff(numbers, axis=axis) != 0 for numbers in (a.instances, b.instances))
                here, there = [slice(None)] * 3, [slice(None)] * 3
                here[axis], there[axis] = slice(0, -1), slice(1, None)
                differs[tuple(here)] |= (cut_a != cut_b) & looked[tuple(there)]
    return np.asarray(differs & looked)


@dataclass(frozen=True, eq=False)
class ReviewWork:
    """A ticket before a reviewer."""

    view: PatchView
    versions: tuple[AnnotationRecord, ...]
    pair: tuple[AnnotationRecord, ...]
    """One or two versions, the older first."""
    labels: tuple[PatchLabels, ...]
    """Of `pair`."""
    differs: npt.NDArray[np.bool_] | None
    """Where the two disagree; None with one."""
    spots: list[ZYX]
    """Middle of the largest disagreements, in voxels of the volume."""
    fix: PatchLabels | None
    """A correction that was begun and not handed in."""


class Review:
    """A reviewer at a desk.

    Parameters
    ----------
    desk : Desk
        Where the campaign lies.
    drafts : Drafts
        Drawings on this machine.
    now : callable
        Seconds of a clock that only goes forward.
    """

    def __init__(self, desk: Desk, drafts: Drafts, now: Clock = time.monotonic) -> None:
        self.desk, self.drafts = desk, drafts
        self.work: ReviewWork | None = None
        self.active = ActiveClock(now)
        self._kept: PatchLabels | None = None

    def open(self, ticket_id: str) -> ReviewWork:
        """Lay a submitted ticket on the desk."""
        self.work, self._kept = None, None
        versions = tuple(self.desk.versions(ticket_id))
        view = self.desk.review_view(ticket_id)
        pair = tuple(choose_pair(versions))
        labels = tuple(self.desk.version_labels(ticket_id, record.version) for record in pair)
        differs = disagreement(*labels) if len(labels) == 2 else None
        spots: list[ZYX] = []
        if differs is not None:
            found = top_spots(differs.astype(np.float32), view.spacing_um_zyx)
            spots = [zyx(np.add(spot, view.ticket.box.offset_zyx)) for spot in found]
        fix = self.drafts.load(self._draft(ticket_id), labels[-1])
        self.work = ReviewWork(view, versions, pair, labels, differs, spots, fix)
        self._kept = fix
        self.active.restart()
        return self.work

    @staticmethod
    def _draft(ticket_id: str) -> str:
        return f"{ticket_id}.fix"

    @property
    def ticket_id(self) -> str:
        """The ticket on the desk.

        Raises
        ------
        QueueError
            If there is none.
        """
        if self.work is None:
            raise QueueError("there is no ticket on the desk", todo="Open one of those that wait")
        return self.work.view.ticket.ticket_id

    def keep(self, drawn: PatchLabels) -> bool:
        """Write a correction to this machine when it changed; return whether it did."""
        if self.work is None or drawn == self._kept:
            return False
        self.drafts.save(self._draft(self.ticket_id), self.work.labels[-1], drawn)
        self._kept = drawn
        return True

    def accept(self, version: int) -> AnnotationRecord:
        """Accept one version."""
        done = self.desk.accept(self.ticket_id, version)
        self._leave()
        return done

    def reject(self, comment: str) -> None:
        """Send the ticket back."""
        self.desk.reject(self.ticket_id, comment)
        self._leave()

    def fix(self, drawn: PatchLabels) -> AnnotationRecord:
        """Hand in and accept a correction; it is kept on this machine until the desk has it."""
        self.keep(drawn)
        done = self.desk.fix(self.ticket_id, drawn, TOOL, active_seconds=self.active.total)
        self._leave()
        return done

    def _leave(self) -> None:
        name = self._draft(self.ticket_id)
        self.work, self._kept = None, None
        self.drafts.remove(name)
