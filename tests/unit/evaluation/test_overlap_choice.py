"""The overlap of windows: the least that costs no Dice on the validation boxes, chosen once for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from distributed import Client

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.evaluation.overlap_choice import choose_overlap
from rescueseg.geometry import Box
from rescueseg.inference.engine import InferenceJob, infer_volume
from rescueseg.inference.maps import VolumeMaps
from rescueseg.inference.overlap import CHOSEN_OVERLAP, settled_inference
from rescueseg.models.predictor import PredictorFactory
from rescueseg.queue.store import make_queue
from rescueseg.records import Holdout, HoldoutBox, ModelReference, Part
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests import trivial_predictors

MODEL = ModelReference(generation=0, trainer="trivial", path="generations/0000/model", digest="a" * 64)
SHAPE = (8, 128, 400)
VALIDATION, TEST = Box((0, 32, 32), (8, 24, 24)), Box((0, 80, 300), (8, 24, 24))
"""Wider than a window, so that windows meet in them along y and x."""


def make_campaign(folder: Path, shape: tuple[int, int, int] = SHAPE, empty: bool = False, **inference: Any) -> Campaign:
    settings: dict[str, Any] = {"mc_samples": 1, "tta_symmetries": 1, "block_voxels": 10**9, **inference}
    campaign = Campaign.create(
        str(folder / "campaign"),
        check_config({"name": "n", "classes": ["a"], "inference": settings, "cluster": {"workers": 1}}),
    )
    make_queue(campaign)
    bright = np.random.default_rng(0).random(shape) < 0.5
    truth = bright & (not empty)
    truth[TEST.slices] = ~bright[TEST.slices]  # whoever looked at the test box would find nothing good
    tifffile.imwrite(folder / "image.tif", np.where(bright, 200, 10).astype(np.uint8))
    tifffile.imwrite(folder / "truth.tif", truth.astype(np.uint8))
    files = str(folder / "image.tif"), str(folder / "truth.tif")
    import_volume(campaign, VolumeImport(files[0], volume_id="v", spacing=(0.2, 0.1, 0.1), truth=files[1]))
    parts: list[tuple[Box, Part]] = [(VALIDATION, "validation")]
    parts += [(TEST, "test")] if Box((0, 0, 0), shape).contains(TEST) else []
    boxes = tuple(HoldoutBox(volume_id="v", box=box, part=part, stratum="typical") for box, part in parts)
    campaign.freeze_holdout(Holdout(boxes=boxes, guard_zyx=(0, 1, 1)))
    return campaign


@pytest.mark.parametrize(
    ("load", "overlap"),
    [
        (trivial_predictors.cropped_by_0, 0.0625),
        (trivial_predictors.cropped_by_1, 0.125),
        (trivial_predictors.cropped_by_2, 0.25),
    ],
)
def test_it_is_the_least_that_costs_no_dice(load: PredictorFactory, overlap: float, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    tried: list[tuple[int, int]] = []
    choose_overlap(campaign, MODEL, progress=lambda *counts: tried.append(counts), load=load)
    chosen = campaign.generation(0).read(CHOSEN_OVERLAP)
    assert chosen is not None
    assert chosen.overlap == overlap
    assert [(t.overlap, t.windows) for t in chosen.trials] == [(0.25, 11 * 33), (0.0625, 9 * 27), (0.125, 9 * 29)]
    assert len(tried) == len([t for t in chosen.trials if t.dice is not None]) == (2 if overlap == 0.0625 else 3)
    assert chosen.trials[0].dice == 1
    infer_volume(campaign, MODEL, "v", load=load)
    plan = VolumeMaps(campaign.generation(0), "v").plan()
    assert plan is not None
    assert plan.inference.overlap == overlap


def test_it_is_chosen_once_on_workers_as_here(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:  # type: ignore[no-untyped-call]
        choose_overlap(campaign, MODEL, client, load=trivial_predictors.cropped_by_1)
    assert settled_inference(campaign, MODEL).overlap == 0.125
    choose_overlap(campaign, MODEL, load=trivial_predictors.cropped_by_0)
    assert settled_inference(campaign, MODEL).overlap == 0.125


def test_another_model_of_the_generation_has_its_own(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    choose_overlap(campaign, MODEL, load=trivial_predictors.cropped_by_0)
    other = MODEL.model_copy(update={"digest": "b" * 64})
    assert settled_inference(campaign, other).overlap == 0.25
    choose_overlap(campaign, other, load=trivial_predictors.cropped_by_1)
    assert settled_inference(campaign, other).overlap == 0.125


def test_what_the_settings_name_holds(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, overlap=0.5)
    choose_overlap(campaign, MODEL, load=trivial_predictors.cropped_by_0)
    assert campaign.generation(0).read(CHOSEN_OVERLAP) is None
    assert InferenceJob.of(campaign, MODEL, "v").inference.overlap == 0.5


def test_maps_that_were_begun_without_a_choice_go_on(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    first = infer_volume(campaign, MODEL, "v", load=trivial_predictors.cropped_by_0)
    choose_overlap(campaign, MODEL, load=trivial_predictors.cropped_by_0)
    assert settled_inference(campaign, MODEL).overlap == 0.25
    assert infer_volume(campaign, MODEL, "v", load=trivial_predictors.cropped_by_0) == first


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shape": (8, 64, 100)}, "trials take 21 windows, and could save 5"),
        ({"empty": True}, "the validation boxes hold nothing"),
    ],
)
def test_it_stays_a_quarter_where_nothing_can_be_gained(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, **options)
    choose_overlap(campaign, MODEL, load=trivial_predictors.cropped_by_0)
    chosen = campaign.generation(0).read(CHOSEN_OVERLAP)
    assert chosen is not None
    assert (chosen.overlap, chosen.reason) == (0.25, why)
