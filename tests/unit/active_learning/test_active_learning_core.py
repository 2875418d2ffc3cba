"""Sampling, snapshot and query on real volumes and real maps, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.active_learning.candidates import score_candidates
from rescueseg.active_learning.strategies import choose_patches
from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.config import check_config
from rescueseg.geometry import Box, Patch
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import VolumeMaps
from rescueseg.randomness import random_generator
from rescueseg.records import AcceptedAnnotation, ModelReference
from rescueseg.sampling import starting_patches
from tests import trivial_predictors

MODEL = ModelReference(generation=0, trainer="trivial", path="generations/0000/model", digest="a" * 64)


def test_from_volume_to_queried_patches(tmp_path: Path) -> None:
    """Bright bars on a dark ground, in the right half: what is drawn is clear of the holdout all the way."""
    image = np.random.default_rng(0).normal(100, 5, (16, 96, 96))
    image[:, :, 60::6] += 100
    tifffile.imwrite(tmp_path / "bars.tif", image.astype(np.uint8))
    config = check_config(
        {"name": "bars", "classes": ["a", "b"], "inference": {"mc_samples": 2}, "cluster": {"workers": 1}}
    )
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "bars.tif"), volume_id="v", spacing=(0.2, 0.1, 0.1))
    )
    holdout = starting_patches.draw_holdout(campaign)
    assert len(starting_patches.holdout_tickets(campaign.volumes.records(), holdout)) == len(holdout.boxes)
    assert all(b.box.stop_zyx[2] > 60 for b in holdout.boxes if b.stratum in ("bright", "dense"))
    started = starting_patches.starting_patches(campaign)
    accepted = [
        AcceptedAnnotation(
            ticket_id=f"t{i}", volume_id="v", box=p.box, purpose="pool", generation=0, stratum=p.stratum,
            annotation_id=f"n{i}", version=1, labels=f"annotations/t{i}/d.npz", labels_digest="d", annotator="ann",
            tool="none", seconds=1.0, voxels_corrected=0,
        )
        for i, p in enumerate(started)
    ]  # fmt: skip
    items = make_snapshot(campaign, 0, accepted).items
    assert all(i.read_box == i.box.expand(holdout.guard_zyx).clip(image.shape) for i in items)

    infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur)
    boxes = starting_patches.candidate_boxes(campaign, "v", [Patch("v", p.box) for p in started])
    table = score_candidates(campaign.generation(0), {"v": boxes}, 2, campaign.volumes.shared_places())
    entropy = np.asarray(VolumeMaps(campaign.generation(0), "v").open("predictive_entropy")[:], dtype=float)
    np.testing.assert_allclose(
        table.scores["predictive_entropy"], [entropy[box.slices].mean() for box in boxes], rtol=1e-6
    )
    queried = choose_patches(config, "clasp_entropy", table, 0, random_generator(0, "query", 0))
    assert len(queried) == config.sampling.query_patches
    taken = [p.box for p in (*started, *queried)]
    assert not any(a.intersects(b) for i, a in enumerate(taken) for b in taken[:i])
    assert not any(a.intersects(b) for a in taken for b in holdout.guarded("v", campaign.volumes.shared_places()))


def test_faint_foreground_is_ranked_by_what_the_maps_hold(tmp_path: Path) -> None:
    """Maps are float16, as by default: of the background's probability nothing is left to tell 2e-5 from 2e-7."""
    image = np.full((8, 32, 64), 100, np.uint8)
    image[:, :, 32:] = 200
    tifffile.imwrite(tmp_path / "halves.tif", image)
    config = check_config(
        {"name": "halves", "classes": ["a", "b"], "inference": {"mc_samples": 1, "tta_symmetries": 1}}
    )
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(tmp_path / "halves.tif"), volume_id="v", spacing=(0.1, 0.1, 0.1))
    )
    infer_volume(campaign, MODEL, "v", load=trivial_predictors.faint)
    stored = VolumeMaps(campaign.generation(0), "v").open("probability")
    assert stored.dtype == np.float16
    assert (np.asarray(stored[0]) == 1).all()
    halves = [Box((0, 0, x), (8, 32, 32)) for x in (0, 32)]
    table = score_candidates(campaign.generation(0), {"v": halves}, 2, campaign.volumes.shared_places())
    assert table.foreground == pytest.approx([2e-7, 2e-5], rel=0.2)


@pytest.mark.parametrize("name", ["stardist_img3d", "plantseg_ovule_cells", "gonuclear_1135"])
def test_small_real_volumes_have_room(real_data: Path, tmp_path: Path, name: str) -> None:
    folder = real_data / name
    spacing = json.loads((folder / "meta.json").read_text())["voxel_size_um_zyx"]
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config({"name": "real", "classes": ["o"]}))
    volumes.import_volume(campaign, volumes.VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=spacing))
    holdout = starting_patches.draw_holdout(campaign)
    assert [b.part for b in holdout.all_boxes] == ["validation", "test"] * 8
    taken: list[Patch] = []
    for _ in range(3):
        more = starting_patches.starting_patches(campaign, 4, taken)
        assert len(more) == 4
        taken += [Patch("v", p.box) for p in more]
