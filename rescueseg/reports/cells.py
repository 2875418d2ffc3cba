"""Cells of the tables in the terminal and in Markdown."""

from __future__ import annotations


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Return a number as text, a dash for None.

    Examples
    --------
    >>> number(0.81234), number(0.1, 2, signed=True), number(None)
    ('0.812', '+0.10', '–')
    """
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}"
