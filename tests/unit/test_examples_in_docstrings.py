"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "rescueseg").rglob("*.py")
    if ">>> " in path.read_text()
)
FEWEST = 40
"""Functions whose docstrings show an example."""


def examples(module: str) -> list[doctest.DocTest]:
    """Return the docstrings of a module that hold examples, those of what it imports left out."""
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_are_true(module: str) -> None:
    runner, told = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE), []
    for example in examples(module):
        runner.run(example, out=told.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(told)


def test_enough_functions_show_an_example() -> None:
    assert sum(len(examples(module)) for module in MODULES) >= FEWEST
