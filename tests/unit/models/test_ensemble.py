"""An ensemble of networks: one model folder, killed and resumed between and within its networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import TrainedModel, TrainingRequest, ignore_progress
from rescueseg.progress import StepProgress
from rescueseg.records import ModelReference, Snapshot
from tests.training_rig import BOXES, make_campaign, make_snapshot


class Killed(BaseException):
    pass


def train(
    campaign: Campaign,
    snapshot: Snapshot,
    work_dir: Path,
    progress: StepProgress = ignore_progress,
    warm_start: Path | None = None,
) -> TrainedModel:
    request = TrainingRequest(
        campaign.config, campaign.volumes, campaign.holdout(), snapshot, work_dir, seed=3, warm_start=warm_start
    )
    return get_trainer("monai_unet").train(request, progress)


def kill_at(step: int, steps: list[int]) -> StepProgress:
    def progress(now: int, metrics: Mapping[str, float]) -> None:
        steps.append(now)
        if now == step:
            raise Killed

    return progress


def test_a_network_that_is_done_takes_no_time_while_the_next_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("rescueseg.models.network_run.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def tick(*_: object) -> None:
        clock[0] += 1.0

    campaign = make_campaign(tmp_path, iterations=2, members=2)
    assert train(campaign, make_snapshot(campaign, BOXES), tmp_path / "work", tick).seconds == 4.0


def test_killed_within_its_second_network_it_resumes_to_the_same_model_with_a_map_of_its_own(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, iterations=6, members=2)
    snapshot = make_snapshot(campaign, BOXES)
    undisturbed = train(campaign, snapshot, tmp_path / "undisturbed")
    assert undisturbed.iterations == len(undisturbed.losses) == 12
    steps: list[list[int]] = [[], [], []]
    for step, run in zip((5, 11), steps, strict=False):
        with pytest.raises(Killed):
            train(campaign, snapshot, tmp_path / "work", kill_at(step, run))
    resumed = train(campaign, snapshot, tmp_path / "work", lambda step, _: steps[2].append(step))
    assert steps == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10, 11], [11, 12]]
    assert (resumed.digest, resumed.losses) == (undisturbed.digest, undisturbed.losses)
    assert [p.name for p in (tmp_path / "work").iterdir() if p.is_dir()] == ["model"]

    for file in resumed.path.iterdir():
        campaign.storage.write_bytes(f"model/{file.name}", file.read_bytes())
    model = ModelReference(generation=0, trainer="monai_unet", path="model", digest=resumed.digest)
    maps = infer_volume(campaign, model, "v0")
    assert maps.quantities[-1] == "ensemble_variance"
    variance = np.asarray(VolumeMaps(campaign.generation(0), "v0").open("ensemble_variance")[:], np.float32)
    assert variance.mean() > 1e-4, "networks of other seeds disagree"


def test_the_first_network_is_that_of_a_single_training_and_the_second_another(tmp_path: Path) -> None:
    import safetensors.numpy

    single, pair = (make_campaign(tmp_path / n, iterations=2, members=m) for n, m in (("single", 1), ("pair", 2)))
    alone = train(single, make_snapshot(single, BOXES), tmp_path / "a")
    both = train(pair, make_snapshot(pair, BOXES), tmp_path / "b")
    weights = safetensors.numpy.load_file(alone.path / "model.safetensors")
    joined = safetensors.numpy.load_file(both.path / "model.safetensors")
    assert len(joined) == 2 * len(weights)
    assert all(np.array_equal(joined[f"member0.{n}"], w) for n, w in weights.items())
    assert any(not np.array_equal(joined[f"member1.{n}"], w) for n, w in weights.items())


def test_an_ensemble_starts_from_a_single_model(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "single", iterations=30)
    first = train(campaign, make_snapshot(campaign, BOXES), tmp_path / "first")
    pair = make_campaign(tmp_path / "pair", iterations=3, members=2)
    warm = train(pair, make_snapshot(pair, BOXES), tmp_path / "warm", warm_start=first.path)
    cold = train(pair, make_snapshot(pair, BOXES), tmp_path / "cold")
    for member in (slice(0, 3), slice(3, 6)):
        means = [np.mean([e["loss"] for e in model.losses[member]]) for model in (warm, cold)]
        assert means[0] < 0.8 * means[1]
