"""People say what their structure is, not which shape it has."""

from __future__ import annotations

from typing import get_args

import pytest
from typer.testing import CliRunner

from rescueseg.cli.main import app
from rescueseg.config import TriageConfig
from rescueseg.errors import ConfigError
from rescueseg.triage.tree import STRUCTURES, decide
from rescueseg.triage.words import NAMES, SHAPES, Named, choices, shape_of


def test_every_structure_and_every_shape_can_be_said() -> None:
    assert set(NAMES) == set(get_args(Named)) == {*SHAPES, *STRUCTURES}
    assert {shape_of(name) for name in NAMES} == set(STRUCTURES)
    assert all(shape_of(shape) == shape for shape in STRUCTURES), "as campaigns of earlier versions said it"


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("nuclei", "star_convex"),
        ("vesicles", "star_convex"),
        ("mitochondria", "blob"),
        ("puncta", "puncta"),
        ("vessels", "topology"),
        ("neurites", "topology"),
        ("fibres", "topology"),
        ("membranes", "topology"),
    ],
)
def test_what_is_said_leads_to_its_route(name: Named, route: str) -> None:
    assert decide({}, TriageConfig(), shape_of(name))[0].name == route


def test_what_is_not_known_is_answered_with_what_can_be_said() -> None:
    with pytest.raises(ConfigError, match=r"'golgi' is unknown.*mitochondria"):
        shape_of("golgi")  # type: ignore[arg-type]


def test_the_help_says_what_to_say() -> None:
    shown = " ".join(CliRunner().invoke(app, ["triage", "--help"], terminal_width=200).output.replace("│", " ").split())
    for name in SHAPES:
        assert name in shown
    assert "short rods and beans" in shown
    assert "short rods and beans" in choices()
