"""The terminal: lines of text, errors as one line, and progress (a bar, or now and then a line in a log)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from rescueseg.errors import RescuesegError
from rescueseg.progress import Progress

LOG_SECONDS = 10.0
"""Between two lines of progress in a log."""

console = Console()
if not console.is_terminal:  # a log or a pipe: do not squeeze tables into 80 columns
    console.width = 140


class OneLineErrors(TyperGroup):
    """Shows our errors as one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RescuesegError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


def say_line(line: str, style: str = "") -> None:
    """Print a line as it is, however long."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """Show the progress of something while the block runs.

    Parameters
    ----------
    console : rich.console.Console
        A terminal gets a bar that vanishes in the end; anything else at most one line in 10 s.

    Yields
    ------
    callable
        To be called with the name of what is counted, the number done and the total.
    """
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as ProgressBar

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _lines(console: Console) -> Progress:
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            console.print(f"{what}: step {done} of {total}", markup=False, highlight=False, soft_wrap=True)

    return show
