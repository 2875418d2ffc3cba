"""The campaign file: round trip, and one clear error for each kind of mistake."""

from __future__ import annotations

import pytest

from rescueseg.campaign.campaign_file import dump_config, parse_config
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError

MINIMAL = 'name = "mito"\nclasses = ["mitochondrion"]\n'


def test_round_trip() -> None:
    config = parse_config(
        MINIMAL + "[training]\niterations = 7\nwindow_zyx = [8, 32, 32]\n[holdout]\nguard_zyx = [1, 4, 4]\n"
    )
    assert parse_config(dump_config(config)) == config
    assert config.training.window_zyx == (8, 32, 32)
    assert config.n_classes == 1


def test_the_default_configuration_round_trips() -> None:
    config = CampaignConfig(name="a", classes=("x", "y"))
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINIMAL + "[training]\niteration = 3\n", "'training.iteration'. Did you mean 'training.iterations'"),
        (MINIMAL + 'strategy = "bald"\n', "Did you mean 'query.strategy'"),
        (MINIMAL + "[trainig]\nseed = 1\n", "'trainig'. Did you mean 'training'"),
        (MINIMAL + "[holdout]\nfraction = 3\n", "'holdout.fraction'"),
        (MINIMAL + "[training]\ndropout = 1.0\n", "'training.dropout'"),
        (MINIMAL + "[holdout]\nguard_zyx = [-1, 0, 0]\n", "'holdout.guard_zyx.0'"),
        ('name = "a"\nclasses = ["x", " "]\n', "empty"),
        ('name = "a"\nclasses = ["x", " x"]\n', "must differ"),
        ('name = "a"\n', "'classes'"),
        ('name = "../a"\nclasses = ["x"]\n', "'name'"),
        ('name = "a"\nclasses = ["x", "x"]\n', "must differ"),
        (MINIMAL + '[trigger]\ncron = "now and then"\n', "'now and then' is no cron schedule"),
        (MINIMAL + '[trigger]\ntimezone = "Mars"\n', "'Mars' is no time zone"),
        ("name = [", "not valid TOML"),
    ],
)
def test_a_mistake_gets_one_clear_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(text, "here/campaign.toml")
    assert says in str(error.value)
    assert "here/campaign.toml" in str(error.value)
    assert "\n" not in str(error.value).replace(error.value.what, "")
