"""The block engine: same maps for any blocks and workers, resumable, clear errors."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import dump_config
from rescueseg.config import ClusterConfig, check_config
from rescueseg.errors import ConfigError, InferenceError, StorageError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.inference import boxes, engine, maps
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.maps import QUANTITIES, VolumeMaps
from rescueseg.models.registry import load_predictor
from rescueseg.records import ModelReference
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.normalise import normalise
from rescueseg.volumes.opening import open_image
from tests import trivial_predictors
from tests.block_rig import MODEL, SHAPE, make_campaign, read_maps


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut even small volumes into several blocks; no predictor outlives its test."""
    monkeypatch.setattr(engine, "choose_chunks", lambda shape: ((8, 16, 16), (8, 16, 16)))
    engine._predictor.cache_clear()
    engine._context.cache_clear()
    yield
    engine._predictor.cache_clear()


def infer(campaign: Campaign, predictor: str = "blur", model: ModelReference = MODEL, **options: Any) -> Any:
    return infer_volume(campaign, model, "v", load=getattr(trivial_predictors, predictor), **options)


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Return the maps of the volume computed as a single block."""
    campaign = make_campaign(tmp_path_factory.mktemp("one") / "campaign")
    reference = infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur)
    assert reference.blocks == 1
    return read_maps(campaign)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for quantity in QUANTITIES:
        assert expected[quantity].std() > 0, f"{quantity} is constant: the test would prove nothing"
        np.testing.assert_allclose(found[quantity], expected[quantity], atol=1e-5, err_msg=quantity)


def test_many_blocks_give_the_maps_of_one_block(tmp_path: Path, one_block: dict[str, np.ndarray]) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    seen: list[tuple[int, int]] = []
    reference = infer(campaign, progress=lambda done, total: seen.append((done, total)))
    assert reference.blocks > 10
    assert seen == [(i, reference.blocks) for i in range(reference.blocks + 1)]
    assert_same(read_maps(campaign), one_block)


def test_batches_do_not_change_the_maps(
    tmp_path: Path, one_block: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "BATCH_VOXELS", 1)
    campaign = make_campaign(tmp_path / "campaign")
    infer(campaign)
    assert_same(read_maps(campaign), one_block)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    with open_cluster(ClusterConfig(workers=2)) as client:
        yield client


def test_one_dask_worker_gives_the_maps_of_one_block(tmp_path: Path, one_block: dict[str, np.ndarray]) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    with open_cluster(ClusterConfig(workers=1)) as client:
        assert infer(campaign, client=client).blocks > 2
    assert_same(read_maps(campaign), one_block)


def test_two_dask_workers_give_the_maps_of_one_block(
    tmp_path: Path, one_block: dict[str, np.ndarray], two_workers: Any
) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    assert infer(campaign, client=two_workers).blocks > 2
    assert_same(read_maps(campaign), one_block)


def test_an_error_crosses_the_process_border(tmp_path: Path, two_workers: Any) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    with pytest.raises(InferenceError, match="NaN") as caught:
        infer(campaign, "diverged", client=two_workers)
    assert "window" in caught.value.where


def test_a_killed_worker_is_survived(tmp_path: Path, one_block: dict[str, np.ndarray], two_workers: Any) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    infer(campaign, "dies_once", client=two_workers)
    assert Path(campaign.storage.path("died")).exists()
    assert_same(read_maps(campaign), one_block)


def test_a_block_that_kills_every_worker_is_one_clear_error(tmp_path: Path, two_workers: Any) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    two_workers.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    try:
        with pytest.raises(InferenceError, match="block_voxels"):
            infer(campaign, "dies_always", client=two_workers)
    finally:
        two_workers.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 3))
    assert VolumeMaps(campaign.generation(0), "v").reference() is None


def test_a_rerun_computes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    first = infer(campaign)
    before = read_maps(campaign)
    campaign.storage.remove("generations/0000/maps/v.blocks/000001.json")
    campaign.storage.remove("generations/0000/maps/v.json")
    computed: list[int] = []
    original = engine.run_block
    monkeypatch.setattr(engine, "run_block", lambda *a: computed.append(a[-1]) or original(*a))
    assert infer(campaign) == first
    assert computed == [1]
    assert infer(campaign) == first
    assert computed == [1]
    for quantity in QUANTITIES:
        assert np.array_equal(read_maps(campaign)[quantity], before[quantity])


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    undisturbed = infer(make_campaign(tmp_path / "undisturbed", block_voxels=60_000))
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    with pytest.raises(Killed):
        infer(campaign, progress=kill)
    with pytest.raises(InferenceError, match="not complete"):
        VolumeMaps(campaign.generation(0), "v").open("probability")
    seen: list[int] = []
    assert infer(campaign, progress=lambda done, total: seen.append(done)) == undisturbed
    assert seen[0] == 2


@pytest.mark.parametrize("suffix", [".json", ".inference.json", ".blocks", ".zarr"])
def test_maps_of_another_model_are_redone_even_if_their_removal_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    old = infer(campaign)
    remove = type(campaign.storage).remove

    def killed(storage: Any, relative: str) -> None:
        if relative.endswith(f"v{suffix}"):
            raise KeyboardInterrupt
        remove(storage, relative)

    other = MODEL.model_copy(update={"digest": "b" * 64})
    with monkeypatch.context() as patch:
        patch.setattr(type(campaign.storage), "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            infer(campaign, model=other)
    seen: list[int] = []
    new = infer(campaign, model=other, progress=lambda done, total: seen.append(done))
    assert seen[0] == 0
    assert new.model_digest == "b" * 64
    assert new.digest != old.digest
    assert infer(campaign).digest == old.digest


def test_other_blocks_in_the_settings_do_not_discard_maps(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    first = infer(campaign)
    settings = campaign.config.model_dump()
    settings["inference"]["block_voxels"] = 30_000
    campaign.storage.write_bytes("campaign.toml", dump_config(check_config(settings)).encode())
    assert infer(Campaign.open(campaign.url)) == first
    settings["inference"]["mc_samples"] = 3
    campaign.storage.write_bytes("campaign.toml", dump_config(check_config(settings)).encode())
    assert infer(Campaign.open(campaign.url)).digest != first.digest


def test_maps_are_valid_ome_zarr_with_one_shard_per_block(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000, map_dtype="float16")
    infer(campaign)
    for quantity in QUANTITIES:
        ome_zarr.validate(f"{VolumeMaps(campaign.generation(0), 'v').url}/{quantity}")
        array = VolumeMaps(campaign.generation(0), "v").open(quantity)
        assert array.dtype == np.float16
        assert array.shape == ((3, *SHAPE) if quantity == "probability" else SHAPE)
        assert array.shards is not None
        blocks = VolumeMaps(campaign.generation(0), "v").blocks()
        assert Box((0, 0, 0), array.shards[-3:]).clip(SHAPE) == blocks[0]
    assert sum(block.size for block in blocks) == np.prod(SHAPE)
    probability = np.asarray(VolumeMaps(campaign.generation(0), "v").open("probability")[:], np.float32)
    np.testing.assert_allclose(probability.sum(axis=0), 1, atol=2e-3)
    assert open_source(f"{VolumeMaps(campaign.generation(0), 'v').url}/mc_variance").spacing_um_zyx == (0.2, 0.1, 0.1)


def test_an_ensemble_has_one_more_map(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "ensemble", block_voxels=60_000)
    reference = infer(campaign, "ensemble")
    assert reference.quantities == (*QUANTITIES, "ensemble_variance")
    variance = np.asarray(VolumeMaps(campaign.generation(0), "v").open("ensemble_variance")[:])
    assert 0 < variance.mean() < 0.25
    ome_zarr.validate(f"{VolumeMaps(campaign.generation(0), 'v').url}/ensemble_variance")
    single = make_campaign(tmp_path / "single")
    infer(single)
    with pytest.raises(InferenceError, match="no map 'ensemble_variance'"):
        VolumeMaps(single.generation(0), "v").open("ensemble_variance")


def test_half_precision_maps_are_those_of_single_precision_rounded(
    tmp_path: Path, one_block: dict[str, np.ndarray]
) -> None:
    campaign = make_campaign(tmp_path / "campaign", map_dtype="float16")
    infer(campaign)
    for quantity, values in read_maps(campaign).items():
        assert np.array_equal(values, one_block[quantity].astype(np.float16))


@pytest.mark.parametrize("shape", [(5, 40, 40), (1, 12, 70), (3, 5, 6)])
def test_volumes_smaller_than_a_window(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    campaign = make_campaign(tmp_path / "campaign", shape)
    infer(campaign)
    found = read_maps(campaign)
    assert found["probability"].shape == (3, *shape)
    np.testing.assert_allclose(found["probability"].sum(axis=0), 1, atol=1e-5)


def test_nans_name_the_window(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    with pytest.raises(InferenceError) as caught:
        infer(campaign, "diverged")
    assert str(Box((12, 24, 184), (8, 16, 16))) in caught.value.where
    assert VolumeMaps(campaign.generation(0), "v").reference() is None


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        ("two_channels", "2 channels"),
        ("wrong_shape", "shape"),
        ("reserved", "outputs .probability, mc_variance. cannot be maps"),
        ("forgotten", "shape None, not .* as 'flow'"),
    ],
)
def test_a_predictor_that_does_not_fit_is_refused(tmp_path: Path, predictor: str, message: str) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    with pytest.raises(InferenceError, match=message):
        infer(campaign, predictor)


def test_a_full_disk_is_one_clear_error_and_the_rerun_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_block: dict[str, np.ndarray]
) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    infer_until_full(campaign, monkeypatch)
    assert VolumeMaps(campaign.generation(0), "v").reference() is None
    infer(campaign)
    assert_same(read_maps(campaign), one_block)


def infer_until_full(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = iter(range(1000))
    original = LocalStore.set

    async def full(self: LocalStore, key: str, value: Any) -> None:
        if "/c/" in key and next(writes) >= 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        await original(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", full)
        with pytest.raises(StorageError, match="disk is full"):
            infer(campaign)


def test_an_image_in_memory_gets_the_probabilities_of_its_maps(tmp_path: Path) -> None:
    class Still(trivial_predictors.Blur):
        def members(self, windows: np.ndarray, keys: Any) -> Any:
            return super().members(windows, [0] * len(keys))  # the same random numbers in every window

    campaign = make_campaign(tmp_path / "campaign", (12, 24, 50))
    predictor = Still(campaign.storage, campaign.config.inference)
    job = replace(engine.InferenceJob.of(campaign, MODEL, "v"), load=lambda *_: predictor)
    plan = engine.make_plan(job)
    volume, image = campaign.volumes.record("v"), open_image(campaign.volumes, "v")
    work = boxes.BoxWork(plan, Box((0, 0, 0), volume.shape_zyx))
    statistics = boxes.WindowStatistics(plan, predictor)
    stored = work.compute(work.read(image, volume.normalisation), statistics)["probability"].numpy()
    pixels = normalise(np.asarray(image[...]), volume.normalisation)
    own = boxes.predict_image(predictor, pixels, volume.spacing_um_zyx, plan.inference.overlap, "v")
    assert own.shape == (3, 12, 24, 50)
    assert own.std() > 0
    np.testing.assert_allclose(own, stored, atol=1e-6)


def test_unknown_or_missing_maps(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    with pytest.raises(InferenceError, match="no map 'entropy'"):
        VolumeMaps(campaign.generation(0), "v").open("entropy")
    with pytest.raises(InferenceError, match="not complete"):
        VolumeMaps(campaign.generation(0), "v").blocks()


def test_relocated_maps_stay_valid(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=60_000)
    first = infer(campaign)
    Path(campaign.url).rename(tmp_path / "elsewhere")
    moved = Campaign.open(str(tmp_path / "elsewhere"))
    seen: list[int] = []
    assert infer(moved, progress=lambda done, total: seen.append(done)) == first
    assert seen == [first.blocks]


def test_an_unknown_trainer_is_refused(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    with pytest.raises(ConfigError, match="trivial"):
        load_predictor(campaign.storage, MODEL, campaign.config.inference, "cpu")


def test_maps_module_needs_no_torch() -> None:
    code = "import sys, rescueseg.inference; assert not {'torch', 'monai'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert maps.QUANTITIES[0] == "probability"
