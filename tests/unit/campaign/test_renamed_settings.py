"""Settings that had another name: moved from files, refused from people."""

from __future__ import annotations

import pytest

from rescueseg.campaign.campaign_file import parse_config, settings_of
from rescueseg.campaign.renamed_settings import RENAMED, move_renamed
from rescueseg.errors import ConfigError
from rescueseg.models.registry import check_families

OLDER = """
name = "liver"
classes = ["nucleus"]
[training]
iterations = 300
channels = [8, 16, 32]
deep_supervision = true
ema = 0.9
balanced_classes = true
cldice_weight = 0.25
betti_weight = 0.1
nnunet_planner = "resenc_m"
nnunet_configuration = "3d_lowres"
"""


def test_a_file_of_an_earlier_version_is_read_under_the_names_of_this_one() -> None:
    training = parse_config(OLDER).training
    assert training.iterations == 300
    assert training.families == {
        "unet": {
            "channels": [8, 16, 32],
            "deep_supervision": True,
            "ema": 0.9,
            "balanced_classes": True,
            "cldice_weight": 0.25,
            "betti_weight": 0.1,
        },
        "nnunet": {"channels": [8, 16, 32], "planner": "resenc_m", "configuration": "3d_lowres"},
    }
    check_families(training, "campaign.toml")


def test_what_is_read_is_left_as_it_is() -> None:
    data = {"training": {"ema": 0.9, "unet": {"channels": [4, 8, 16]}}}
    assert move_renamed(data, "") == {"training": {"unet": {"ema": 0.9, "channels": [4, 8, 16]}}}
    assert data == {"training": {"ema": 0.9, "unet": {"channels": [4, 8, 16]}}}


def test_both_names_in_one_file_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'training\.ema' is called 'training\.unet\.ema' now, and both"):
        parse_config(OLDER + "[training.unet]\nema = 0.5\n", "here/campaign.toml")


@pytest.mark.parametrize("broken", ["training = 3", "[training]\nema = 0.5\nunet = 3"])
def test_what_is_no_table_is_one_clear_error(broken: str) -> None:
    with pytest.raises(ConfigError, match="training"):
        parse_config(f'name = "liver"\nclasses = ["nucleus"]\n{broken}\n')


@pytest.mark.parametrize("old", RENAMED)
def test_a_person_who_writes_the_earlier_name_is_told_the_new_one(old: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of("liver", ["nucleus"], [f"{old}=1"])
    assert str(error.value).startswith(f"--set: '{old}' has another name now. Write '{RENAMED[old][0]}'")
    assert all(path in error.value.todo for path in RENAMED[old])
