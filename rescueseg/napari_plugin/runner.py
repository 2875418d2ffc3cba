"""Work in a thread, so that the window stays alive; results and errors come back to the window's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rescueseg.errors import RescuesegError

T = TypeVar("T")


def as_text(error: Exception) -> str:
    """Return an error for a person: ours as they are, others by their kind."""
    return str(error) if isinstance(error, RescuesegError) else f"{type(error).__name__}: {error}"


class Runner:
    """Runs one thing at a time in the foreground and any number in the background.

    Parameters
    ----------
    failed : callable
        Told the error of anything that failed.
    busy_changed : callable
        Told when the foreground begins and ends.
    """

    def __init__(self, failed: Callable[[Exception], None], busy_changed: Callable[[bool], None]) -> None:
        self._failed, self._busy_changed = failed, busy_changed
        self.busy = False
        self._background: set[str] = set()

    def run(self, function: Callable[[], T], done: Callable[[T], None]) -> bool:
        """Run something in the foreground, unless it is taken; return whether it was begun."""
        if self.busy:
            return False
        self._set(True)

        def returned(result: T) -> None:
            self._set(False)
            done(result)

        def errored(error: Exception) -> None:
            self._set(False)
            self._failed(error)

        self._start(function, returned, errored)
        return True

    def run_behind(self, name: str, function: Callable[[], Any], done: Callable[[Any], None] | None = None) -> None:
        """Run something in the background, unless that very thing is under way."""
        if name in self._background:
            return
        self._background.add(name)

        def returned(result: Any) -> None:
            self._background.discard(name)
            if done is not None:
                done(result)

        def errored(error: Exception) -> None:
            self._background.discard(name)
            self._failed(error)

        self._start(function, returned, errored)

    def _set(self, busy: bool) -> None:
        self.busy = busy
        self._busy_changed(busy)

    @staticmethod
    def _start(
        function: Callable[[], Any], returned: Callable[[Any], None], errored: Callable[[Exception], None]
    ) -> None:
        from napari.qt.threading import create_worker

        create_worker(function, _connect={"returned": returned, "errored": errored})
