"""An annotator's work without the window: take a patch, keep the drawing, hand it in, and count the time.

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

from rescueseg.annotation.client import AnnotationClient, CampaignInfo, Filters, LabelWarning, PatchView
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
    """Return the peaks of a score, highest first, so that a person can go from one spot to the next.

    Parameters
    ----------
    score : ndarray of float, zyx
        Smoothed over two of the smallest voxel lengths, so that a single noisy voxel is no spot.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.
    count : int
        Most peaks to return.

    Returns
    -------
    list of tuple of int
        Voxels of `score`; empty where it is nowhere above zero.

    Examples
    --------
    >>> score = np.zeros((9, 9, 9), np.float32)
    >>> score[4, 4, 6] = 1.0
    >>> top_spots(score, (1.0, 1.0, 1.0))
    [(4, 4, 6)]
    """
    if not score.any():
        return []
    sigma = [2 * min(spacing_um_zyx) / step for step in spacing_um_zyx]
    smooth = ndimage.gaussian_filter(score.astype(np.float32), sigma)
    peaks = peak_local_max(smooth, min_distance=3, exclude_border=False)
    if not len(peaks):  # the score is constant
        return [zyx(int(i) for i in np.unravel_index(int(smooth.argmax()), smooth.shape))]
    order = np.argsort(-smooth[tuple(peaks.T)], kind="stable")
    return [zyx(peak) for peak in peaks[order[:count]]]


class ActiveClock:
    """Seconds of work; of each pause at most `IDLE_AFTER` seconds count.

    Parameters
    ----------
    now : callable
        Seconds of a clock that only goes forward.

    Examples
    --------
    Two actions 10 s apart, then one after an hour:

    >>> times = iter([0.0, 10.0, 3610.0])
    >>> clock = ActiveClock(lambda: next(times))
    >>> clock.touch()
    >>> clock.touch()
    >>> clock.total
    70.0
    """

    def __init__(self, now: Clock = time.monotonic) -> None:
        self._now, self._last = now, now()
        self._unsent, self._sent = 0.0, 0.0

    def restart(self, already: float = 0.0) -> None:
        """Start again from zero, with `already` seconds that were sent before and count in `total`."""
        self._last, self._unsent, self._sent = self._now(), 0.0, already

    def touch(self) -> None:
        """Record a sign of activity."""
        now = self._now()
        self._unsent += min(now - self._last, IDLE_AFTER)
        self._last = now

    def take(self) -> float:
        """Return the seconds since the last `take`."""
        seconds, self._unsent = self._unsent, 0.0
        self._sent += seconds
        return seconds

    def give_back(self, seconds: float) -> None:
        """Add seconds again that could not be sent."""
        self._unsent += seconds
        self._sent -= seconds

    @property
    def total(self) -> float:
        """Seconds since `restart`."""
        return self._sent + self._unsent


@dataclass(frozen=True, eq=False)
class Work:
    """An open patch, and the drawing to go on with."""

    lease: Lease
    view: PatchView
    labels: PatchLabels
    is_restored: bool
    """Whether the drawing comes from a draft of a window that did not hand it in."""
    spots: list[ZYX] = field(default_factory=list)
    """Most uncertain voxels of the patch, in voxels of the volume."""


class Session:
    """One annotator's session, with at most one open patch.

    Parameters
    ----------
    client : AnnotationClient
        The annotator's client of the campaign.
    drafts : Drafts
        Drafts on this machine.
    now : callable
        Seconds of a clock that only goes forward.
    """

    def __init__(self, client: AnnotationClient, drafts: Drafts, now: Clock = time.monotonic) -> None:
        self.client, self.drafts, self._now = client, drafts, now
        self.active = ActiveClock(now)
        self.lease: Lease | None = None
        self.work: Work | None = None
        self._info: CampaignInfo | None = None
        self._expires_at = 0.0
        self._last_draft: tuple[Work, PatchLabels] | None = None
        self._lock = threading.RLock()

    @property
    def info(self) -> CampaignInfo:
        """What the campaign is, as of the last `refresh`."""
        return self._info or self.refresh()

    def refresh(self) -> CampaignInfo:
        """Fetch the campaign's state again: counts change."""
        self._info = self.client.info()
        return self._info

    def seconds_left(self) -> float:
        """Return the seconds until the lease runs out; counted here, so that the clocks of two machines may differ."""
        return max(0.0, self._expires_at - self._now())

    def take(self, filters: Filters | None = None, ticket_id: str | None = None) -> Work | None:
        """Take the next patch, or go on with the leased one; None when there is nothing to annotate.

        When the patch cannot be loaded, `lease` names it: it can be skipped or released, and the next one taken.
        """
        with self._lock:
            self.work = None
            self.lease = lease = self.client.next(filters, ticket_id)
            if lease is None:
                return None
            self._prolong()
        view = self.client.view(lease.lease_id)
        draft = self.drafts.load(lease.ticket_id, view.start)
        spots: list[ZYX] = []
        if view.uncertainty is not None:
            peaks = top_spots(view.uncertainty[view.inside.slices], view.spacing_um_zyx)
            spots = [zyx(np.add(spot, view.ticket.box.offset_zyx)) for spot in peaks]
        self.work = work = Work(lease, view, draft or view.start, draft is not None, spots)
        self._last_draft = work, work.labels
        self.active.restart(lease.active_seconds)
        return work

    def _prolong(self, active_seconds: float = 0.0) -> None:
        assert self.lease is not None
        start = self._now()
        self.lease = self.client.heartbeat(self.lease.lease_id, active_seconds)
        self._expires_at = start + self.info.lease_seconds

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
            raise QueueError("no patch is open", todo="Take the next one")
        ticket_id = self.work.lease.ticket_id
        try:
            lease = self.client.next(ticket_id=ticket_id)
        except QueueError:
            lease = None
        if lease is not None and lease.start != self.work.lease.start:
            self.client.release(lease.lease_id)
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

    def keep(self, labels: PatchLabels) -> bool:
        """Write the drawing to this machine when it changed; return whether it did.

        `labels` is kept by reference until the next call: hand in a copy.
        """
        work, last = self.work, self._last_draft
        if work is None or (last is not None and last[0] is work and last[1] == labels):
            return False
        self.drafts.save(work.lease.ticket_id, work.view.start, labels)
        self._last_draft = work, labels
        return True

    def hand_in(self, labels: PatchLabels, *, override: bool = False) -> AnnotationRecord | list[LabelWarning]:
        """Hand in the drawing; return warnings about it instead, unless `override`.

        The drawing stays on this machine until the server or campaign has it.
        """
        self.keep(labels)
        with self._lock:
            if self.work is None or self.lease is None:
                raise QueueError("no patch is open", todo="Take the next one")
            if not override and (warnings := self.client.check(self.lease.lease_id, labels)):
                return warnings
            seconds = self.active.take()
            try:
                annotation = self._submit(labels, seconds, override)
            except RescuesegError:
                self.active.give_back(seconds)
                raise
            self._close()
            return annotation

    def _submit(self, labels: PatchLabels, seconds: float, override: bool) -> AnnotationRecord:
        assert self.lease is not None
        try:
            return self.client.submit(self.lease.lease_id, labels, TOOL, active_seconds=seconds, override=override)
        except LeaseExpiredError:
            lease = self.renew()
        return self.client.submit(lease.lease_id, labels, TOOL, active_seconds=seconds, override=override)

    def skip(self, reason: str) -> None:
        """Say that nobody can annotate the patch; its drawing is dropped."""
        with self._lock:
            if self.lease is not None:
                self.client.skip(self.lease.lease_id, reason)
                self._close()

    def release(self) -> None:
        """Give the patch back untouched; its drawing is dropped."""
        with self._lock:
            if self.lease is not None:
                self.client.release(self.lease.lease_id)
                self._close()

    def _close(self) -> None:
        assert self.lease is not None
        ticket_id = self.lease.ticket_id
        self.lease, self.work = None, None
        self.drafts.remove(ticket_id)
