"""Which trainers there are, and whose table of settings is whose."""

from __future__ import annotations

from pathlib import Path

import pytest

from rescueseg.campaign.campaign_file import settings_of
from rescueseg.errors import ConfigError
from rescueseg.models.registry import (
    OWN,
    check_families,
    complete_families,
    find_entry,
    find_families,
    get_trainer,
    suited_to,
    trainer_names,
)

OFFERS = """
from dataclasses import replace
from rescueseg.models.settings import FamilySettings
from rescueseg.models.unet.family import MONAI_UNET

LAB = replace(MONAI_UNET, routes=("blob",))
NOTHING = 3


class Settings(FamilySettings):
    family = "unet"


TWIN = replace(MONAI_UNET, settings=Settings)
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *points: str, package: str = "lab") -> None:
    """Put a package with entry points on the path, as an installation does."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}_families.py").write_text(OFFERS)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(["[rescueseg.trainers]", *points, ""]))
    monkeypatch.syspath_prepend(str(folder))


def check(*pairs: str) -> None:
    check_families(settings_of("liver", ["nucleus"], pairs).training, "--set")


def test_the_tables_are_those_of_the_families() -> None:
    check("training.unet.ema=0.5", "training.nnunet.planner=resenc_m", "training.unet.channels=[8, 16, 32]")
    assert {"unet", "nnunet"} <= find_families().keys()
    assert all(find_entry(name).settings is get_trainer(name).settings for name in trainer_names())
    assert all(get_trainer(name).name == name for name in trainer_names())


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("training.unett.ema=0.5", r"no model family 'unett'.*Installed families: .*nnunet, .*unet"),
        (
            "training.unet.channel=[8]",
            r"unknown key 'training\.unet\.channel'\. Did you mean 'training\.unet\.channels'",
        ),
        ("training.unet.ema=1.5", r"'training\.unet\.ema': Input should be less than 1"),
        ("training.nnunet.planner=resenc", r"'training\.nnunet\.planner': Input should be 'default', 'resenc_m'"),
        ("training.unet.channels=3", r"'training\.unet\.channels': Input should be a valid tuple"),
    ],
)
def test_a_wrong_table_is_one_clear_error(pair: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        check(pair)
    assert str(error.value).startswith("--set: ")


def test_a_new_campaign_holds_every_default_of_the_families() -> None:
    config = complete_families(settings_of("liver", ["nucleus"], ["training.unet.ema=0.5"]), "--set")
    assert config.training.families == {
        "unet": {
            "deep_supervision": False,
            "ema": 0.5,
            "balanced_classes": False,
            "border_distance": False,
            "cldice_weight": 0.5,
            "betti_weight": 0.0,
        },
        "nnunet": {"planner": "default", "configuration": "3d_fullres"},
        "cellpose": {},
    }
    assert complete_families(config, "--set") == config
    with pytest.raises(ConfigError, match="unknown trainer 'mine'"):
        complete_families(settings_of("liver", ["nucleus"], ["training.trainer=mine"]), "--set")


def test_an_entry_point_is_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = trainer_names()
    install(tmp_path, monkeypatch, "lab = lab_families:LAB")
    assert trainer_names() == tuple(sorted({*before, "lab"}))
    assert find_entry("lab").settings is OWN["monai_unet"].settings
    assert suited_to("blob") == ("lab",)
    monkeypatch.undo()
    assert trainer_names() == before


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("lab = lab_families:MISSING", "trainer 'lab' of the package 'lab' cannot be loaded.*Repair or uninstall"),
        ("lab = lab_nowhere:LAB", "cannot be loaded: No module named 'lab_nowhere'"),
        ("lab = lab_families:NOTHING", "the package 'lab' offers as trainer 'lab' what is none"),
        ("nnunet = lab_families:LAB", "the package 'lab' offers a trainer 'nnunet', and there is another"),
    ],
)
def test_a_broken_package_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, said: str
) -> None:
    install(tmp_path, monkeypatch, point)
    with pytest.raises(ConfigError, match=said):
        find_entry("lab")


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lab", "other"):
        install(tmp_path / package, monkeypatch, f"same = {package}_families:LAB", package=package)
    with pytest.raises(ConfigError, match="offers a trainer 'same', and there is another"):
        trainer_names()


def test_a_broken_package_is_no_trouble_to_campaigns_of_our_own_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "lab = lab_families:MISSING")
    check("training.unet.ema=0.5")
    with pytest.raises(ConfigError, match="'lab' cannot be loaded"):
        check("training.labb.ema=0.5")


def test_two_families_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "lab = twin_families:TWIN", package="twin")
    with pytest.raises(ConfigError, match="trainer 'lab' is of a family 'unet', and there is another"):
        find_families()
