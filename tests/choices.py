"""What the command line says of a value that is none of an option's choices."""

from __future__ import annotations

from click.testing import Result


def refused_choice(result: Result) -> str:
    """Assert that a command was refused for its options, before it began, and return what it said on one line."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())
