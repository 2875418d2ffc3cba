"""The OME-Zarr of a delivered volume: the campaign's image at all levels, and empty labels beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from rescueseg.campaign import Campaign
from rescueseg.delivery import delivered_image
from rescueseg.delivery.delivered_image import create_delivered_image
from rescueseg.delivery.label_pyramid import add_label_pyramid
from rescueseg.delivery.step import Step
from rescueseg.geometry import ZYX, Box
from rescueseg.volumes.ome_zarr import levels, open_level, validate
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.delivered_campaign import source
from tests.evaluated_campaign import SPACING, make_campaign

LABELS = ("mask", "objects")
BLOCK = (8, 48, 40)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("delivered")
    campaign = make_campaign(folder)
    voxels = np.random.default_rng(0).integers(0, 60000, (9, 40, 300)).astype(np.uint16)
    tifffile.imwrite(folder / "wide.tif", voxels)
    import_volume(campaign, VolumeImport(str(folder / "wide.tif"), volume_id="wide", spacing=SPACING))
    return campaign


def create(
    campaign: Campaign,
    folder: Path,
    digest: str = "d",
    labels: Sequence[str] = LABELS,
    block: ZYX = BLOCK,
    *,
    with_image: bool = True,
    volume: str = "phantom",
) -> tuple[str, str]:
    url, step = str(folder / "v.ome.zarr"), Step(str(folder / "step"), digest)
    return url, create_delivered_image(url, source(campaign, volume), step, labels, block, with_image=with_image)


@pytest.mark.parametrize(("volume", "count"), [("phantom", 1), ("wide", 3)])
def test_the_image_is_the_campaigns_at_every_level_and_labels_are_empty(
    campaign: Campaign, tmp_path: Path, volume: str, count: int
) -> None:
    url, identity = create(campaign, tmp_path, volume=volume)
    original = campaign.volumes.image_url(volume)
    assert levels(url) == levels(original) == list("012"[:count])
    for level in range(len(levels(original))):
        np.testing.assert_array_equal(open_level(url, level)[...], open_level(original, level)[...])
    ome = [zarr.open_group(u, mode="r").attrs["ome"] for u in (url, original)]
    assert ome[0] == ome[1]
    for name, dtype in (("mask", np.uint8), ("objects", np.uint32)):
        array = open_level(f"{url}/labels/{name}")
        assert (array.shape, array.dtype, array.shards) == (campaign.volumes.record(volume).shape_zyx, dtype, BLOCK)
        assert not array[...].any()
        scale = zarr.open_group(f"{url}/labels/{name}", mode="r").attrs["ome"]["multiscales"][0]["datasets"][0]
        assert scale["coordinateTransformations"][0]["scale"] == list(SPACING)
        add_label_pyramid(url, name, Step(str(tmp_path / "step"), identity), SPACING)
    validate(url)


def test_without_the_image_labels_stand_alone(campaign: Campaign, tmp_path: Path) -> None:
    url, _ = create(campaign, tmp_path, labels=("mask",), with_image=False)
    validate(url)
    group = zarr.open_group(url, mode="r")
    assert sorted(name for name, _ in group.members()) == ["labels"]
    assert group["labels"].attrs["ome"]["labels"] == ["mask"]
    assert "source" not in group["labels/mask"].attrs["ome"].get("image-label", {})


def test_a_second_run_writes_nothing(campaign: Campaign, tmp_path: Path) -> None:
    url, identity = create(campaign, tmp_path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert create(campaign, tmp_path) == (url, identity)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("change", [{"digest": "e"}, {"labels": ("mask",)}, {"block": (8, 48, 48)}])
def test_what_was_made_for_something_else_is_made_anew(
    campaign: Campaign, tmp_path: Path, change: dict[str, object]
) -> None:
    url, identity = create(campaign, tmp_path)
    zarr.open_array(f"{url}/labels/mask/0", mode="r+")[0] = 1
    again = create(campaign, tmp_path, **change)[1]  # type: ignore[arg-type]
    assert again != identity
    assert not open_level(f"{url}/labels/mask")[...].any()
    np.testing.assert_array_equal(open_level(url)[...], open_level(campaign.volumes.image_url("phantom"))[...])


def test_a_killed_run_goes_on(campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered_image, "choose_chunks", lambda shape: (shape, (8, 48, 48)))
    copied: list[Box] = []

    def dying(job: delivered_image._Copy, box: Box) -> object:
        copied.append(box)
        if len(copied) == 3:
            raise KeyboardInterrupt
        return plain(job, box)

    plain = delivered_image._copy_block
    monkeypatch.setattr(delivered_image, "_copy_block", dying)
    with pytest.raises(KeyboardInterrupt):
        create(campaign, tmp_path)
    url, _ = create(campaign, tmp_path)
    assert len(copied) == len(set(copied)) + 1  # only the block of the kill was copied twice
    np.testing.assert_array_equal(open_level(url)[...], open_level(campaign.volumes.image_url("phantom"))[...])


def test_a_kill_before_all_arrays_were_made_leaves_nothing_that_counts(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(delivered_image, "create_label_image", dying)
    with pytest.raises(KeyboardInterrupt):
        create(campaign, tmp_path)
    monkeypatch.undo()
    url, _ = create(campaign, tmp_path)
    validate(url)
