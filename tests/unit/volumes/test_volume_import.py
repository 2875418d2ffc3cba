"""Importing into a campaign: what lands there, and that a refused import leaves nothing behind."""

from __future__ import annotations

import errno
import importlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.errors import (
    CampaignError,
    InvalidVolumeError,
    LabelError,
    MissingSpacingError,
    RescuesegError,
    StorageError,
    UnreadableVolumeError,
    VolumeError,
)
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.volumes import image_layout, ome_zarr, open_image, open_truth
from rescueseg.volumes import volume_import as module
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.normalise import LINEAR, with_linear
from rescueseg.volumes.volume_files import VolumeImport, default_id
from rescueseg.volumes.volume_import import import_volume
from tests.puncta import puncta

SPACING = (0.3, 0.1, 0.1)
SHAPE = (10, 40, 50)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)


def mask() -> np.ndarray:
    truth = np.zeros(SHAPE, np.uint8)
    truth[2:6, 10:20, 10:30] = 1
    truth[7:, :5] = 255
    return truth


def tiff(path: Path, voxels: np.ndarray) -> str:
    tifffile.imwrite(path, voxels, photometric="minisblack", metadata={"axes": "ZYX"})
    return str(path)


def contents(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture
def raw(tmp_path: Path) -> str:
    return tiff(tmp_path / "raw.tif", image())


def test_voxels_spacing_and_truth_arrive(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record = import_volume(
        campaign,
        VolumeImport(raw, spacing=SPACING, truth=tiff(tmp_path / "t.tif", mask())),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert campaign.volumes.record("raw") == record
    assert (record.shape_zyx, record.spacing_um_zyx, record.channels) == (SHAPE, SPACING, 1)
    assert (record.dtype, record.truth, record.source) == ("uint16", "semantic", "raw.tif")
    np.testing.assert_array_equal(open_image(campaign.volumes, "raw")[:], image()[np.newaxis])
    assert open_truth(campaign.volumes, "raw").dtype == np.uint8
    np.testing.assert_array_equal(open_truth(campaign.volumes, "raw")[:], mask())
    assert seen == [(step, 6) for step in range(1, 7)]
    ome_zarr.validate(campaign.volumes.image_url("raw"))
    assert open_source(campaign.volumes.image_url("raw")).spacing_um_zyx == SPACING


def test_instances_are_kept_and_become_one_class(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[1:4, 5:9, 5:9], numbers[5:8, 20:30, 20:30] = 1, 40_000
    record = import_volume(
        campaign, VolumeImport(raw, spacing=SPACING, truth=tiff(tmp_path / "t.tif", numbers), truth_type="instance")
    )
    assert record.truth == "instance"
    instances = open_truth(campaign.volumes, "raw", instances=True)
    assert instances.dtype == np.uint32
    np.testing.assert_array_equal(instances[:], numbers)
    np.testing.assert_array_equal(open_truth(campaign.volumes, "raw")[:], numbers > 0)
    ome_zarr.validate(campaign.volumes.image_url("raw"))


def test_channels_are_kept_and_scaled_each(campaign: Campaign, tmp_path: Path) -> None:
    two = np.stack([image(), image(1) // 100])
    array = ome_zarr.create_image(str(tmp_path / "in.ome.zarr"), ImageLayout(two.shape, two.dtype, SPACING))
    array[...] = two
    record = import_volume(campaign, VolumeImport(str(tmp_path / "in.ome.zarr")))
    assert record.channels == 2
    assert len(record.normalisation.per_channel) == 2
    np.testing.assert_array_equal(open_image(campaign.volumes, "in")[:], two)
    ome_zarr.validate(campaign.volumes.image_url("in"))


@pytest.mark.parametrize(("given_dtype", "stored"), [("float64", "float32"), ("bool", "uint8"), (">u2", "uint16")])
def test_types_are_stored_as_what_every_reader_knows(
    campaign: Campaign, tmp_path: Path, given_dtype: str, stored: str
) -> None:
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=(image() > 2000).astype(given_dtype), zarr_format=2)
    assert array.shape == SHAPE
    record = import_volume(campaign, VolumeImport(str(tmp_path / "a.zarr"), spacing=SPACING))
    assert record.dtype == stored
    assert open_image(campaign.volumes, "a").dtype == np.dtype(stored)


def test_the_same_import_again_changes_nothing(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    truth = tiff(tmp_path / "t.tif", mask())
    first = import_volume(campaign, VolumeImport(raw, spacing=SPACING, truth=truth))
    before = contents(campaign.url)
    assert import_volume(campaign, VolumeImport(raw, spacing=SPACING, truth=truth)) == first
    assert contents(campaign.url) == before


@pytest.mark.parametrize("change", ["voxels", "truth", "spacing", "shape", "domain"])
def test_another_import_under_the_same_name_is_refused(
    campaign: Campaign, raw: str, tmp_path: Path, change: str
) -> None:
    settings: dict[str, Any] = {"spacing": SPACING, "volume_id": "v"}
    import_volume(campaign, VolumeImport(raw, **settings))
    before, path = contents(campaign.url), raw
    if change == "voxels":
        other = image()
        other[0, 0, 0] += 1
        path = tiff(tmp_path / "b.tif", other)
    elif change == "shape":
        path = tiff(tmp_path / "b.tif", image()[:5])
    elif change == "truth":
        settings["truth"] = tiff(tmp_path / "t.tif", mask())
    else:
        settings[change] = (0.3, 0.1, 0.2) if change == "spacing" else "another"
    with pytest.raises(VolumeError, match="another volume 'v'"):
        import_volume(campaign, VolumeImport(path, **settings))
    assert contents(campaign.url) == before


def test_an_import_killed_before_its_record_is_built_anew(campaign: Campaign, raw: str) -> None:
    first = import_volume(campaign, VolumeImport(raw, spacing=SPACING))
    campaign.storage.remove("volumes/raw.json")
    stale = Path(campaign.volumes.image_url("raw")).with_name(".raw.part")
    stale.mkdir()
    (stale / "half").write_bytes(b"written")
    assert campaign.volumes.records() == []
    assert import_volume(campaign, VolumeImport(raw, spacing=SPACING)) == first
    assert not stale.exists()


def test_the_digest_follows_the_voxels_not_the_file_format(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    array = ome_zarr.create_image(str(tmp_path / "b.ome.zarr"), ImageLayout(SHAPE, np.uint16, SPACING))
    array[...] = image()
    first = import_volume(campaign, VolumeImport(raw, spacing=SPACING))
    assert import_volume(campaign, VolumeImport(str(tmp_path / "b.ome.zarr"))).digest == first.digest
    assert (
        import_volume(campaign, VolumeImport(tiff(tmp_path / "c.tif", image(3)), spacing=SPACING)).digest
        != first.digest
    )


def refused(campaign: Campaign, error: type[RescuesegError], match: str, path: str, **options: Any) -> None:
    """Assert that an import fails with one clear error and leaves the campaign as it was."""
    before = contents(campaign.url)
    with pytest.raises(error, match=match) as caught:
        import_volume(campaign, VolumeImport(path, **options))
    assert caught.value.todo
    assert contents(campaign.url) == before
    assert campaign.volumes.records() == []
    assert not [p for p in Path(campaign.url).rglob("*") if p.name.endswith(".part")]


def test_missing_spacing(campaign: Campaign, raw: str) -> None:
    refused(campaign, MissingSpacingError, "voxel size is not known", raw)


@pytest.mark.parametrize("spacing", [(0.3, 0.1), (0.3, 0.0, 0.1), (0.3, float("nan"), 0.1), (-1, 1, 1)])
def test_impossible_spacing(campaign: Campaign, raw: str, spacing: tuple[float, ...]) -> None:
    refused(campaign, MissingSpacingError, "is no voxel size", raw, spacing=spacing)


def test_an_unreadable_file(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"not a tiff")
    refused(campaign, UnreadableVolumeError, "cannot be read", str(tmp_path / "a.tif"), spacing=SPACING)


def test_a_file_damaged_in_its_middle(campaign: Campaign, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), compression="zlib", photometric="minisblack")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages[7].dataoffsets[0]
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    refused(campaign, UnreadableVolumeError, "cannot be read", str(path), spacing=SPACING)


def test_wrong_dimensionality(campaign: Campaign, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", image()[0])
    refused(campaign, InvalidVolumeError, "not a 3D image", str(tmp_path / "a.tif"), spacing=SPACING)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_located(campaign: Campaign, tmp_path: Path, bad: float) -> None:
    voxels = image().astype(np.float32)
    voxels[4, 5, 6] = bad
    path = tiff(tmp_path / "a.tif", voxels)
    refused(campaign, InvalidVolumeError, r"voxel \(4, 5, 6\)", path, spacing=SPACING)


@pytest.mark.parametrize("value", [2, 77, 254])
def test_truth_outside_the_classes(campaign: Campaign, raw: str, tmp_path: Path, value: int) -> None:
    truth = mask()
    truth[0, 0, 0] = value
    path = tiff(tmp_path / "t.tif", truth)
    refused(campaign, LabelError, f"labels hold {value}, which is no class", raw, spacing=SPACING, truth=path)


@pytest.mark.parametrize("value", [0.5, np.nan, -1.0])
def test_truth_that_is_no_number_of_a_class(campaign: Campaign, raw: str, tmp_path: Path, value: float) -> None:
    truth = mask().astype(np.float32)
    truth[0, 0, 0] = value
    path = tiff(tmp_path / "t.tif", truth)
    refused(campaign, LabelError, "no class", raw, spacing=SPACING, truth=path)
    refused(campaign, LabelError, "object number", raw, spacing=SPACING, truth=path, truth_type="instance")


def test_a_mask_of_0_and_255_is_not_taken_for_ignore(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    path = tiff(tmp_path / "t.tif", np.where(mask() == 1, 255, 0).astype(np.uint8))
    refused(campaign, LabelError, "only 0 and 255", raw, spacing=SPACING, truth=path)


def test_truth_of_another_shape(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    path = tiff(tmp_path / "t.tif", mask()[:, :-1])
    refused(campaign, LabelError, r"\(10, 39, 50\)", raw, spacing=SPACING, truth=path)


@pytest.mark.parametrize(
    "name", ["", "../evil", "a/b", "..", ".hidden", "a\\b", "a\0b", "/etc/passwd", "x" * 200, "a..b"]
)
def test_names_that_are_paths(campaign: Campaign, raw: str, name: str) -> None:
    refused(campaign, CampaignError, "no valid volume id", raw, spacing=SPACING, volume_id=name)


@pytest.mark.parametrize("writes", [0, 1, 4, 9])
def test_a_full_disk(
    campaign: Campaign, raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    import zarr.storage._local as local

    put, count = local._put, 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(*args, **kwargs)

    truth = tiff(tmp_path / "t.tif", mask())
    monkeypatch.setattr(local, "_put", full)
    refused(campaign, StorageError, "disk is full", raw, spacing=SPACING, truth=truth)
    monkeypatch.undo()
    import_volume(campaign, VolumeImport(raw, spacing=SPACING, truth=truth))


def test_a_full_disk_at_the_record(campaign: Campaign, raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full", todo="Free some space")

    monkeypatch.setattr(VolumeFolder, "save", full)
    with pytest.raises(StorageError):
        import_volume(campaign, VolumeImport(raw, spacing=SPACING))
    monkeypatch.undo()
    assert campaign.volumes.records() == []
    assert import_volume(campaign, VolumeImport(raw, spacing=SPACING)) == campaign.volumes.record("raw")


@settings(derandomize=True)
@given(st.text(max_size=80))
def test_a_default_name_is_always_safe(name: str) -> None:
    from rescueseg.campaign import check_id

    assert check_id(default_id(name), "volume id")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/cell 1.ome.tif", "cell-1"),
        ("a.nii.gz", "a"),
        ("b.h5:volumes/raw", "b"),
        ("s3://bucket/c.ome.zarr/", "c"),
        ("/d/../../etc.tif", "etc"),
    ],
)
def test_default_names(path: str, name: str) -> None:
    assert default_id(path) == name


def test_memory_does_not_follow_the_size_of_the_volume(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLAB_BYTES", 2**20)
    monkeypatch.setattr(image_layout, "CHUNK_ZYX", (16, 64, 64))
    monkeypatch.setattr(image_layout, "SHARD_ZYX", (16, 128, 128))
    monkeypatch.setattr(importlib.import_module("rescueseg.volumes.normalise"), "_SAMPLE_BOXES", 4)
    peaks = {}
    for depth in (31, 32, 128):  # the first is compared with no other volume
        voxels = np.zeros((depth, 256, 256), np.uint16)
        voxels[::7] = 300
        path = tiff(tmp_path / f"v{depth}.tif", voxels)
        steps: list[int] = []
        with zarr.config.set({"async.concurrency": 1}):  # one chunk at a time: how many overlap is a matter of chance
            tracemalloc.start()
            volume = VolumeImport(path, spacing=SPACING)
            import_volume(campaign, volume, lambda done, _, steps=steps: steps.append(done))  # type: ignore[misc]
            peaks[depth] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert len(steps) == -(-depth // 16) * 2 + 3, "slabs, the pyramid, the intensity scaling, the comparison"
        np.testing.assert_array_equal(open_image(campaign.volumes, f"v{depth}")[0, 20:30], voxels[20:30])
    assert peaks[128] < 1.15 * peaks[32], "four times the voxels"


def test_a_campaign_on_another_file_system(tmp_path: Path, raw: str) -> None:
    from rescueseg.config import check_config

    config = check_config({"name": "t", "classes": ["a"], "database_url": "postgresql://nowhere/x"})
    remote = Campaign.create("memory://campaign", config)
    record = import_volume(remote, VolumeImport(raw, spacing=SPACING, truth=tiff(tmp_path / "t.tif", mask())))
    assert Campaign.open("memory://campaign").volumes.record("raw") == record
    np.testing.assert_array_equal(open_truth(remote.volumes, "raw")[:], mask())
    assert zarr.open_group(zarr_store(remote.volumes.image_url("raw")), mode="r").attrs["ome"]["version"] == "0.5"  # type: ignore[index, call-overload]
    remote.storage.remove(".")


def test_asking_for_truth_that_is_not_there(campaign: Campaign, raw: str, tmp_path: Path) -> None:
    import_volume(campaign, VolumeImport(raw, spacing=SPACING))
    with pytest.raises(VolumeError, match="no ground truth"):
        open_truth(campaign.volumes, "raw")
    import_volume(campaign, VolumeImport(raw, spacing=SPACING, volume_id="b", truth=tiff(tmp_path / "t.tif", mask())))
    with pytest.raises(VolumeError, match="no instance ground truth"):
        open_truth(campaign.volumes, "b", instances=True)


def test_a_campaign_of_an_earlier_version_goes_on_with_its_scaling(campaign: Campaign, tmp_path: Path) -> None:
    records = []
    for name, seed in (("a", 1), ("b", 2)):
        tifffile.imwrite(tmp_path / f"{name}.tif", puncta((8, 48, 48), 0.002, 150, seed=seed)[0][0])
    for name in "ab":
        files = VolumeImport(str(tmp_path / f"{name}.tif"), volume_id=name, spacing=(0.3, 0.1, 0.1))
        record = import_volume(campaign, files)
        records.append(record.normalisation.linear)
        old = with_linear(record.normalisation, 0)
        campaign.volumes.save(record.model_copy(update={"normalisation": old}))
        text = Path(campaign.storage.path(f"volumes/{name}.json")).read_text()
        assert "linear" not in text, "a record as earlier versions wrote it"
    assert records == [LINEAR, 0]
    assert [r.normalisation.linear for r in campaign.volumes.records()] == [0, 0]
