"""What the demo does before anything runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tifffile
from rich.console import Console

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.cli import demo
from rescueseg.volumes.examples import Example
from rescueseg.volumes.phantom import make_phantom


def test_a_demo_killed_before_its_volume_was_in_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, truth, spacing = make_phantom((16, 64, 64), seed=3)
    paths = [str(tmp_path / name) for name in ("raw.tif", "truth.tif")]
    for path, array in zip(paths, (image, truth), strict=True):
        tifffile.imwrite(path, array, metadata={"axes": "ZYX"})
    example = Example("small", paths[0], paths[1], spacing, "semantic", ("organelle",))
    monkeypatch.setattr(demo, "load_example", lambda *_: example)
    out = tmp_path / "demo"
    Campaign.create(str(out), settings_of("small", ["organelle"], []))
    (out / "volumes" / ".small.part").mkdir(parents=True)
    campaign = demo.open_or_start(out, "", "", [], Console(quiet=True))
    [volume] = campaign.volumes.records()
    assert (volume.volume_id, volume.truth) == ("small", "semantic")
    assert not (out / "volumes" / ".small.part").exists()
    assert demo.open_or_start(out, "", "", [], Console(quiet=True)).volumes.records() == [volume]


def test_the_table_at_the_end_names_every_page(tmp_path: Path) -> None:
    campaign = Campaign.create(str(tmp_path / "demo"), settings_of("small", ["organelle"], []))
    for name in ("report.html", "my notes.html", "sampling.png"):
        campaign.storage.write_bytes(f"reports/{name}", b"")
    console = Console(record=True, width=200, file=io.StringIO())
    demo.where_to_look(campaign.storage, "http://localhost:5000", console)
    shown = [line.removeprefix("Report    ") for line in console.export_text().splitlines() if "Report" in line]
    assert shown == [f"{campaign.url}/reports/my notes.html", f"{campaign.url}/reports/report.html"]
