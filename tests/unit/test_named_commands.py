"""Every command that a message, a docstring or a page names is there, with the options that it is named with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from rescueseg.cli.main import app

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(
    r"""(?:['`"]|Example: |Next: )rescueseg ([a-z][a-z-]*(?: [a-z][a-z-]*)?)((?: --[a-z-]+| [A-Z…|]+)*)"""
)


def texts() -> Iterator[tuple[str, str]]:
    """Yield every string of the library, with its place."""
    for path in sorted((ROOT / "rescueseg").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "rescueseg " in node.value:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
    for name in (
        "README.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/delivery.md",
        "docs/holdout.md",
        "docs/queries.md",
        "docs/scores.md",
        "docs/simulate.md",
        "docs/upkeep.md",
        "deployments/prefect.yaml",
        "infra/README.md",
    ):
        for block in re.findall(r"`rescueseg [^`]+`|^rescueseg .+$", (ROOT / name).read_text(), re.MULTILINE):
            yield name, f"`{block.strip('`')}`"


def missing(words: str, options: str) -> str:
    """Say what of a named command is not there; empty where all is."""
    command: Any = get_command(app)
    for word in words.split():
        commands = getattr(command, "commands", None)  # of a group; Typer brings a click of its own
        if commands is None:
            break
        if word not in commands:
            return f"no command '{word}'"
        command = commands[word]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = sorted(set(re.findall(r"--[a-z-]+", options)) - known - {"--help"})
    return f"no option {wrong[0]}" if wrong else ""


def test_every_command_that_is_named_exists() -> None:
    named, wrong = 0, []
    for place, text in texts():
        for words, options in COMMAND.findall(text):
            named += 1
            if said := missing(words, options):
                wrong.append(f"{place}: 'rescueseg {words}{options}': {said}")
    assert named > 60, "the strings are not read as they should be"
    assert wrong == []


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ("run", "", "no command 'run'"),
        ("queue fetch", "", "no command 'fetch'"),
        ("queue next", " --annotator", ""),
        ("init", " --colour", "no option --colour"),
    ],
)
def test_a_command_that_is_not_there_is_noticed(words: str, options: str, said: str) -> None:
    assert missing(words, options) == said
