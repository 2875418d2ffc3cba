"""Every reader of images, truths and maps meets a lost shard as one error that names it; none goes on with black."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from rescueseg.active_learning.candidates import score_candidates
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import StorageError
from rescueseg.evaluation.holdout_scores import assign, stored_maps
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import Box
from rescueseg.inference import engine
from rescueseg.inference.engine import infer_volume
from rescueseg.labels import PatchLabels
from rescueseg.models.training_items import load_item
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.records import ModelReference
from rescueseg.reports.gallery import BoxPictures
from rescueseg.sampling import starting_patches
from rescueseg.stages import tickets
from rescueseg.volumes import VolumeImport, consistency, import_volume
from tests import trivial_predictors
from tests.training_rig import balls, make_snapshot
from tests.unit.volumes.test_damaged_images import cut

SHAPE, SPACING = (24, 96, 96), (0.2, 0.1, 0.1)  # one shard, one block
MODEL = ModelReference(generation=0, trainer="trivial", path="generations/0000/model", digest="a" * 64)
IMAGE, TRUTH = "volumes/v0.ome.zarr/0/c/0/0/0/0", "volumes/v0.ome.zarr/labels/truth/0/c/0/0/0"
PROBABILITY = "generations/0000/maps/v0.zarr/probability/0/c/1/0/0/0"
ENTROPY = "generations/0000/maps/v0.zarr/predictive_entropy/0/c/0/0/0"


@pytest.fixture(scope="module")
def inferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a campaign that was sampled, and has the maps of a model."""
    folder = tmp_path_factory.mktemp("inferred")
    image, truth = balls(SHAPE, SPACING, 0, 1)
    for name, array in (("v0", image), ("t", truth)):
        zarr.create_array(str(folder / f"{name}.zarr"), data=array)
    settings: dict[str, Any] = {"mc_samples": 1, "tta_symmetries": 1}
    campaign = Campaign.create(
        str(folder / "c"), check_config({"name": "c", "classes": ["a", "b"], "inference": settings})
    )
    source = VolumeImport(str(folder / "v0.zarr"), volume_id="v0", spacing=SPACING, truth=str(folder / "t.zarr"))
    import_volume(campaign, source)
    tickets.prepare(campaign, open_queue(campaign))
    infer_volume(campaign, MODEL, "v0", load=trivial_predictors.blur)
    return folder / "c"


@pytest.fixture
def campaign(inferred: Path, tmp_path: Path) -> Campaign:
    shutil.copytree(inferred, tmp_path / "c")
    engine._context.cache_clear()
    engine._predictor.cache_clear()
    return Campaign.open(str(tmp_path / "c"))


def infer_again(campaign: Campaign) -> None:
    infer_volume(campaign, MODEL.model_copy(update={"generation": 1}), "v0", load=trivial_predictors.blur)


def view(campaign: Campaign, store: QueueStore) -> None:
    client = LocalClient(campaign, store, "anna")
    lease = client.next()
    assert lease is not None
    client.view(lease.lease_id)


def train(campaign: Campaign) -> None:
    item = make_snapshot(campaign, [Box((0, 0, 0), (8, 48, 48))]).items[0]
    load_item(campaign.volumes, item, SPACING)


def evaluate(campaign: Campaign) -> None:
    truth = holdout_truth(campaign)
    truth.labels(truth.boxes[0])


def read_holdout_maps(campaign: Campaign) -> None:
    list(stored_maps(campaign.generation(0), assign(campaign, MODEL, holdout_truth(campaign))))


def query(campaign: Campaign) -> None:
    boxes = starting_patches.candidate_boxes(campaign, "v0", [])
    score_candidates(campaign.generation(0), {"v0": boxes}, 2, campaign.volumes.shared_places())


def draw(campaign: Campaign) -> None:
    masks = [(name, PatchLabels(np.full((8, 16, 16), value, np.uint8))) for value, name in enumerate(("anna", "ben"))]
    BoxPictures(campaign.volumes, campaign.config.n_classes).disagreeing("v0", Box((0, 0, 0), (8, 16, 16)), masks, None)


READERS: dict[str, tuple[str, Callable[[Campaign], object]]] = {
    "view": (IMAGE, lambda c: view(c, open_queue(c))),
    "maps in the view": (ENTROPY, lambda c: view(c, open_queue(c))),
    "sampling": (IMAGE, starting_patches.starting_patches),
    "training": (IMAGE, train),
    "truth in the evaluation": (TRUTH, evaluate),
    "maps in the evaluation": (PROBABILITY, read_holdout_maps),
    "query": (ENTROPY, query),
    "report": (IMAGE, draw),
    "inference": (IMAGE, infer_again),
    "check of the volumes": (IMAGE, consistency.check),
}


@pytest.mark.parametrize("damage", [partial(Path.unlink, missing_ok=True), cut], ids=["deleted", "cut"])
@pytest.mark.parametrize("reader", READERS)
def test_each_reader_meets_one_error(campaign: Campaign, reader: str, damage: Callable[[Path], None]) -> None:
    name, read = READERS[reader]
    damage(Path(campaign.url, name))
    with pytest.raises(StorageError, match="damaged") as caught:
        read(campaign)
    assert caught.value.where == str(Path(campaign.url, name))
