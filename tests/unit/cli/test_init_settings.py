"""Settings of model families on the command line: checked when a campaign is started, and written in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app


def init(folder: Path, *pairs: str) -> tuple[int, str]:
    tifffile.imwrite(folder / "v.tif", np.zeros((8, 16, 16), np.uint8) + np.arange(16, dtype=np.uint8))
    options = [option for pair in pairs for option in ("--set", pair)]
    command = ["init", str(folder / "c"), str(folder / "v.tif"), "--classes", "nucleus", "--spacing", "0.2,0.1,0.1"]
    result = CliRunner().invoke(app, [*command, *options])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("training.unet.chanels=[8]", "--set: unknown key 'training.unet.chanels'. Did you mean"),
        ("training.unett.ema=0.5", "--set: there is no model family 'unett'"),
        ("training.nnunet.planner=huge", "Input should be 'default', 'resenc_m', 'resenc_l' or 'resenc_xl'"),
        ("training.cldice_weight=0", "Write 'training.unet.cldice_weight'"),
        ("training.trainer=monai", "unknown trainer 'monai'"),
    ],
)
def test_a_wrong_setting_is_one_error_and_nothing_is_made(tmp_path: Path, pair: str, said: str) -> None:
    code, told = init(tmp_path, pair)
    assert code == 1
    assert said in " ".join(told.split())
    assert not (tmp_path / "c").exists()


def test_the_file_of_a_new_campaign_holds_the_families_defaults(tmp_path: Path) -> None:
    code, told = init(tmp_path, "training.unet.channels=[8, 16, 32]")
    assert code == 0, told
    families = Campaign.open(str(tmp_path / "c")).config.training.families
    assert families["unet"] == {
        "channels": [8, 16, 32],
        "deep_supervision": False,
        "ema": 0.0,
        "balanced_classes": False,
        "border_distance": False,
        "cldice_weight": 0.5,
        "betti_weight": 0.0,
    }
    assert families["nnunet"] == {"planner": "default", "configuration": "3d_fullres"}
