"""Families that say objects are queried by every strategy, through the stage that makes their maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescueseg.active_learning.candidates import CandidateTable, score_candidates
from rescueseg.active_learning.strategies import STRATEGIES, Loop, find_strategy, needed_maps
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import TRAINING, TrainingResult
from rescueseg.errors import InferenceError
from rescueseg.geometry import Box
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.registry import OWN, get_trainer
from rescueseg.models.trainer import TrainingRequest, ignore_progress
from rescueseg.records import ModelReference
from rescueseg.stages import infer as stage
from tests.training_rig import BOXES, SHAPE, make_campaign, make_snapshot

CANDIDATES = [Box((z, y, x), (12, 32, 32)) for z in (0, 12) for y in (0, 32, 64) for x in (0, 32, 64)]
FAMILIES: dict[str, dict[str, Any]] = {
    "stardist": {"iterations": 120},
    "cellpose": {"iterations": 40},
    "monai_unet": {"iterations": 40, "unet": {"border_distance": True}},
}


def trained(folder: Path, name: str, strategy: str) -> Campaign:
    """Make a campaign of that strategy whose first generation has a model, briefly trained."""
    campaign = make_campaign(folder, trainer=name, annotates_objects=True, checkpoint_every=999, **FAMILIES[name])
    query = campaign.config.query.model_copy(update={"strategy": strategy})
    campaign.config = campaign.config.model_copy(update={"query": query})
    snapshot = make_snapshot(campaign, BOXES)
    request = TrainingRequest(campaign.config, campaign.volumes, None, snapshot, folder / "work", 3)
    model = get_trainer(name).train(request, ignore_progress)
    for file in sorted(model.path.iterdir()):
        campaign.storage.write_bytes(f"generations/0000/model/{file.name}", file.read_bytes())
    reference = ModelReference(generation=0, trainer=name, path="generations/0000/model", digest=model.digest)
    campaign.generation(0).write(TRAINING, TrainingResult(model=reference, iterations=model.iterations))
    return campaign


def table_of(campaign: Campaign, strategy: str) -> CandidateTable:
    places = campaign.volumes.shared_places()
    boxes = {"v0": CANDIDATES}
    return score_candidates(campaign.generation(0), boxes, 1, places, further=needed_maps(strategy))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_strategy_runs_on_the_candidates_of_a_model_of_objects(tmp_path: Path, name: str) -> None:
    if not OWN[name].is_installed:
        pytest.skip(f"the extra '{OWN[name].extra}' is not installed")
    campaign = trained(tmp_path, name, "object_disagreement")
    reference = stage.infer_volume(campaign, 0, "v0", None, lambda *_: None)
    assert "object_disagreement" in reference.quantities
    stored = np.asarray(VolumeMaps(campaign.generation(0), "v0").open("object_disagreement")[:], np.float64)
    assert stored.shape == SHAPE
    assert 0 <= stored.min() < stored.max() <= 1
    means = [stored[box.slices].mean() for box in CANDIDATES]
    np.testing.assert_allclose(table_of(campaign, "object_disagreement").scores["object_disagreement"], means)
    for strategy in STRATEGIES:
        table = table_of(campaign, strategy)
        picks = find_strategy(strategy)(table, 4, np.random.default_rng(0), Loop(0, 3))
        assert len({pick.index for pick in picks}) == 4, strategy
        assert all(math.isfinite(pick.score) and pick.score >= 0 for pick in picks), strategy
        if strategy == "object_disagreement":
            assert [pick.score for pick in picks] == sorted(means, reverse=True)[:4]


def test_other_strategies_do_without_the_map_and_its_cost(tmp_path: Path) -> None:
    campaign = trained(tmp_path, "monai_unet", "clasp_entropy")
    reference = stage.infer_volume(campaign, 0, "v0", None, lambda *_: None)
    assert "object_disagreement" not in reference.quantities
    assert "object_disagreement" not in table_of(campaign, "clasp_entropy").scores
    with pytest.raises(InferenceError, match="no map 'object_disagreement'"):
        table_of(campaign, "object_disagreement")
