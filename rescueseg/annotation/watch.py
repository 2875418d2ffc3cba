"""A folder of leased patches: a mask that any tool saves there is handed in, and the next patch appears."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rescueseg.annotation.client import Desk
from rescueseg.annotation.formats import format_of, read_labels
from rescueseg.annotation.formats.base import Frame, PatchFiles, PatchFormat, relabelled
from rescueseg.annotation.formats.handout import lease_of, write_patch
from rescueseg.errors import LabelError, LabelWarningsError, LeaseExpiredError, QueueError, RescuesegError, ServiceError
from rescueseg.queue.records import Lease

DONE = "done"
"""Folder below the watched one that takes the masks that were handed in."""
ASK_SECONDS = 10.0
"""How long an empty queue is left alone."""
_IDLE_BEAT = 1e-3
"""Seconds of work that a mere sign of life stands for: that a folder is watched is no work."""
_MOST_UNFIT = 16
"""Patches that the folder's format cannot hold, after which no further one is asked for."""
_TEMPORARY = (".", "~", "#")

Mark = tuple[int, int, int]


@dataclass
class _Held:
    lease: Lease
    frame: Frame
    files: PatchFiles
    beaten: float
    touched: bool = False


class Watcher:
    """Keeps a folder filled with leased patches, and hands in what is saved there.

    Parameters
    ----------
    desk : Desk
        Whose patches.
    folder : Path
        The folder; made if it is not there. What a killed watcher left there is taken up again.
    kind : PatchFormat
        In which format patches appear; masks may come back in any.
    count : int
        How many patches lie there at once.
    say : callable
        Takes lines for the person.
    settle : float
        Seconds for which a file must not change before it counts as saved.
    """

    def __init__(
        self,
        desk: Desk,
        folder: Path,
        kind: PatchFormat,
        count: int = 3,
        say: Callable[[str], None] = print,
        *,
        settle: float = 2.0,
    ) -> None:
        self.desk, self.folder, self.kind, self.count, self.say, self.settle = desk, folder, kind, count, say, settle
        self._held: dict[str, _Held] = {}
        self._known: dict[Path, Mark] = {}
        self._changing: dict[Path, tuple[Mark, float]] = {}
        self._doubted: dict[str, str] = {}
        self._unfit: set[str] = set()
        self._info = desk.info()
        self._asked = -ASK_SECONDS
        self._saved = time.monotonic()
        self._away = False
        folder.mkdir(parents=True, exist_ok=True)
        for lease in desk.held():
            if (folder / f"{lease.ticket_id}.json").exists() and not self._lay_out(lease):
                desk.release(lease.lease_id)

    @property
    def tickets(self) -> list[str]:
        """Ids of the patches that lie in the folder."""
        return list(self._held)

    def step(self) -> None:
        """Look at the folder once: keep the leases, hand in what was saved, fill up."""
        try:
            for held in list(self._held.values()):
                if time.monotonic() - held.beaten > self._info.lease_seconds / 2:
                    self._beat(held)
            for path in self._saved_files():
                self._hand_in(path)
            self._fill()
            self._away = False
        except ServiceError as error:
            if not self._away:
                self.say(f"{error}; trying again")
            self._away = True

    def close(self) -> None:
        """Give back the patches that nobody touched, their files with them; the others stay leased."""
        for held in list(self._held.values()):
            if self._holds_work(held):
                self.say(f"{held.lease.ticket_id}: kept, it holds work that is not handed in")
                continue
            try:
                self.desk.release(held.lease.lease_id)
            except (QueueError, ServiceError) as error:
                self.say(str(error))
            self._forget(held, None)

    # patches ------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        if len(self._held) >= self.count or time.monotonic() - self._asked < ASK_SECONDS:
            return
        unfit: list[Lease] = []  # held meanwhile: released, they would come back as the next ones
        try:
            while len(self._held) < self.count:
                lease = self.desk.next(another=True) if len(unfit) < _MOST_UNFIT else None
                if lease is None:
                    self._asked = time.monotonic()
                    if not self._held:
                        self.say("Nothing to annotate now.")
                    return
                if not self._lay_out(lease):
                    unfit.append(lease)
        finally:
            for lease in unfit:
                self.desk.release(lease.lease_id)

    def _lay_out(self, lease: Lease) -> bool:
        """Write a patch into the folder; a mask that is there already was saved if it differs from the start.

        Tell whether it worked; a patch that cannot be loaded, or that the format cannot hold, is said once.
        """
        try:
            view = self.desk.view(lease.lease_id)
            frame = Frame.of(view, self._info)
            files = write_patch(self.kind, self.folder, lease, view, self._info)
        except ServiceError:
            raise
        except RescuesegError as error:
            if lease.ticket_id not in self._unfit:
                self.say(f"{lease.ticket_id}: left to others, {error}")
            self._unfit.add(lease.ticket_id)
            return False
        self._held[lease.ticket_id] = _Held(lease, frame, files, time.monotonic())
        for path in files.everything:
            if path != files.labels or not files.kept or _holds(path, frame, relabelled(view.start).digest):
                self._known[path] = _mark(path)
        self.say(f"{lease.ticket_id}: {files.labels}" + (f" ({lease.comment})" if lease.comment else ""))
        return True

    def _beat(self, held: _Held) -> None:
        held.beaten = time.monotonic()
        try:
            self.desk.heartbeat(held.lease.lease_id, _IDLE_BEAT)
        except QueueError as error:
            if self._renewed(held):
                return
            self.say(f"{error}")
            if self._holds_work(held):
                self._held.pop(held.lease.ticket_id, None)
            else:
                self._forget(held, None)

    def _holds_work(self, held: _Held) -> bool:
        """Tell whether a mask was saved that is not handed in."""
        drawn = [path for path in (held.files.labels, held.files.ignore) if path is not None and path.exists()]
        return held.touched or any(self._known.get(path) != _mark(path) for path in drawn)

    def _renewed(self, held: _Held) -> bool:
        """Lease a patch again whose lease ran out, unless somebody else has it."""
        try:
            lease = self.desk.next(ticket_id=held.lease.ticket_id)
        except QueueError:
            return False
        if lease is None:
            return False
        held.lease, held.beaten = lease, time.monotonic()
        return True

    def _forget(self, held: _Held, keep: Path | None) -> None:
        """Remove the files of a patch, but for one that is kept."""
        self._held.pop(held.lease.ticket_id, None)
        for path in held.files.everything:
            self._known.pop(path, None)
            if path == keep:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # masks --------------------------------------------------------------------------------------------------------

    def _saved_files(self) -> list[Path]:
        """Return the label files that changed and then lay still."""
        apart = {held.files.ignore for held in self._held.values()}
        settled: list[Path] = []
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(_TEMPORARY) or format_of(path) is None or path in apart:
                continue
            try:
                mark = _mark(path)
            except OSError:  # gone again
                continue
            before, since = self._changing.get(path, (None, 0.0))
            if self._known.get(path) == mark:
                self._changing.pop(path, None)
            elif before != mark:
                self._changing[path] = (mark, time.monotonic())
            elif time.monotonic() - since >= self.settle:
                settled.append(path)
        return settled

    def _hand_in(self, path: Path) -> None:
        """Hand in a mask; what is wrong with it is said, and written beside it."""
        mark = _mark(path)
        complaint = path.with_name(f"{path.name}.error.txt")
        try:
            held = self._held[lease_of(path, [held.lease for held in self._held.values()]).ticket_id]
            held.touched = True
            self._submit(held, path)
        except (LabelError, QueueError) as error:
            again = ". Save it once more to hand it in all the same" if isinstance(error, LabelWarningsError) else ""
            self.say(f"{path.name}: {error}{again}")
            complaint.write_text(f"{error}{again}\n", encoding="utf-8")
            self._known[path] = mark
            return
        complaint.unlink(missing_ok=True)
        done = self.folder / DONE / path.name
        done.parent.mkdir(exist_ok=True)
        if done.is_dir():
            shutil.rmtree(done)
        path.replace(done)
        self._forget(held, path)
        self._asked = -ASK_SECONDS

    def _submit(self, held: _Held, path: Path) -> None:
        labels = read_labels(path, held.frame)
        ticket = held.lease.ticket_id
        seconds = max(time.monotonic() - self._saved, _IDLE_BEAT)
        insisted = self._doubted.get(ticket) == labels.digest
        for attempt in (1, 2):
            try:
                done = self.desk.submit(held.lease.lease_id, labels, "watch", active_seconds=seconds, override=insisted)
                break
            except LabelWarningsError:
                self._doubted[ticket] = labels.digest
                raise
            except LeaseExpiredError:
                if attempt == 2 or not self._renewed(held):
                    raise
        self._saved = time.monotonic()
        self.say(f"{ticket}: version {done.version} {done.verdict}, {done.voxels_corrected} voxels corrected")


def _holds(path: Path, frame: Frame, digest: str) -> bool:
    """Tell whether a mask is as it was handed out."""
    try:
        return read_labels(path, frame).digest == digest
    except LabelError:
        return False


def _mark(path: Path) -> Mark:
    """Return what changes when a file, or anything in a folder, is written."""
    parts = [p.stat() for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path.stat()]
    return len(parts), sum(s.st_size for s in parts), max((s.st_mtime_ns for s in parts), default=0)
