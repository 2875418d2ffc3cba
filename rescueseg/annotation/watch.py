"""A folder of leased patches: a mask that any tool saves there is handed in, and the next patch appears."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rescueseg.annotation.client import AnnotationClient
from rescueseg.annotation.formats import format_of, read_labels
from rescueseg.annotation.formats.base import Frame, PatchFiles, PatchFormat, relabel
from rescueseg.annotation.formats.handout import lease_of, write_patch
from rescueseg.errors import LabelError, LabelWarningsError, LeaseExpiredError, QueueError, RescuesegError, ServiceError
from rescueseg.queue.records import Lease

DONE_FOLDER = "done"
"""Subfolder for masks that were handed in."""
ASK_SECONDS = 10.0
"""Between two requests for a patch while the queue is empty."""
_IDLE_BEAT = 1e-3
"""Seconds of work reported by a heartbeat that only keeps the lease: watching a folder is no work."""
_MOST_UNFIT = 16
"""After so many patches that the folder's format cannot hold, no further patch is requested."""
_TEMPORARY = (".", "~", "#")

Mark = tuple[int, int, int]
"""Number of files, their total size in bytes, and the latest time of a change in ns."""


@dataclass
class _LeasedPatch:
    lease: Lease
    frame: Frame
    files: PatchFiles
    beat_at: float
    """Of the last heartbeat, in seconds of the monotonic clock."""
    has_work: bool = False
    """Whether the person has saved a mask of it, which may have been refused."""


class Watcher:
    """Keeps a folder filled with leased patches, and hands in what is saved there.

    Parameters
    ----------
    client : AnnotationClient
        The annotator's client.
    folder : Path
        The folder; made if it is not there. Patches that a killed watcher left in it are taken up again.
    kind : PatchFormat
        Format in which patches are written; masks may come back in any.
    count : int
        Number of patches in the folder at once.
    say : callable
        Called with lines of text for the person.
    stable_seconds : float
        Seconds for which a file must not change before it counts as saved.
    """

    def __init__(
        self,
        client: AnnotationClient,
        folder: Path,
        kind: PatchFormat,
        count: int = 3,
        say: Callable[[str], None] = print,
        *,
        stable_seconds: float = 2.0,
    ) -> None:
        self.client, self.folder, self.kind, self.count = client, folder, kind, count
        self.say, self.stable_seconds = say, stable_seconds
        self._patches: dict[str, _LeasedPatch] = {}
        self._marks: dict[Path, Mark] = {}
        self._changes: dict[Path, tuple[Mark, float]] = {}
        self._warning_digests: dict[str, str] = {}
        self._unfit_tickets: set[str] = set()
        self._info = client.info()
        self._requested_at = -ASK_SECONDS
        self._submitted_at = time.monotonic()
        self._is_offline = False
        folder.mkdir(parents=True, exist_ok=True)
        for lease in client.leases():
            if (folder / f"{lease.ticket_id}.json").exists() and not self._write_patch(lease):
                client.release(lease.lease_id)

    @property
    def tickets(self) -> list[str]:
        """Ids of the patches that lie in the folder."""
        return list(self._patches)

    def step(self) -> None:
        """Check the folder once: extend the leases, hand in saved masks, take further patches."""
        try:
            for patch in list(self._patches.values()):
                if time.monotonic() - patch.beat_at > self._info.lease_seconds / 2:
                    self._heartbeat(patch)
            for path in self._saved_files():
                self._hand_in(path)
            self._fill()
            self._is_offline = False
        except ServiceError as error:
            if not self._is_offline:
                self.say(f"{error}; trying again")
            self._is_offline = True

    def close(self) -> None:
        """Release the patches without work and remove their files; the others stay leased."""
        for patch in list(self._patches.values()):
            if self._has_work(patch):
                self.say(f"{patch.lease.ticket_id}: kept, it holds work that is not handed in")
                continue
            try:
                self.client.release(patch.lease.lease_id)
            except (QueueError, ServiceError) as error:
                self.say(str(error))
            self._remove(patch, None)

    # patches ------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        if len(self._patches) >= self.count or time.monotonic() - self._requested_at < ASK_SECONDS:
            return
        unfit: list[Lease] = []  # released only at the end: else they would come back as the next ones
        try:
            while len(self._patches) < self.count:
                lease = self.client.next(another=True) if len(unfit) < _MOST_UNFIT else None
                if lease is None:
                    self._requested_at = time.monotonic()
                    if not self._patches:
                        self.say("Nothing to annotate now.")
                    return
                if not self._write_patch(lease):
                    unfit.append(lease)
        finally:
            for lease in unfit:
                self.client.release(lease.lease_id)

    def _write_patch(self, lease: Lease) -> bool:
        """Write a patch into the folder; a mask in the folder that differs from the first mask counts as saved.

        Return whether it worked; a patch that cannot be loaded, or that the format cannot hold, is reported once.
        """
        try:
            view = self.client.view(lease.lease_id)
            frame = Frame.of(view, self._info)
            files = write_patch(self.kind, self.folder, lease, view, self._info)
        except ServiceError:
            raise
        except RescuesegError as error:
            if lease.ticket_id not in self._unfit_tickets:
                self.say(f"{lease.ticket_id}: left to others, {error}")
            self._unfit_tickets.add(lease.ticket_id)
            return False
        self._patches[lease.ticket_id] = _LeasedPatch(lease, frame, files, time.monotonic())
        for path in files.everything:
            if path != files.labels or not files.is_resumed or _is_unchanged(path, frame, relabel(view.start).digest):
                self._marks[path] = _mark(path)
        self.say(f"{lease.ticket_id}: {files.labels}" + (f" ({lease.comment})" if lease.comment else ""))
        return True

    def _heartbeat(self, patch: _LeasedPatch) -> None:
        patch.beat_at = time.monotonic()
        try:
            self.client.heartbeat(patch.lease.lease_id, _IDLE_BEAT)
        except QueueError as error:
            if self._renew(patch):
                return
            self.say(f"{error}")
            if self._has_work(patch):
                self._patches.pop(patch.lease.ticket_id, None)
            else:
                self._remove(patch, None)

    def _has_work(self, patch: _LeasedPatch) -> bool:
        """Tell whether a patch has a saved mask that is not handed in."""
        masks = [path for path in (patch.files.labels, patch.files.ignore) if path is not None and path.exists()]
        return patch.has_work or any(self._marks.get(path) != _mark(path) for path in masks)

    def _renew(self, patch: _LeasedPatch) -> bool:
        """Lease a patch again after its lease ran out, unless somebody else has it; return whether it worked."""
        try:
            lease = self.client.next(ticket_id=patch.lease.ticket_id)
        except QueueError:
            return False
        if lease is None:
            return False
        patch.lease, patch.beat_at = lease, time.monotonic()
        return True

    def _remove(self, patch: _LeasedPatch, keep: Path | None) -> None:
        """Remove a patch and its files, but for the file `keep`."""
        self._patches.pop(patch.lease.ticket_id, None)
        for path in patch.files.everything:
            self._marks.pop(path, None)
            if path == keep:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # masks --------------------------------------------------------------------------------------------------------

    def _saved_files(self) -> list[Path]:
        """Return the label files that changed, but not in the last `stable_seconds`."""
        ignore_files = {patch.files.ignore for patch in self._patches.values()}
        stable: list[Path] = []
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(_TEMPORARY) or format_of(path) is None or path in ignore_files:
                continue
            try:
                mark = _mark(path)
            except OSError:  # gone again
                continue
            before, since = self._changes.get(path, (None, 0.0))
            if self._marks.get(path) == mark:
                self._changes.pop(path, None)
            elif before != mark:
                self._changes[path] = (mark, time.monotonic())
            elif time.monotonic() - since >= self.stable_seconds:
                stable.append(path)
        return stable

    def _hand_in(self, path: Path) -> None:
        """Hand in a mask; what is wrong with it is reported, and written beside it."""
        mark = _mark(path)
        error_file = path.with_name(f"{path.name}.error.txt")
        try:
            patch = self._patches[lease_of(path, [patch.lease for patch in self._patches.values()]).ticket_id]
            patch.has_work = True
            self._submit(patch, path)
        except (LabelError, QueueError) as error:
            again = ". Save it once more to hand it in all the same" if isinstance(error, LabelWarningsError) else ""
            self.say(f"{path.name}: {error}{again}")
            error_file.write_text(f"{error}{again}\n", encoding="utf-8")
            self._marks[path] = mark
            return
        error_file.unlink(missing_ok=True)
        target = self.folder / DONE_FOLDER / path.name
        target.parent.mkdir(exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
        self._remove(patch, path)
        self._requested_at = -ASK_SECONDS

    def _submit(self, patch: _LeasedPatch, path: Path) -> None:
        labels = read_labels(path, patch.frame)
        ticket = patch.lease.ticket_id
        seconds = max(time.monotonic() - self._submitted_at, _IDLE_BEAT)
        override = self._warning_digests.get(ticket) == labels.digest
        for attempt in (1, 2):
            try:
                annotation = self.client.submit(
                    patch.lease.lease_id, labels, "watch", active_seconds=seconds, override=override
                )
                break
            except LabelWarningsError:
                self._warning_digests[ticket] = labels.digest
                raise
            except LeaseExpiredError:
                if attempt == 2 or not self._renew(patch):
                    raise
        self._submitted_at = time.monotonic()
        self.say(
            f"{ticket}: version {annotation.version} {annotation.verdict}, {annotation.voxels_corrected} voxels corrected"
        )


def _is_unchanged(path: Path, frame: Frame, digest: str) -> bool:
    """Tell whether a mask is the first mask, by its digest."""
    try:
        return read_labels(path, frame).digest == digest
    except LabelError:
        return False


def _mark(path: Path) -> Mark:
    """Return a value that changes when a file, or any file in a folder, is written."""
    parts = [p.stat() for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path.stat()]
    return len(parts), sum(s.st_size for s in parts), max((s.st_mtime_ns for s in parts), default=0)
