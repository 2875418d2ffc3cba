"""`rescueseg simulate` on a phantom, as a lab gives it: two strategies, two loops, two seeds, five steps each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.outside_trainings import RESULT, read_losses, read_request
from rescueseg.cli.main import app
from rescueseg.simulation.rows import read_rows
from rescueseg.volumes.phantom import make_phantom

pytestmark = pytest.mark.slow

SMALL = ("training.window_zyx=[8, 16, 16]", "training.unet.channels=[8, 8, 16]", "holdout.box_zyx=[8, 20, 20]")


def test_strategies_are_compared_on_a_phantom(tmp_path: Path) -> None:
    image, truth, _ = make_phantom((24, 112, 112), seed=3)
    files = [str(tmp_path / "image.tif"), str(tmp_path / "truth.tif")]
    for path, array in zip(files, (image, truth), strict=True):
        tifffile.imwrite(path, array, metadata={"axes": "ZYX"})
    out = tmp_path / "out"
    command = [
        "simulate",
        files[0],
        "--truth",
        files[1],
        "--spacing",
        "0.25,0.1,0.1",
        "--out",
        str(out),
        "--name",
        "phantom",
    ]
    command += [
        "--strategy",
        "clasp_entropy",
        "--strategy",
        "oracle_fg66",
        "--loops",
        "2",
        "--seeds",
        "0,1",
        "--steps",
        "5",
    ]
    command += ["--regime", "low=8", "--patch", "6,14,14", "--crop", "0:24,0:112,8:112"]
    command += [word for setting in SMALL for word in ("--set", setting)]
    first = CliRunner().invoke(app, [*command, "--dry-run"])
    assert "6 trainings to run for 8 rows, 5 steps each" in first.output
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "phantom, low, seed 1, oracle_fg66, loop 1: 8 patches, test Dice" in done.output
    assert "0 trainings left" in done.output
    rows = read_rows(out / "rows.jsonl")
    assert {row.key for row in rows} == {
        ("phantom", "low", strategy, seed, loop)
        for strategy in ("clasp_entropy", "oracle_fg66")
        for seed in (0, 1)
        for loop in (0, 1)
    }
    starts = []
    for seed in (0, 1):
        campaign = Campaign.open(str(out / "phantom" / f"low-{seed}" / "campaign"))
        assert campaign.trainings() == ["clasp_entropy-01", "oracle_fg66-01", "start"]
        for name in campaign.trainings():
            result = campaign.training(name).read(RESULT)
            assert result is not None
            assert len(read_losses(campaign.training(name))) == 5
            for item in read_request(campaign.training(name)).snapshot.items:
                labels = campaign.storage.read_array(item.labels)
                np.testing.assert_array_equal(labels, truth[:, :, 8:112][item.box.slices])
        starts.append({item.box for item in read_request(campaign.training("start")).snapshot.items})
    assert starts[0] != starts[1]
    again = CliRunner().invoke(app, command)
    assert "0 trainings to run for 8 rows" in again.output
    assert read_rows(out / "rows.jsonl") == rows
