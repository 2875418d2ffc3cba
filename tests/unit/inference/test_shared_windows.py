"""Windows at the borders of blocks: computed once, with the maps that each block on its own would give."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.campaign import Campaign
from rescueseg.config import ClusterConfig
from rescueseg.geometry import Box, partition
from rescueseg.inference import boxes, engine
from rescueseg.inference.maps import VolumeMaps
from rescueseg.inference.shared_windows import SharedWindows, new_run
from rescueseg.models.predictor import Group
from rescueseg.randomness import window_key
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.volumes.normalise import normalise
from tests import trivial_predictors
from tests.block_rig import MODEL, make_campaign, read_maps


class Counting(trivial_predictors.Blur):
    """Remembers the keys of the windows that it was given."""

    def __init__(self, campaign: Campaign) -> None:
        super().__init__(campaign.storage, campaign.config.inference)
        self.keys: list[int] = []

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        self.keys += keys
        return super().members(windows, keys)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine, "choose_chunks", lambda shape: ((8, 16, 16), (8, 16, 16)))
    monkeypatch.setattr(boxes, "BATCH_VOXELS", 3 * 8 * 16 * 16)
    engine._predictor.cache_clear()
    engine._context.cache_clear()
    yield
    engine._predictor.cache_clear()
    engine._context.cache_clear()


def infer(campaign: Campaign, **options: Any) -> Counting:
    predictor = Counting(campaign)
    engine.infer_volume(campaign, MODEL, "v", load=lambda *_: predictor, **options)
    return predictor


def shared_folder(campaign: Campaign) -> Path:
    return Path(campaign.storage.path("generations/0000/maps/v.shared"))


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    campaign = make_campaign(tmp_path_factory.mktemp("one") / "campaign")
    engine.infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur)
    return read_maps(campaign)


def assert_equal(campaign: Campaign, expected: dict[str, np.ndarray]) -> None:
    for quantity, values in read_maps(campaign).items():
        assert np.array_equal(values, expected[quantity]), quantity


@pytest.mark.parametrize("block_voxels", [10_000, 40_000])
def test_each_window_is_computed_once(tmp_path: Path, block_voxels: int, one_block: dict[str, np.ndarray]) -> None:
    campaign = make_campaign(tmp_path / "campaign", block_voxels=block_voxels)
    predictor = infer(campaign)
    plan = VolumeMaps(campaign.generation(0), "v").plan()
    assert plan is not None
    assert sum(len(list(plan.grid.touching(block))) for block in plan.blocks) > 1.2 * len(plan.grid)
    assert len(predictor.keys) == len(set(predictor.keys)) == len(plan.grid)
    assert_equal(campaign, one_block)
    assert not shared_folder(campaign).exists()


def test_windows_of_one_value_are_computed_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the volume is empty, as around a tissue; blocks and batches do not change that."""
    maps = []
    for name, block_voxels, batch in [("one", 10**9, 1), ("many", 20_000, 3 * 8 * 16 * 16)]:
        monkeypatch.setattr(boxes, "BATCH_VOXELS", batch)
        campaign = make_campaign(tmp_path / name, block_voxels=block_voxels)
        array = zarr.open_array(campaign.volumes.image_url("v") + "/0", mode="r+")
        array[..., 100:] = 7
        predictor = infer(campaign)
        plan = VolumeMaps(campaign.generation(0), "v").plan()
        assert plan is not None
        empty = [index for index in range(len(plan.grid)) if plan.grid.box(index).offset_zyx[2] >= 100]
        assert len(predictor.keys) == len(set(predictor.keys)) == len(plan.grid) - len(empty) + 1
        maps.append(read_maps(campaign))
        window = normalise(np.full((1, 8, 16, 16), 7, np.uint8), campaign.volumes.record("v").normalisation)
        members = list(predictor.members(window[None], [window_key(5, "v", 2**62)]))
        expected = np.mean([member["probability"][0].numpy() for _, member in members], axis=0)
        found = maps[-1]["probability"][:, 4:16, 8:32, 120:]
        np.testing.assert_allclose(found, np.broadcast_to(expected[:, :1, :1, :1], found.shape), atol=1e-6)
    for quantity, values in maps[0].items():
        assert np.array_equal(values, maps[1][quantity]), quantity


def test_what_is_lost_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_block: dict[str, np.ndarray]
) -> None:
    """Some files are missing, some torn, when they are needed."""
    take = SharedWindows.take

    def damage(shared: SharedWindows, block: int, window: int) -> Any:
        file = shared._file(block, window)
        if window % 3 == 0:
            file.unlink(missing_ok=True)
        elif window % 3 == 1 and file.exists():
            file.write_bytes(file.read_bytes()[:200])
        return take(shared, block, window)

    monkeypatch.setattr(SharedWindows, "take", damage)
    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    predictor = infer(campaign)
    assert len(predictor.keys) > len(set(predictor.keys))
    assert_equal(campaign, one_block)


def test_a_disk_that_is_full_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_block: dict[str, np.ndarray]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rescueseg.inference.shared_windows.np.save", full)
    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    infer(campaign)
    assert_equal(campaign, one_block)
    assert not shared_folder(campaign).exists()


@pytest.mark.parametrize(("spare", "kept"), [(-1, False), (10**6, True)])
def test_nothing_is_kept_where_the_maps_may_need_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_block: dict[str, np.ndarray], spare: int, kept: bool
) -> None:
    needed = 20 * 40 * 200 * (3 + 4) * 4  # three channels of probabilities and four maps in float32
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        "rescueseg.inference.shared_windows.shutil.disk_usage", lambda _: usage._replace(free=needed + spare)
    )
    saved: list[int] = []
    save = np.save
    monkeypatch.setattr("rescueseg.inference.shared_windows.np.save", lambda *a: saved.append(a[1].nbytes) or save(*a))
    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    infer(campaign)
    assert bool(saved) == kept
    assert_equal(campaign, one_block)


def test_a_run_that_was_cut_off_leaves_nothing_for_the_next(tmp_path: Path, one_block: dict[str, np.ndarray]) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    with pytest.raises(Killed):
        infer(campaign, progress=kill)
    left = [file for file in shared_folder(campaign).rglob("*") if file.is_file()]
    assert left
    for file in left:  # as a power cut may tear them
        np.save(file, np.zeros_like(np.load(file)))
    infer(campaign)
    assert_equal(campaign, one_block)
    assert not shared_folder(campaign).exists()


def test_a_block_needs_nothing_once_it_is_done(tmp_path: Path) -> None:
    shared = SharedWindows(tmp_path / "run", (4, 8, 20), (4, 8, 8), lambda block: block == 1)
    part = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    for block in range(3):
        shared.keep(block, 5, part)
    assert [shared.has(block, 5) for block in range(3)] == [True, False, True]
    assert np.array_equal(shared.take(2, 5), part)  # type: ignore[arg-type]
    shared.forget(2)
    assert shared.take(2, 5) is None
    assert not (tmp_path / "run" / "000002").exists()
    new_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(volume=st.tuples(*[st.integers(1, 30)] * 3), block=st.tuples(*[st.integers(1, 12)] * 3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_reaches_into_the_blocks_that_share_a_voxel_with_it(
    volume: Any, block: Any, data: st.DataObject
) -> None:
    start = tuple(data.draw(st.integers(-5, n - 1)) for n in volume)
    window = Box(start, tuple(data.draw(st.integers(max(1, 1 - s), 20)) for s in start))
    shared = SharedWindows(Path("unused"), volume, block, lambda number: False)
    expected = [(i, b) for i, b in enumerate(partition(volume, block)) if b.intersects(window)]
    assert shared.blocks_at(window) == expected


def test_blocks_are_handed_out_in_a_row_for_each_worker() -> None:
    for count, workers in [(7, 3), (1, 4), (0, 2), (6, 2), (5, 5)]:
        blocks = list(range(10, 10 + count))
        assert sorted(engine.spread(blocks, workers)) == blocks
    assert engine.spread([0, 1, 2, 3, 4, 5], 2) == [0, 3, 1, 4, 2, 5]


def test_no_two_blocks_are_computed_at_a_time_in_a_process(tmp_path: Path, one_block: dict[str, np.ndarray]) -> None:
    """Several threads of a worker have a block each: while one is computed, others read and write."""
    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    computing, most = Semaphore(1), []

    class Alone(trivial_predictors.Blur):
        def members(self, windows: np.ndarray, keys: Sequence[int]) -> Any:
            alone = computing.acquire(blocking=False)
            most.append(alone)
            time.sleep(0.001)
            yield from super().members(windows, keys)
            if alone:
                computing.release()

    predictor = Alone(campaign.storage, campaign.config.inference)
    job = replace(engine.InferenceJob.of(campaign, MODEL, "v"), load=lambda *_: predictor)
    plan = job.maps.prepare(engine.make_plan(job), job.classes)
    root = job.maps.shared_windows()
    assert root is not None
    run = new_run(root)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda index: engine.run_block(job, plan.digest, run, index), range(len(plan.blocks))))
    assert all(most)
    engine.infer(job)
    assert_equal(campaign, one_block)


def test_two_workers_of_which_one_is_killed_give_the_bytes_of_one(
    tmp_path: Path, one_block: dict[str, np.ndarray]
) -> None:
    """The blocks are no divisors of the volume, and each is one whole shard of every map."""
    campaign = make_campaign(tmp_path / "campaign", block_voxels=20_000)
    with open_cluster(ClusterConfig(workers=2)) as client:
        engine.infer_volume(campaign, MODEL, "v", client=client, load=trivial_predictors.dies_once)
    assert Path(campaign.storage.path("died")).exists()
    plan = VolumeMaps(campaign.generation(0), "v").plan()
    assert plan is not None
    assert any(n % b for n, b in zip(plan.shape_zyx, plan.block_zyx, strict=True))
    for quantity in plan.quantities:
        shards = VolumeMaps(campaign.generation(0), "v").open(quantity).shards
        assert shards is not None
        assert tuple(shards[-3:]) == plan.block_zyx, "a block ends inside a shard"
    assert_equal(campaign, one_block)
    assert not shared_folder(campaign).exists()


def test_a_predictor_may_use_its_memory_again(tmp_path: Path, one_block: dict[str, np.ndarray]) -> None:
    """Members of NumPy, all in the same array."""

    class Reusing(trivial_predictors.Blur):
        def members(self, windows: np.ndarray, keys: Sequence[int]) -> Any:
            memory: np.ndarray | None = None
            for group, member in super().members(windows, keys):
                memory = np.empty_like(member["probability"].numpy()) if memory is None else memory
                memory[...] = member["probability"].numpy()
                yield group, {"probability": memory}
            assert memory is not None
            memory[...] = 7

    campaign = make_campaign(tmp_path / "campaign")
    predictor = Reusing(campaign.storage, campaign.config.inference)
    engine.infer_volume(campaign, MODEL, "v", load=lambda *_: predictor)
    assert_equal(campaign, one_block)


def test_only_the_last_few_values_are_kept(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "campaign")
    predictor = Counting(campaign)
    job = replace(engine.InferenceJob.of(campaign, MODEL, "v"), load=lambda *_: predictor)
    statistics = boxes.WindowStatistics(engine.make_plan(job), predictor)
    windows = [np.full((1, 8, 16, 16), value, np.float32) for value in range(20)]
    first = [statistics.of([window], [i])[0] for i, window in enumerate(windows)]
    assert len(statistics._of_one_value) <= 4
    again = statistics.of(windows[:3], [40, 41, 42])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=False)), "the same value, the same statistics"
