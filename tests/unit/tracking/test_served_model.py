"""What a model in MLflow says, for each family, and what has to be installed for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import TrackingConfig
from rescueseg.models.predictor import PROBABILITY
from rescueseg.models.registry import get_trainer, load_predictor, trainer_names
from rescueseg.models.trainer import TrainingRequest, ignore_progress
from rescueseg.randomness import window_key
from rescueseg.records import ModelReference
from rescueseg.tracking.tracker import Tracker
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import measure, normalise
from tests.only_required import installed_by
from tests.training_rig import BOXES, make_campaign, make_snapshot

REPOSITORY = Path(__file__).parents[3]
FAMILIES = ["monai_unet", "stardist", "cellpose", pytest.param("nnunet", marks=pytest.mark.slow)]


class Stored(NamedTuple):
    campaign: Campaign
    model: ModelReference
    folder: Path
    """As MLflow stores it."""


@pytest.fixture(scope="module", params=FAMILIES)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Stored:
    """Return a model of two networks of each family, as it comes from MLflow's server."""
    trainer = str(request.param)
    if trainer not in trainer_names():
        pytest.skip(f"the extra '{trainer}' is not installed")
    root = tmp_path_factory.mktemp(trainer)
    made = make_campaign(root, trainer=trainer, iterations=2, members=2, dropout=0.3)
    training = TrainingRequest(
        made.config, made.volumes, made.holdout(), make_snapshot(made, BOXES), root / "work", seed=3
    )
    trained = get_trainer(trainer).train(training, ignore_progress)
    path = made.generation(0).path("model")
    for file in trained.path.iterdir():
        made.storage.write_bytes(f"{path}/{file.name}", file.read_bytes())
    model = ModelReference(generation=0, trainer=trainer, path=path, digest=trained.digest)
    changes = {
        "tracking": TrackingConfig(mlflow_uri=mlflow_server),
        "inference": made.config.inference.model_copy(update={"window_zyx": (8, 32, 32)}),
    }
    campaign = Campaign(made.storage, made.config.model_copy(update=changes))
    tracker = Tracker(campaign)
    registered = tracker.register_model(0, model)
    mlflow.set_tracking_uri(tracker.uri)
    folder = mlflow.artifacts.download_artifacts(registered.uri, dst_path=str(root / "stored"))
    return Stored(campaign, model, Path(folder))


def one_window(stored: Stored) -> np.ndarray:
    """Return an image that fills one window: nothing is blended."""
    campaign = stored.campaign
    predictor = load_predictor(campaign.storage, stored.model, campaign.config.inference, "cpu")
    z, y, x = predictor.window_zyx(campaign.volumes.record("v0").spacing_um_zyx)
    image = np.asarray(open_image(campaign.volumes, "v0")[:], np.float32)[:, :z, :y, :x]
    assert image.shape == (1, z, y, x)
    return image


def test_the_stored_model_of_each_family_says_what_its_networks_say(stored: Stored) -> None:
    campaign, image = stored.campaign, one_window(stored)
    linear = campaign.volumes.record("v0").normalisation.linear
    scaled = normalise(image, measure(image, image.shape[1:], linear))
    predictor = load_predictor(campaign.storage, stored.model, campaign.config.inference, "cpu")
    members = predictor.members(scaled[np.newaxis], [window_key(0, "pyfunc", 0)])
    expected = np.mean([np.asarray(outputs[PROBABILITY])[0] for _, outputs in members], axis=0)
    found = mlflow.pyfunc.load_model(str(stored.folder)).predict(image)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert expected.std() > 1e-3, "it is far from saying the same everywhere"
    assert found.shape == (2, *image.shape[1:]), "class probabilities alone, also of a model that has learned objects"


def test_what_is_stored_as_required_is_all_that_a_model_of_each_family_needs(stored: Stored, tmp_path: Path) -> None:
    image = one_window(stored)
    np.save(tmp_path / "image.npy", image)
    files = [str(stored.folder), str(tmp_path / "image.npy"), str(tmp_path / "there.npy")]
    subprocess.run([sys.executable, "-m", "tests.only_required", *files], check=True, cwd=REPOSITORY)
    here = mlflow.pyfunc.load_model(str(stored.folder)).predict(image)
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), here, atol=1e-6)


def test_packages_of_an_extra_are_not_there_unless_they_are_required() -> None:
    assert {"torch", "mlflow", "numpy", "nnunetv2"} <= installed_by(["rescueseg"])
    assert not {"stardist", "cellpose", "napari", "pytest"} & installed_by(["rescueseg"])
    assert {"stardist", "csbdeep", "numba"} <= installed_by(["rescueseg", "stardist"])
