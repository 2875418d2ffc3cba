"""`rescueseg annotate` where it cannot open a window, and the plugin as napari finds it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rescueseg.napari_plugin
from rescueseg.campaign import Campaign
from rescueseg.cli.annotate import check_window
from rescueseg.errors import ServiceError

pytest.importorskip("npe2", reason="the extra 'napari' is not installed")
MANIFEST = Path(rescueseg.napari_plugin.__file__).with_name("napari.yaml")


def annotate(place: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-c", "from rescueseg.cli.main import app; app()", "annotate", place, "-a", "anna"],
        env=kept | {"QT_QPA_PLATFORM": "xcb"} | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_without_a_display_one_line_says_what_to_do(campaign: Campaign) -> None:
    done = annotate(campaign.url)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: no window can be opened: qt.qpa")
    assert "rescueseg queue next" in line


def test_without_napari_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"pip install 'rescueseg\[napari\]'"):
        check_window()


def test_the_manifest_is_valid_and_names_what_is_there() -> None:
    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    [widget] = manifest.contributions.widgets
    assert widget.command in [contributed.id for contributed in manifest.contributions.commands]
