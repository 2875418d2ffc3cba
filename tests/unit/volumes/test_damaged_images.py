"""What was stored of an image is what is read: any damage is one error that names the file, and never black."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import StorageError
from rescueseg.records import VolumeRecord
from rescueseg.volumes import VolumeImport, checked_array, import_volume, open_image, open_truth, volume_import
from rescueseg.volumes.image_check import check_image, seal_image
from rescueseg.volumes.opening import open_levels
from rescueseg.volumes.shards import sum_of

SHAPE, SPACING = (40, 80, 300), (0.2, 0.1, 0.1)
SHARD = "0/c/0/0/0/1"


def make(url: str) -> Campaign:
    return Campaign.create(url, check_config({"name": "c", "classes": ["a"]}))


def voxels() -> np.ndarray:
    smooth = np.add.outer(np.arange(40), np.add.outer(np.arange(80), np.arange(300)))
    return (200 + smooth + np.random.default_rng(0).integers(0, 50, SHAPE)).astype(np.uint16)


def objects() -> np.ndarray:
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[5:20, 10:60, 20:120], numbers[22:35, 30:70, 200:290] = 7, 300
    return numbers


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a campaign with a volume of two shards, two levels, classes and numbered objects."""
    folder = tmp_path_factory.mktemp("imported")
    for name, array in (("v", voxels()), ("t", objects())):
        zarr.create_array(str(folder / f"{name}.zarr"), data=array)
    campaign = make(str(folder / "c"))
    truth = {"truth": str(folder / "t.zarr"), "truth_type": "instance"}
    import_volume(campaign, VolumeImport(str(folder / "v.zarr"), volume_id="v", spacing=SPACING, **truth))  # type: ignore[arg-type]
    return folder / "c"


@pytest.fixture
def campaign(imported: Path, tmp_path: Path) -> Campaign:
    shutil.copytree(imported, tmp_path / "c")
    return Campaign.open(str(tmp_path / "c"))


def place(campaign: Campaign, name: str) -> Path:
    return Path(campaign.volumes.image_url("v"), name)


def unlist(campaign: Campaign) -> VolumeRecord:
    """Make the volume one that an earlier version imported: without a list of its files."""
    record = campaign.volumes.record("v").model_copy(update={"files": ""})
    campaign.volumes.save(record)
    campaign.storage.remove("volumes/shards")
    return record


def flip(path: Path, count: int, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(seed).choice(len(data), min(count, len(data)), replace=False):
        data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    shutil.copyfile(path.with_name("0" if path.name != "0" else "1"), path)


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "cut": cut,
    "emptied": empty,
    "replaced": replace,
    **{f"{n} flipped": partial(flip, count=n) for n in (1, 20, 400)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_of_the_image_is_one_error(campaign: Campaign, damage: str) -> None:
    DAMAGES[damage](place(campaign, SHARD))
    image = open_image(campaign.volumes, "v")
    np.testing.assert_array_equal(image[0, :, :, :200], voxels()[:, :, :200], err_msg="the other shard is whole")
    for selection in ((0, 3, 4, 299), (..., slice(250, 300)), slice(None)):
        with pytest.raises(StorageError, match="damaged") as caught:
            image[selection]
        assert caught.value.where == str(place(campaign, SHARD))
    assert [error.where for error in check_image(campaign.volumes, "v")] == [str(place(campaign, SHARD))]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_of_the_truth_is_one_error(campaign: Campaign, damage: str) -> None:
    for name, instances in (("truth", False), ("truth_instances", True)):
        path = place(campaign, f"labels/{name}/0/c/0/0/1")
        DAMAGES[damage](path)
        with pytest.raises(StorageError, match="damaged") as caught:
            open_truth(campaign.volumes, "v", instances)[...]
        assert caught.value.where == str(path)


def test_a_damaged_coarser_level_is_one_error(campaign: Campaign) -> None:
    path = place(campaign, "1/c/0/0/0/0")
    path.unlink()
    fine, coarse, *_ = open_levels(campaign.volumes, campaign.volumes.record("v"))
    np.testing.assert_array_equal(fine[0], voxels())
    with pytest.raises(StorageError) as caught:
        coarse[...]
    assert caught.value.where == str(path)
    assert [error.where for error in check_image(campaign.volumes, "v")] == [str(path)]


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        empty,
        cut,
        lambda p: flip(p, 3),
        lambda p: change(p, fill_value=7),
        lambda p: change(p, data_type="int16"),
    ],
    ids=["deleted", "emptied", "cut", "flipped", "fill value", "type"],
)
@pytest.mark.parametrize("listed", [True, False])
def test_damaged_metadata_are_one_error(campaign: Campaign, damage: Callable[[Path], None], listed: bool) -> None:
    path = place(campaign, "0/zarr.json")
    if not listed:
        unlist(campaign)
    damage(path)
    with pytest.raises(StorageError, match="damaged") as caught:
        open_image(campaign.volumes, "v")
    assert caught.value.where == str(path)
    assert str(path) in [error.where for error in check_image(campaign.volumes, "v")]


def test_metadata_that_would_decode_to_other_voxels_are_refused(campaign: Campaign) -> None:
    """The byte order alone: the shape, the type and all checksums of the shards stay."""
    path = place(campaign, "0/zarr.json")
    path.write_text(path.read_text().replace('"little"', '"big"', 1))
    with pytest.raises(StorageError, match="damaged"):
        open_image(campaign.volumes, "v")


def test_a_lost_folder_is_one_error(campaign: Campaign) -> None:
    for _ in range(2):
        shutil.rmtree(place(campaign, ""), ignore_errors=True)
        for read in (open_image, open_truth):
            with pytest.raises(StorageError, match=r"zarr\.json.*missing"):
                read(campaign.volumes, "v")
        assert check_image(campaign.volumes, "v")
        unlist(campaign)


@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied", "another"])
def test_a_damaged_list_is_one_error(campaign: Campaign, damage: str) -> None:
    path = Path(campaign.storage.path("volumes/shards/v.json"))
    if damage == "another":
        data = campaign.storage.read_json("volumes/shards/v.json")
        del data[SHARD]
        campaign.storage.write_json("volumes/shards/v.json", data)
    else:
        DAMAGES[damage](path)
    with pytest.raises(StorageError) as caught:
        open_image(campaign.volumes, "v")
    assert caught.value.where == str(path)
    assert [error.where for error in check_image(campaign.volumes, "v")] == [str(path)]


def test_damage_after_the_first_reading_is_seen_as_well(campaign: Campaign) -> None:
    """A shard is not hashed at every reading; a file that changed is."""
    image, path = open_image(campaign.volumes, "v"), place(campaign, SHARD)
    before = image[0, :2, :2, 256:]
    flip(path, 1)
    with pytest.raises(StorageError, match="damaged"):
        image[0, :2, :2, 256:]
    flip(path, 1)
    np.testing.assert_array_equal(image[0, :2, :2, 256:], before)


def test_a_shard_is_hashed_once(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = checked_array._check
    monkeypatch.setattr(checked_array, "_check", lambda path, *rest: (hashed.append(path), original(path, *rest)))
    for _ in range(3):
        image = open_image(campaign.volumes, "v")
        assert image[0, 0, 0, 299] == voxels()[0, 0, 299]
    assert hashed.count(str(place(campaign, SHARD))) == 1


def test_a_file_that_is_none_of_the_image_is_not_read(tmp_path: Path) -> None:
    """Where the image is black, no shard is written: one that stands there is foreign."""
    black = voxels()
    black[..., 256:] = 0
    zarr.create_array(str(tmp_path / "v.zarr"), data=black)
    campaign = make(str(tmp_path / "c"))
    import_volume(campaign, VolumeImport(str(tmp_path / "v.zarr"), volume_id="v", spacing=SPACING))
    path = place(campaign, SHARD)
    assert not path.exists()
    assert check_image(campaign.volumes, "v") == []
    shutil.copyfile(path.with_name("0"), path)
    np.testing.assert_array_equal(open_image(campaign.volumes, "v")[0], black)
    assert [error.where for error in check_image(campaign.volumes, "v")] == [str(path)]


def test_the_list_names_every_file_with_its_size_and_digests(campaign: Campaign) -> None:
    folder = place(campaign, "")
    stored = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    listed = campaign.storage.read_json("volumes/shards/v.json")
    assert {name: tuple(entry) for name, entry in listed.items()} == {n: tuple(sum_of(d)) for n, d in stored.items()}
    assert {
        SHARD,
        "zarr.json",
        "1/c/0/0/0/0",
        "labels/truth/zarr.json",
        "labels/truth_instances/1/c/0/0/0",
    } <= listed.keys()


def test_everything_is_on_the_disk_before_the_record_is_written(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut at any moment leaves the volume whole or not there."""
    synced: list[str] = []
    original = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), original(fd))
    )
    campaign = make(str(tmp_path / "c"))
    synced.clear()
    sources = {name: str(imported.parent / f"{name}.zarr") for name in "vt"}
    import_volume(
        campaign, VolumeImport(sources["v"], volume_id="v", spacing=SPACING, truth=sources["t"], truth_type="instance")
    )
    part, volumes = f"{campaign.url}/volumes/.v.part", f"{campaign.url}/volumes"
    record = next(i for i, path in enumerate(synced) if path.startswith(f"{volumes}/.v.json."))
    table = next(i for i, path in enumerate(synced) if path.startswith(f"{volumes}/shards/.v.json."))
    folder = place(campaign, "")
    for path in [folder, *folder.rglob("*")]:
        written = f"{part}/{path.relative_to(folder)}".removesuffix("/.")
        assert written in synced[:table], f"{written} may be lost"
    moved = synced.index(volumes)
    assert max(synced.index(p) for p in synced if p.startswith(part)) < moved < table < record


def test_the_voxels_of_earlier_versions_are_held_against_their_digest(campaign: Campaign) -> None:
    unlist(campaign)
    seen: list[tuple[int, int]] = []
    assert check_image(campaign.volumes, "v", lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1] == len(seen)
    place(campaign, SHARD).unlink()
    assert open_image(campaign.volumes, "v")[0, 0, 0, 299] == 0, "nobody knows that there was one"
    assert place(campaign, "").name in check_image(campaign.volumes, "v")[0].where
    with pytest.raises(StorageError, match="not those that were imported"):
        seal_image(campaign.volumes, "v")
    assert campaign.volumes.record("v").files == ""


@pytest.mark.parametrize("name", ["1/c/0/0/0/0", "labels/truth/0/c/0/0/1", "labels/truth_instances/1/c/0/0/0"])
def test_what_follows_from_the_voxels_is_checked_in_images_of_earlier_versions(campaign: Campaign, name: str) -> None:
    unlist(campaign)
    place(campaign, name).unlink()
    assert check_image(campaign.volumes, "v")
    with pytest.raises(StorageError):
        seal_image(campaign.volumes, "v")


def test_a_shard_of_an_earlier_version_that_cannot_be_decoded_is_named(campaign: Campaign) -> None:
    unlist(campaign)
    for damage in (cut, empty, lambda path: flip(path, 400)):
        whole = place(campaign, SHARD).read_bytes()
        damage(place(campaign, SHARD))
        with pytest.raises(StorageError, match="damaged") as caught:
            open_image(campaign.volumes, "v")[0, ..., 100:]
        assert caught.value.where == str(place(campaign, SHARD))
        place(campaign, SHARD).write_bytes(whole)


def test_an_image_of_an_earlier_version_is_listed_once(campaign: Campaign) -> None:
    before = campaign.volumes.record("v")
    listed = campaign.storage.read_json("volumes/shards/v.json")
    unlist(campaign)
    assert seal_image(campaign.volumes, "v")
    assert campaign.volumes.record("v") == before
    assert campaign.storage.read_json("volumes/shards/v.json") == listed
    assert not seal_image(campaign.volumes, "v")
    place(campaign, SHARD).unlink()
    with pytest.raises(StorageError, match="missing"):
        open_image(campaign.volumes, "v")[...]


def test_an_import_that_fails_leaves_no_list(imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = make(str(tmp_path / "c"))
    monkeypatch.setattr(
        type(campaign.volumes), "save", lambda *_: (_ for _ in ()).throw(StorageError("the disk is full"))
    )
    with pytest.raises(StorageError, match="full"):
        import_volume(campaign, VolumeImport(str(imported.parent / "v.zarr"), volume_id="v", spacing=SPACING))
    assert not [p for p in Path(campaign.url, "volumes").rglob("*") if p.is_file()]


def test_a_shard_lost_while_it_is_imported_is_noticed(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = volume_import.measure

    def lose(level: Any, *args: Any) -> Any:
        Path(level.store.root if hasattr(level.store, "root") else level.store._store.root, SHARD).unlink()
        return original(level, *args)

    monkeypatch.setattr(volume_import, "measure", lose)
    campaign = make(str(tmp_path / "c"))
    with pytest.raises(StorageError, match="not what was just written"):
        import_volume(campaign, VolumeImport(str(imported.parent / "v.zarr"), volume_id="v", spacing=SPACING))


def test_equal_sizes_do_not_hide_another_shard(tmp_path: Path) -> None:
    """Noise cannot be compressed: all its shards have the same size and the same index."""
    noise = np.random.default_rng(0).integers(1, 255, (32, 64, 512), np.uint8)
    zarr.create_array(str(tmp_path / "v.zarr"), data=noise)
    campaign = make(str(tmp_path / "c"))
    import_volume(campaign, VolumeImport(str(tmp_path / "v.zarr"), volume_id="v", spacing=SPACING))
    one, other = place(campaign, "0/c/0/0/0/0"), place(campaign, SHARD)
    shutil.copyfile(one, other)
    with pytest.raises(StorageError, match="damaged"):
        open_image(campaign.volumes, "v")[...]


def test_remote_images_are_checked_too(imported: Path) -> None:
    settings = {"name": "c", "classes": ["a"], "database_url": "postgresql://nowhere/x"}
    campaign = Campaign.create("memory://damaged-images/c", check_config(settings))
    import_volume(campaign, VolumeImport(str(imported.parent / "v.zarr"), volume_id="v", spacing=SPACING))
    np.testing.assert_array_equal(open_image(campaign.volumes, "v")[0], voxels())
    assert check_image(campaign.volumes, "v") == []
    checked_array._checked.clear()
    path = campaign.storage.path("volumes/v.ome.zarr/" + SHARD)
    whole = campaign.storage.fs.cat_file(path)
    campaign.storage.fs.pipe_file(path, whole[:50] + b"?" + whole[51:])
    with pytest.raises(StorageError, match="damaged"):
        open_image(campaign.volumes, "v")[...]
    campaign.storage.fs.rm(path)
    with pytest.raises(StorageError, match="missing"):
        open_image(campaign.volumes, "v")[...]
    assert len(check_image(campaign.volumes, "v")) == 1
