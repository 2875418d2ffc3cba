"""Runs functions in threads, so that the window stays responsive; results and errors come back to its thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rescueseg.errors import RescuesegError

T = TypeVar("T")


def as_text(error: Exception) -> str:
    """Return an error as text for a person: our messages as they are, others after the name of their class.

    Examples
    --------
    >>> as_text(ValueError("no such axis"))
    'ValueError: no such axis'
    """
    return str(error) if isinstance(error, RescuesegError) else f"{type(error).__name__}: {error}"


class Runner:
    """Runs one function at a time in the foreground and any number in the background.

    Parameters
    ----------
    on_error : callable
        Called with the error of a function that failed.
    on_busy : callable
        Called with True when a function begins in the foreground, with False when it ends.
    """

    def __init__(self, on_error: Callable[[Exception], None], on_busy: Callable[[bool], None]) -> None:
        self._on_error, self._on_busy = on_error, on_busy
        self.busy = False
        self._background: set[str] = set()

    def run(self, function: Callable[[], T], on_result: Callable[[T], None]) -> bool:
        """Run a function in the foreground, unless one runs there already; return whether it was started."""
        if self.busy:
            return False
        self._set_busy(True)

        def on_return(result: T) -> None:
            self._set_busy(False)
            on_result(result)

        def on_failure(error: Exception) -> None:
            self._set_busy(False)
            self._on_error(error)

        self._start(function, on_return, on_failure)
        return True

    def run_in_background(
        self, name: str, function: Callable[[], Any], on_result: Callable[[Any], None] | None = None
    ) -> None:
        """Run a function in the background, unless one of the same name runs already."""
        if name in self._background:
            return
        self._background.add(name)

        def on_return(result: Any) -> None:
            self._background.discard(name)
            if on_result is not None:
                on_result(result)

        def on_failure(error: Exception) -> None:
            self._background.discard(name)
            self._on_error(error)

        self._start(function, on_return, on_failure)

    def _set_busy(self, busy: bool) -> None:
        self.busy = busy
        self._on_busy(busy)

    @staticmethod
    def _start(
        function: Callable[[], Any], on_return: Callable[[Any], None], on_failure: Callable[[Exception], None]
    ) -> None:
        from napari.qt.threading import create_worker

        create_worker(function, _connect={"returned": on_return, "errored": on_failure})
