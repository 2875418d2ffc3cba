"""`rescueseg sample` with an example or scribbles, as a person meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from rescueseg import volumes
from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from rescueseg.volumes.phantom import make_phantom


@pytest.fixture
def strokes(campaign: Campaign, tmp_path: Path) -> Path:
    """A volume in the campaign, and the file of scribbles on it."""
    image, truth, spacing = make_phantom((16, 64, 64), seed=3)
    scribbles = np.where(np.arange(16)[:, None, None] == 8, truth, 255).astype(np.uint8)
    for name, array in (("raw", image), ("strokes", scribbles)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array, metadata={"axes": "ZYX"})
    volumes.import_volume(campaign, volumes.VolumeImport(str(tmp_path / "raw.tif"), volume_id="raw", spacing=spacing))
    return tmp_path / "strokes.tif"


def sample(campaign: Campaign, *options: object, code: int = 0) -> str:
    """Run the command and return what it printed, without frames and line breaks."""
    result = CliRunner().invoke(app, ["sample", campaign.url, *map(str, options)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def records(campaign: Campaign) -> dict[str, bytes]:
    names = ("holdout.json", "starting.json", "examples.json")
    return {name: campaign.storage.read_bytes(name) for name in names if campaign.storage.exists(name)}


@pytest.mark.parametrize("others", [["--dry-run"], ["--preview"], ["--scribbles", "nosuch.tif"]])
@pytest.mark.usefixtures("strokes")
def test_an_example_is_asked_for_alone(campaign: Campaign, others: list[str]) -> None:
    said = sample(campaign, "--example", "8,30,30", *others, code=2)
    assert "leave --dry-run, --preview and --scribbles out" in said
    assert records(campaign) == {}


def test_scribbles_count_once_and_then_are_refused(campaign: Campaign, strokes: Path) -> None:
    blind = "chosen without knowing the structure"
    assert blind in sample(campaign, "--dry-run")
    assert blind not in sample(campaign, "--dry-run", "--scribbles", strokes)
    assert records(campaign) == {}
    assert "are frozen" in sample(campaign, "--scribbles", strokes)
    assert "dense" not in {box.stratum for box in campaign.holdout().boxes}  # type: ignore[union-attr]
    before = records(campaign)
    for options in ([], ["--dry-run"]):
        said = sample(campaign, "--scribbles", "nosuch.tif", *options, code=1)
        assert "the holdout is frozen: scribbles cannot tell any more where to draw it. Leave --scribbles out" in said
    assert "0 new tickets" in sample(campaign)
    assert records(campaign) == before


def test_empty_scribbles_freeze_nothing(campaign: Campaign, strokes: Path) -> None:
    tifffile.imwrite(strokes, np.full((16, 64, 64), 255, np.uint8), metadata={"axes": "ZYX"})
    said = sample(campaign, "--scribbles", strokes, code=1)
    assert f"{strokes} on volume 'raw': nothing of the structure is drawn" in said
    assert records(campaign) == {}
