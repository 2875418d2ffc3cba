"""Sends the curves and the last checkpoint of a training while it runs, from a thread of its own.

No server can hold the training up.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

EVERY = 1.0
"""Seconds between two batches of points."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds before the next try after a failure; they double."""
FLUSH_SECONDS = 20.0
"""How long the end of a training waits for its last points."""
CHECKPOINT_SECONDS = 300.0
"""Between two uploads of a checkpoint, which may be large."""
_BATCH = 500
"""Steps sent together."""


class Point(NamedTuple):
    """What one step of a training measured."""

    milliseconds: int
    """Since 1970."""
    step: int
    values: Mapping[str, float]


class RunLog(Protocol):
    """What a live run needs of the tracking server; `rescueseg.tracking.tracker.Tracker` is one."""

    def check_server(self) -> None:
        """Raise a `ServiceError` where the server does not answer."""

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Add the points of many steps where there are none yet."""

    def log_file(self, run_id: str, name: str, path: Path) -> None:
        """Store a local file with a run."""


class LiveRun:
    """Sends points to a run in MLflow, about once a second; a call takes no time, whatever the server does.

    Checkpoints follow as artifacts: the first at once, then every few minutes what has changed, and the last one when
    the training breaks off. Each replaces the one before.

    A server that does not answer is asked again after a while, and the points wait. What cannot be sent within
    `FLUSH_SECONDS` of the end is missing from the curves, and a warning says so; the training never fails for it.

    Parameters
    ----------
    log : RunLog
        The campaign's.
    run : callable
        Returns the id of the run; called in the thread, and only when there is something to send.
    checkpoints : callable
        Returns the checkpoints there are, by their path among the artifacts; called in the thread.
    """

    def __init__(self, log: RunLog, run: Callable[[], str], checkpoints: Callable[[], Mapping[str, Path]]) -> None:
        self._log, self._run, self._checkpoints = log, run, checkpoints
        self._uploads: dict[str, tuple[int, int]] = {}
        self._last_upload = -math.inf
        self._points: deque[Point] = deque()
        self._ended = threading.Event()
        self._failure = ""
        self.has_warned = False
        """Whether a warning said that points wait."""
        self._thread = threading.Thread(target=self._work, name="mlflow-live", daemon=True)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Queue what a step measured."""
        self._points.append(Point(int(time.time() * 1000), step, dict(values)))
        if self._failure and not self.has_warned:
            self.has_warned = True
            warnings.warn(f"the training goes on, its points wait for MLflow: {self._failure}", stacklevel=2)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(FLUSH_SECONDS)
        if self._points:
            why = self._failure or "MLflow is too slow"
            warnings.warn(f"{len(self._points)} steps are missing from MLflow's curves: {why}", stacklevel=2)

    # in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = EVERY
        while True:
            ended = self._ended.wait(pause)
            try:
                self._send()
                if ended or time.monotonic() - self._last_upload >= CHECKPOINT_SECONDS:
                    self._store_checkpoints()
                pause, self._failure = EVERY, ""
            except Exception as error:  # whatever it is, the training goes on
                self._failure = str(error)
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            if ended:
                return

    def _send(self) -> None:
        while self._points:
            self._log.check_server()
            batch = list(islice(self._points, _BATCH))
            self._log.log_points(self._run(), batch)
            for _ in batch:
                self._points.popleft()

    def _store_checkpoints(self) -> None:
        for name, path in self._checkpoints().items():
            try:
                state = path.stat()
                version = (state.st_mtime_ns, state.st_ino)
                if self._uploads.get(name) != version:
                    self._last_upload = time.monotonic()  # a try that fails counts: points go first
                    self._log.check_server()
                    self._log.log_file(self._run(), name, path)
                    self._uploads[name] = version
            except FileNotFoundError:
                continue  # the model is finished: its checkpoints are gone
