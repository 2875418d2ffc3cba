"""Progress on the command line: a bar in a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

LOG_SECONDS = 10.0


@contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far something is, for as long as the block lasts.

    Parameters
    ----------
    console : rich.console.Console
        A terminal gets a bar that vanishes in the end; anything else at most one line in 10 s.

    Yields
    ------
    callable
        To be called with what is counted, how many are done and how many there are.
    """
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _lines(console: Console) -> Callable[[str, int, int], None]:
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            console.print(f"{what}: step {done} of {total}", markup=False, highlight=False, soft_wrap=True)

    return show
