"""What was stored of the maps is what is read: any damage is one error that names the file, and never zero."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.errors import StorageError
from rescueseg.inference import engine
from rescueseg.inference.engine import infer_volume
from rescueseg.inference.map_check import check_maps
from rescueseg.inference.maps import VolumeMaps
from tests import trivial_predictors
from tests.block_rig import MODEL, make_campaign
from tests.unit.volumes.test_damaged_images import DAMAGES, change, flip

SHARD, MARKER = "probability/0/c/1/0/0/1", "generations/0000/maps/v.blocks/000001.json"


@pytest.fixture(scope="module")
def inferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a campaign with the maps of a volume in several blocks."""
    folder = tmp_path_factory.mktemp("inferred") / "c"
    patch = pytest.MonkeyPatch()
    patch.setattr(engine, "choose_chunks", lambda shape: ((8, 16, 16), (8, 16, 16)))
    campaign = make_campaign(folder, block_voxels=60_000)
    assert infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur).blocks == 4
    patch.undo()
    engine._predictor.cache_clear()
    engine._context.cache_clear()
    return folder


@pytest.fixture
def maps(inferred: Path, tmp_path: Path) -> VolumeMaps:
    shutil.copytree(inferred, tmp_path / "c")
    return VolumeMaps(Campaign.open(str(tmp_path / "c")).generation(0), "v")


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    yield
    engine._predictor.cache_clear()
    engine._context.cache_clear()


def place(maps: VolumeMaps, name: str) -> Path:
    return Path(maps.url, name)


def make_older(maps: VolumeMaps) -> None:
    """Make the maps those of an earlier version: its markers have no list of files."""
    storage = maps.generation.storage
    for name in storage.list("generations/0000/maps/v.blocks"):
        path = f"generations/0000/maps/v.blocks/{name}"
        marker = storage.read_json(path)
        del marker["files"]
        storage.write_json(path, marker)


def test_whole_maps_are_found_whole(maps: VolumeMaps) -> None:
    seen: list[tuple[int, int]] = []
    assert check_maps(maps, lambda done, total: seen.append((done, total))) == []
    assert seen == [(n, 4) for n in range(1, 5)]
    make_older(maps)
    assert check_maps(maps) == []
    assert np.asarray(maps.open("probability")[:]).sum(axis=0) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_one_error(maps: VolumeMaps, damage: str) -> None:
    first = np.asarray(maps.open("probability")[:, :, :, :4])
    DAMAGES[damage](place(maps, SHARD))
    np.testing.assert_array_equal(maps.open("probability")[:, :, :, :4], first, err_msg="the other shards are whole")
    with pytest.raises(StorageError, match="damaged") as caught:
        maps.open("probability")[:]
    assert caught.value.where == str(place(maps, SHARD))
    assert [error.where for error in check_maps(maps)] == [str(place(maps, SHARD))]


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, partial(Path.write_bytes, data=b""), partial(flip, count=3), partial(change, fill_value=1.0)],
    ids=["deleted", "emptied", "flipped", "fill value"],
)
@pytest.mark.parametrize("older", [False, True])
def test_damaged_metadata_are_one_error(maps: VolumeMaps, damage: Callable[[Path], None], older: bool) -> None:
    path = place(maps, "probability/0/zarr.json")
    if older:
        make_older(maps)
    damage(path)
    with pytest.raises(StorageError, match="damaged") as caught:
        maps.open("probability")
    assert caught.value.where == str(path)
    assert str(path) in [error.where for error in check_maps(maps)]


@pytest.mark.parametrize("name", [MARKER, "generations/0000/maps/v.inference.json"])
def test_a_lost_record_is_one_error(maps: VolumeMaps, name: str) -> None:
    path = Path(maps.generation.storage.path(name))
    path.unlink()
    with pytest.raises(StorageError) as caught:
        maps.open("probability")[:]
    assert caught.value.where == str(path)
    assert [error.where for error in check_maps(maps)] == [str(path)]


def test_the_marker_of_another_block_is_refused(maps: VolumeMaps) -> None:
    path = Path(maps.generation.storage.path(MARKER))
    shutil.copyfile(path.with_name("000002.json"), path)
    with pytest.raises(StorageError, match="another block"):
        maps.open("probability")[:]
    assert [error.where for error in check_maps(maps)] == [str(path)]


def test_another_record_of_the_maps_is_found(maps: VolumeMaps) -> None:
    reference = maps.reference()
    assert reference is not None
    maps.finish(reference.model_copy(update={"digest": "0" * 64}))
    assert [Path(error.where).name for error in check_maps(maps)] == ["v.json"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_voxels_of_earlier_versions_are_held_against_the_digest_of_their_block(
    maps: VolumeMaps, damage: str
) -> None:
    make_older(maps)
    DAMAGES[damage](place(maps, SHARD))
    errors = check_maps(maps)
    assert len(errors) == 1
    assert errors[0].where in (maps.url, str(place(maps, SHARD)))


def test_blocks_that_are_done_are_checked_before_the_maps_are(maps: VolumeMaps) -> None:
    storage = maps.generation.storage
    storage.remove("generations/0000/maps/v.json")
    storage.remove(MARKER)
    place(maps, SHARD).unlink()
    assert check_maps(maps) == [], "that block is computed again"
    place(maps, "probability/0/c/1/0/0/2").unlink()
    assert [error.where for error in check_maps(maps)] == [str(place(maps, "probability/0/c/1/0/0/2"))]


def test_a_block_is_on_the_disk_before_its_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "choose_chunks", lambda shape: ((8, 16, 16), (8, 16, 16)))
    synced: list[str] = []
    original = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), original(fd))
    )
    campaign = make_campaign(tmp_path / "c", block_voxels=60_000)
    infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur)
    maps, folder = VolumeMaps(campaign.generation(0), "v"), f"{campaign.url}/generations/0000/maps"
    plan = next(i for i, path in enumerate(synced) if path.startswith(f"{folder}/.v.inference.json."))
    for path in Path(maps.url).rglob("zarr.json"):
        assert str(path) in synced[:plan]
    for index in range(4):
        marker = next(i for i, path in enumerate(synced) if path.startswith(f"{folder}/v.blocks/.{index:06d}.json."))
        files = [
            p
            for p in Path(maps.url).rglob("*")
            if p.is_file() and "c" in p.parts and p.parts[-3:] == ("0", "0", str(index))
        ]
        assert files
        for path in files:
            assert {str(path), *(str(p) for p in path.parents if p.is_relative_to(maps.url))} <= set(synced[:marker])


def test_inference_on_a_damaged_image_is_one_error(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path / "c")
    shard = next(p for p in Path(campaign.volumes.image_url("v"), "0/c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(StorageError, match="damaged") as caught:
        infer_volume(campaign, MODEL, "v", load=trivial_predictors.blur)
    assert caught.value.where == str(shard)
