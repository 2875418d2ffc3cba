"""What an annotator's window does at a desk, without the window: take, keep, hand in, and count the time.

Methods block: the window calls them from threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.feature import peak_local_max

from rescueseg.annotation.client import Desk, DeskInfo, Filters, LabelWarning, PatchView
from rescueseg.errors import LeaseExpiredError, QueueError, RescuesegError
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.labels import PatchLabels
from rescueseg.napari_plugin.drafts import Drafts
from rescueseg.queue.records import AnnotationRecord, Lease

TOOL = "napari"
IDLE_AFTER = 60.0
"""Seconds without mouse, key or view change that still count as work: looking is work, lunch is not."""
SPOTS = 20

Clock = Callable[[], float]


def top_spots(score: npt.NDArray[np.float32], spacing_um_zyx: Spacing, count: int = SPOTS) -> list[ZYX]:
    """Return where a score peaks, highest first, so that one can go from one spot to the next.

    Parameters
    ----------
    score : ndarray of float, zyx
        Smoothed over two of the smallest voxel lengths, so that a single noisy voxel is no spot.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    count : int
        At most so many.

    Returns
    -------
    list of tuple of int
        Voxels of `score`; empty where it is nowhere above zero.
    """
    if not score.any():
        return []
    sigma = [2 * min(spacing_um_zyx) / step for step in spacing_um_zyx]
    smooth = ndimage.gaussian_filter(score.astype(np.float32), sigma)
    peaks = peak_local_max(smooth, min_distance=3, exclude_border=False)
    if not len(peaks):  # the same everywhere
        return [zyx(int(i) for i in np.unravel_index(int(smooth.argmax()), smooth.shape))]
    order = np.argsort(-smooth[tuple(peaks.T)], kind="stable")
    return [zyx(peak) for peak in peaks[order[:count]]]


class ActiveClock:
    """Seconds of work: a pause counts up to `IDLE_AFTER`.

    Parameters
    ----------
    now : callable
        Seconds of a clock that only goes forward.
    """

    def __init__(self, now: Clock = time.monotonic) -> None:
        self._now, self._last = now, now()
        self._untaken, self._taken = 0.0, 0.0

    def restart(self, already: float = 0.0) -> None:
        """Begin anew, with seconds that count in `total` and were sent before."""
        self._last, self._untaken, self._taken = self._now(), 0.0, already

    def touch(self) -> None:
        """Say that somebody is at work."""
        now = self._now()
        self._untaken += min(now - self._last, IDLE_AFTER)
        self._last = now

    def take(self) -> float:
        """Return the seconds since the last `take`."""
        seconds, self._untaken = self._untaken, 0.0
        self._taken += seconds
        return seconds

    def give_back(self, seconds: float) -> None:
        """Count seconds that could not be sent once more."""
        self._untaken += seconds
        self._taken -= seconds

    @property
    def total(self) -> float:
        """Seconds since `restart`."""
        return self._taken + self._untaken


@dataclass(frozen=True, eq=False)
class Work:
    """A patch on the desk, and the drawing to go on with."""

    lease: Lease
    view: PatchView
    drawn: PatchLabels
    restored: bool
    """Whether the drawing was found on this machine, from a window that did not hand it in."""
    spots: list[ZYX] = field(default_factory=list)
    """Most uncertain voxels of the patch, in voxels of the volume."""


class Session:
    """One person at a desk, with at most one patch before them.

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
        self.desk, self.drafts, self._now = desk, drafts, now
        self.active = ActiveClock(now)
        self.lease: Lease | None = None
        self.work: Work | None = None
        self._info: DeskInfo | None = None
        self._ends = 0.0
        self._kept: tuple[Work, PatchLabels] | None = None
        self._lock = threading.RLock()

    @property
    def info(self) -> DeskInfo:
        """What the campaign is, as of the last `refresh`."""
        return self._info or self.refresh()

    def refresh(self) -> DeskInfo:
        """Ask the desk again: counts change."""
        self._info = self.desk.info()
        return self._info

    def seconds_left(self) -> float:
        """Return the seconds until the lease runs out; counted here, so that the clocks of two machines may differ."""
        return max(0.0, self._ends - self._now())

    def take(self, filters: Filters | None = None, ticket_id: str | None = None) -> Work | None:
        """Take the next patch, or go on with the one held; None when there is nothing to do.

        When the patch cannot be loaded, `lease` names it: it can be skipped or released, and the next one taken.
        """
        with self._lock:
            self.work = None
            self.lease = lease = self.desk.next(filters, ticket_id)
            if lease is None:
                return None
            self._prolong()
        view = self.desk.view(lease.lease_id)
        drawn = self.drafts.load(lease.ticket_id, view.start)
        spots: list[ZYX] = []
        if view.uncertainty is not None:
            found = top_spots(view.uncertainty[view.inside.slices], view.spacing_um_zyx)
            spots = [zyx(np.add(spot, view.ticket.box.offset_zyx)) for spot in found]
        self.work = work = Work(lease, view, drawn or view.start, drawn is not None, spots)
        self._kept = work, work.drawn
        self.active.restart(lease.active_seconds)
        return work

    def _prolong(self, active_seconds: float = 0.0) -> None:
        assert self.lease is not None
        begun = self._now()
        self.lease = self.desk.heartbeat(self.lease.lease_id, active_seconds)
        self._ends = begun + self.info.lease_seconds

    def beat(self) -> None:
        """Send the seconds worked since the last beat, which keeps the lease; nothing when nobody was at work.

        Raises
        ------
        LeaseExpiredError
            If the lease ran out and somebody else has the patch now; the drawing stays on this machine.
        """
        with self._lock:
            seconds = self.active.take()
            if self.lease is None or not seconds:
                return
            try:
                self._prolong(seconds)
            except LeaseExpiredError:
                self.active.give_back(seconds)
                self.renew()
            except RescuesegError:
                self.active.give_back(seconds)
                raise

    def renew(self) -> Lease:
        """Lease the patch again after the lease ran out; the drawing stays.

        Raises
        ------
        LeaseExpiredError
            If it cannot be had any more, or is not as it was.
        """
        if self.work is None:
            raise QueueError("there is no patch on the desk", todo="Take the next one")
        ticket_id = self.work.lease.ticket_id
        try:
            lease = self.desk.next(ticket_id=ticket_id)
        except QueueError:
            lease = None
        if lease is not None and lease.start != self.work.lease.start:
            self.desk.release(lease.lease_id)
            lease = None
        if lease is None:
            raise LeaseExpiredError(
                "the lease ran out, and somebody else has worked on the patch",
                where=f"ticket {ticket_id}",
                todo="Take the next patch; your drawing stays on this machine",
            )
        self.lease, self.work = lease, replace(self.work, lease=lease)
        self._prolong()
        return lease

    def keep(self, drawn: PatchLabels) -> bool:
        """Write the drawing to this machine when it changed; return whether it did.

        `drawn` is kept by reference until the next call: hand in a copy.
        """
        work, kept = self.work, self._kept
        if work is None or (kept is not None and kept[0] is work and kept[1] == drawn):
            return False
        self.drafts.save(work.lease.ticket_id, work.view.start, drawn)
        self._kept = work, drawn
        return True

    def hand_in(self, drawn: PatchLabels, *, override: bool = False) -> AnnotationRecord | list[LabelWarning]:
        """Hand in the drawing; return what is odd about it instead, unless `override`.

        The drawing is kept on this machine until the desk has it.
        """
        self.keep(drawn)
        with self._lock:
            if self.work is None or self.lease is None:
                raise QueueError("there is no patch on the desk", todo="Take the next one")
            if not override and (warnings := self.desk.check(self.lease.lease_id, drawn)):
                return warnings
            seconds = self.active.take()
            try:
                done = self._submit(drawn, seconds, override)
            except RescuesegError:
                self.active.give_back(seconds)
                raise
            self._leave()
            return done

    def _submit(self, drawn: PatchLabels, seconds: float, override: bool) -> AnnotationRecord:
        assert self.lease is not None
        try:
            return self.desk.submit(self.lease.lease_id, drawn, TOOL, active_seconds=seconds, override=override)
        except LeaseExpiredError:
            lease = self.renew()
        return self.desk.submit(lease.lease_id, drawn, TOOL, active_seconds=seconds, override=override)

    def skip(self, reason: str) -> None:
        """Say that nobody can annotate the patch; its drawing is forgotten."""
        with self._lock:
            if self.lease is not None:
                self.desk.skip(self.lease.lease_id, reason)
                self._leave()

    def release(self) -> None:
        """Give the patch back untouched; its drawing is forgotten."""
        with self._lock:
            if self.lease is not None:
                self.desk.release(self.lease.lease_id)
                self._leave()

    def _leave(self) -> None:
        assert self.lease is not None
        ticket_id = self.lease.ticket_id
        self.lease, self.work = None, None
        self.drafts.remove(ticket_id)
