"""A job's way of computing the forward pass is chosen once and kept in its plan; digests of earlier plans stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import ClusterConfig, InferenceConfig
from rescueseg.geometry import Box
from rescueseg.inference import engine
from rescueseg.inference.engine import InferenceJob, infer, make_plan, predict_boxes
from rescueseg.inference.maps import QUANTITIES, InferencePlan
from rescueseg.models.unet.predictor import UNetPredictor
from rescueseg.records import ModelReference
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.storage import Storage
from tests.block_rig import make_campaign, read_maps
from tests.small_unet import small_unet
from tests.trivial_predictors import Blur

MODEL = ModelReference(generation=0, trainer="trivial", path="generations/0000/model", digest="a" * 64)
EARLIER_PLAN = json.loads(
    '{"model": {"generation": 0, "trainer": "monai_unet", "path": "generations/0000/model", "digest": "'
    + "a" * 64
    + '"}, "volume_id": "v", "volume_digest": "'
    + "b" * 64
    + '", "shape_zyx": [16, 64, 64], "spacing_um_zyx": [0.2, 0.1, 0.1], "n_classes": 1, "seed": 7, "inference": '
    '{"mc_samples": 3, "tta_symmetries": 2, "overlap": 0.25, "window_zyx": null, "block_voxels": 8000000, "map_dtype": "float16"}, '
    '"window_zyx": [8, 32, 32], "block_zyx": [16, 64, 64], "chunk_zyx": [16, 64, 64], "networks": 1}'
)
"""As version 67ca82d wrote it."""
asked: list[str] = []
"""With which ways predictors were loaded."""


class Chooses(Blur):
    """Its choice depends on the windows."""

    def choose_forward(self, windows: int, workers: int) -> str:
        return "compiled" if windows / workers > 10 else "channels_last"


def chooses(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Chooses:
    asked.append(config.forward)
    return Chooses(storage, config)


def blur(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Blur:
    return Blur(storage, config)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine, "choose_chunks", lambda shape: ((8, 16, 16), (8, 16, 16)))
    asked.clear()
    engine._predictor.cache_clear()
    engine._context.cache_clear()
    yield
    engine._predictor.cache_clear()
    engine._context.cache_clear()


@pytest.fixture
def job(tmp_path: Path) -> InferenceJob:
    campaign: Campaign = make_campaign(tmp_path / "campaign", shape=(16, 32, 64), block_voxels=20_000)
    return replace(InferenceJob.of(campaign, MODEL, "v"), load=chooses)


def test_the_digest_of_an_earlier_plan_stays_what_it_was() -> None:
    plan = InferencePlan.model_validate(EARLIER_PLAN)
    assert plan.to_json() == EARLIER_PLAN
    assert plan.digest == "446e60152c9d668bc32d2a3b382b1e6a1ddc275c3301c72ce539a5b6939a5298"
    chosen = plan.model_copy(update={"inference": InferenceConfig(forward="compiled")})
    assert chosen.identity == plan.identity == "be621a859bed8e1993e0f2133095316f29c0624287e735074bf42c465a89f0a1"
    assert chosen.digest != plan.digest
    assert InferencePlan.model_validate(chosen.to_json()) == chosen


def test_the_choice_is_made_for_windows_and_workers_and_kept_in_the_plan(job: InferenceJob) -> None:
    assert len(make_plan(job).grid) > 10
    assert make_plan(job).inference.forward == "compiled"
    assert make_plan(replace(job, workers=20)).inference.forward == "channels_last"
    assert make_plan(replace(job, load=blur)).inference.forward == "eager"


def test_blocks_are_computed_in_the_way_of_the_plan(job: InferenceJob) -> None:
    infer(job)
    assert asked == ["auto", "compiled"]


def test_a_way_that_somebody_names_wins_over_that_of_the_plan(job: InferenceJob) -> None:
    job.maps.prepare(make_plan(job), job.classes)
    asked.clear()
    named = replace(job, inference=job.inference.model_copy(update={"forward": "eager"}))
    infer(named)
    assert set(asked) == {"eager"}
    plan = job.maps.plan()
    assert plan is not None
    assert plan.inference.forward == "compiled", "the maps stay those of their plan"


def test_nothing_is_chosen_for_maps_that_were_begun(job: InferenceJob, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = job.maps.prepare(make_plan(job), job.classes)
    monkeypatch.setattr(engine, "forward_of", lambda *_: pytest.fail("chosen again"))
    assert make_plan(job) == begun


def test_maps_that_an_earlier_plan_began_go_on_by_it(job: InferenceJob) -> None:
    earlier = job.maps.prepare(make_plan(replace(job, load=blur)), job.classes)
    infer(job)
    assert job.maps.plan() == earlier
    assert asked == ["auto", "eager"]


@pytest.mark.parametrize(("setting", "way"), [("auto", "eager"), ("channels_last", "channels_last")])
def test_a_few_boxes_are_computed_eagerly_unless_a_person_says_otherwise(
    job: InferenceJob, setting: str, way: str
) -> None:
    job = replace(job, inference=job.inference.model_copy(update={"forward": setting}))
    assert len(list(predict_boxes(job, [Box((0, 0, 0), (4, 8, 8))]))) == 1
    assert asked == [way]


def tiny_unet(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> UNetPredictor:
    return small_unet(config, (8, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["channels_last", "compiled"])
def test_two_workers_give_the_bytes_of_one_process(way: str, tmp_path: Path) -> None:
    maps = []
    for workers in (1, 2):
        campaign = make_campaign(tmp_path / str(workers), shape=(16, 32, 64), block_voxels=20_000, forward=way)
        job = replace(InferenceJob.of(campaign, MODEL, "v"), load=tiny_unet)
        with open_cluster(ClusterConfig(workers=workers)) if workers > 1 else nullcontext() as client:
            infer(job, client)
        maps.append(read_maps(campaign))
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(maps[1][quantity], maps[0][quantity])
