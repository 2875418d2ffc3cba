"""A family of another package goes the whole way, and no file of ours names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import dump_config, parse_config
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.errors import ConfigError
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.registry import check_families, complete_families
from rescueseg.stages.train import train
from rescueseg.tracking.models import _requirements
from rescueseg.volumes import open_image, open_truth
from rescueseg.volumes.normalise import normalise
from tests.training_rig import BOXES, make_campaign, make_snapshot

ROOT = Path(__file__).parents[3]


def test_no_file_of_ours_names_it() -> None:
    for folder in ("rescueseg", "tasks", "flows"):
        assert not [path for path in (ROOT / folder).rglob("*.py") if "toy" in path.read_text()]


def test_its_table_is_checked_and_written_like_our_own(tmp_path: Path) -> None:
    config = make_campaign(tmp_path, trainer="toy_logistic", toy={"scales_um": [0.2]}).config
    completed = complete_families(config, "--set")
    assert completed.training.families["toy"] == {"scales_um": [0.2], "spread": 0.2}
    assert parse_config(dump_config(completed)) == completed
    wrong = config.training.model_copy(update={"toy": {"spread": -1}})
    with pytest.raises(ConfigError, match=r"'training\.toy\.spread': Input should be greater than or equal to 0"):
        check_families(wrong, "campaign.toml")


def test_it_is_trained_by_the_stage_and_makes_maps(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, trainer="toy_logistic", iterations=60)
    campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, BOXES))
    train(campaign, 0, lambda step, metrics: None)
    model = campaign.generation(0).model()
    assert model is not None
    assert model.trainer == "toy_logistic"
    infer_volume(campaign, model, "v0")
    found = np.asarray(VolumeMaps(campaign.generation(0), "v0").open("probability")[:]).argmax(axis=0) == 1
    truth = np.asarray(open_truth(campaign.volumes, "v0")[:]) == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    assert np.asarray(VolumeMaps(campaign.generation(0), "v0").open("mutual_information")[:]).max() > 0
    assert_the_vectors_are_those_of_the_image(campaign)


def assert_the_vectors_are_those_of_the_image(campaign: Campaign) -> None:
    """Mean over symmetries and blended over windows, each component and ray keeps its direction."""
    record = campaign.volumes.record("v0")
    image = normalise(np.asarray(open_image(campaign.volumes, "v0")[:]), record.normalisation)
    smooth = gaussian_filter(image[0], [0.1 / s for s in record.spacing_um_zyx], mode="nearest")
    expected = np.stack(np.gradient(smooth, *record.spacing_um_zyx))
    slope, descent = (
        np.asarray(VolumeMaps(campaign.generation(0), "v0").open(name)[:], np.float32) for name in ("slope", "descent")
    )
    assert slope.min() < -1, "components of vectors may be negative"
    steep = np.abs(expected).max(axis=0) > 2
    for found, true in zip(slope, expected, strict=True):
        assert np.corrcoef(found[steep], true[steep])[0, 1] > 0.9
    rays = [-expected[0], expected[0], -expected[2], expected[2]]
    for found, true in zip(descent, rays, strict=True):
        assert found.min() >= 0
        assert np.corrcoef(found[steep], np.maximum(true, 0)[steep])[0, 1] > 0.9


def test_its_models_in_mlflow_require_what_it_says() -> None:
    assert [r.partition("==")[0] for r in _requirements("toy_logistic")][1:] == [
        *("mlflow", "numpy", "safetensors", "scipy", "torch"),
    ]
