"""Options as records, and one value of an option for each volume."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from rescueseg.cli.import_options import one_each
from rescueseg.cli.options import option_groups
from rescueseg.errors import ConfigError


@dataclasses.dataclass
class Size:
    depth: Annotated[int, typer.Option(help="Planes.")] = 1
    names: Annotated[list[str], typer.Option(help="Names.")] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Place:
    size: Annotated[str, typer.Option(help="A field that is called as another parameter.")] = "small"


SEEN: list[tuple[str, Size, Place]] = []


@option_groups
def show(name: str, size: Size, place: Place) -> None:
    SEEN.append((name, size, place))


def test_two_records_get_their_own_options() -> None:
    assert list(inspect.signature(show).parameters) == ["name", "depth", "names", "size"]
    app = typer.Typer()
    app.command()(show)
    SEEN.clear()
    words = ["--depth", "3", "--names", "a", "--names", "b", "--size", "large"]
    for arguments in (["x"], ["y", *words]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert [("x", Size(1, []), Place("small")), ("y", Size(3, ["a", "b"]), Place("large"))] == SEEN


def test_fields_of_the_same_name_are_refused() -> None:
    def twice(one: Size, other: Size) -> None:
        raise AssertionError((one, other))

    with pytest.raises(ValueError, match="duplicate parameter name"):
        option_groups(twice)


def test_an_option_is_given_for_each_volume_or_for_none() -> None:
    assert one_each("--id", [], 3) == [None, None, None]
    assert one_each("--id", ["a", "b"], 2) == ["a", "b"]
    for values in (["a"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match=f"{len(values)} given for 2 volumes"):
            one_each("--id", values, 2)
