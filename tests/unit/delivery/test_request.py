"""What a delivery is asked for: which names are volumes, what is refused, and what an earlier delivery fills in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig
from rescueseg.delivery.estimate import Estimate, estimate, require_room
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.new_volumes import NewVolumes
from rescueseg.delivery.records import DELIVERY, CleanUp, Delivery, DeliveryRule
from rescueseg.delivery.request import SegmentRequest, check_request, delivery_model, sort_targets
from rescueseg.errors import ConfigError, EvaluationError, InferenceError, StorageError, UnreadableVolumeError
from rescueseg.inference.engine import volume_digest
from rescueseg.inference.maps import InferencePlan
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import MapReference
from rescueseg.storage import Storage
from rescueseg.volumes.volume_files import VolumeImport
from tests.delivered_campaign import deliver
from tests.evaluated_campaign import SHAPE, SPACING, make_campaign, phantom_truth, write_generation, write_volume_maps

MASK = phantom_truth()


@pytest.fixture
def predicted(tmp_path: Path) -> Campaign:
    """A campaign with a model and its maps, no champion."""
    campaign = make_campaign(tmp_path / "campaign")
    write_volume_maps(campaign, 0, MASK > 0)
    return campaign


def write_earlier(campaign: Campaign, folder: DeliveryFolder, objects: ObjectRule | None, with_image: bool) -> None:
    model = delivery_model(campaign, SegmentRequest(out=folder.url, generation=0)).model
    rule = DeliveryRule(model_digest=model.digest, truth_digest="", cleanup=(CleanUp(),), objects=objects)
    delivery = Delivery(
        campaign_url=campaign.url,
        campaign_name="phantom",
        classes=tuple(campaign.config.classes),
        model=model,
        rule=rule,
        with_image=with_image,
    )
    folder.records.write(DELIVERY, delivery)


def test_names_are_volumes_or_files_and_nothing_else(predicted: Campaign, tmp_path: Path) -> None:
    (tmp_path / "new.tif").write_bytes(b"x")
    names = ["phantom", str(tmp_path / "new.tif"), "s3://bucket/stack.ome.zarr", "phantom"]
    volumes, files = sort_targets(predicted, names, every=False)
    assert volumes == ("phantom",)
    assert files == (str(tmp_path / "new.tif"), "s3://bucket/stack.ome.zarr")
    assert sort_targets(predicted, [], every=True) == (("phantom",), ())
    assert sort_targets(predicted, ["second"], every=False, delivered=["second"]) == (("second",), ())
    with pytest.raises(UnreadableVolumeError, match="neither a volume of the campaign nor a file"):
        sort_targets(predicted, ["phantm"], every=False)


def test_a_model_must_be_there(predicted: Campaign, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="no champion"):
        delivery_model(predicted, SegmentRequest(out="o"))
    with pytest.raises(EvaluationError, match="no training 'unet'"):
        delivery_model(predicted, SegmentRequest(out="o", training="unet"))
    with pytest.raises(ConfigError, match="both named"):
        delivery_model(predicted, SegmentRequest(out="o", training="unet", generation=0))
    write_generation(predicted, 0, MASK > 0)
    assert delivery_model(predicted, SegmentRequest(out="o")).model.generation == 0


@pytest.mark.parametrize("place", [".", "volumes", "results"])
def test_the_campaign_itself_is_no_place(predicted: Campaign, place: str) -> None:
    out = str(Path(predicted.url) / place)
    with pytest.raises(StorageError, match="inside the campaign"):
        check_request(predicted, SegmentRequest(out=out, volumes=("phantom",), generation=0))


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(predicted: Campaign, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    with pytest.raises(StorageError, match=r"holds 'chapter\.tex'"):
        check_request(predicted, SegmentRequest(out=str(tmp_path / "thesis"), volumes=("phantom",), generation=0))
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_what_is_left_open_is_as_in_the_delivery_that_is_there(predicted: Campaign, tmp_path: Path) -> None:
    folder = DeliveryFolder(str(tmp_path / "out"))
    write_earlier(predicted, folder, ObjectRule(source="distance"), with_image=False)
    deliver(predicted, folder, "phantom", MASK, None, np.zeros(SHAPE, np.uint16))
    asked = check_request(predicted, SegmentRequest(out=folder.url))
    assert (asked.volumes, asked.generation, asked.objects, asked.with_image) == (("phantom",), 0, "yes", False)
    said = SegmentRequest(out=folder.url, volumes=("phantom",), objects="no", with_image=True)
    changed = check_request(predicted, said)
    assert (changed.generation, changed.objects, changed.with_image) == (0, "no", True)


def test_another_model_does_not_go_into_the_same_folder(predicted: Campaign, tmp_path: Path) -> None:
    folder = DeliveryFolder(str(tmp_path / "out"))
    write_earlier(predicted, folder, None, with_image=True)
    write_volume_maps(predicted, 1, MASK > 0)
    with pytest.raises(StorageError, match="a delivery of another model"):
        check_request(predicted, SegmentRequest(out=folder.url, volumes=("phantom",), generation=1))


def test_a_request_that_says_nothing_or_too_much_is_refused(predicted: Campaign, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing to deliver is named"):
        check_request(predicted, SegmentRequest(out=out, generation=0))
    with pytest.raises(ConfigError, match="no class 'membrane'"):
        check_request(predicted, SegmentRequest(out=out, generation=0, boundary_class="membrane"))
    said = SegmentRequest(out=out, generation=0, boundary_class="organelle", objects="no")
    with pytest.raises(ConfigError, match="none are wanted"):
        check_request(predicted, said)
    assert not (tmp_path / "out").exists()


def test_an_estimate_counts_voxels_and_disk_and_changes_nothing(predicted: Campaign, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 900, (16, 40, 44), np.uint16)
    z, y, x = SPACING
    tifffile.imwrite(
        tmp_path / "new.tif",
        image,
        imagej=True,
        resolution=(1 / x, 1 / y),
        metadata={"axes": "ZYX", "spacing": z, "unit": "um"},
    )
    folder = DeliveryFolder(str(tmp_path / "out"))
    request = SegmentRequest(
        out=folder.url, volumes=("phantom",), files=(str(tmp_path / "new.tif"),), generation=0, formats=("tiff",)
    )
    needed = estimate(predicted, check_request(predicted, request))
    assert [(v.name, v.voxels, v.new, v.has_maps) for v in needed.volumes] == [
        ("phantom", MASK.size, False, True),
        ("new", image.size, True, False),
    ]
    assert needed.bytes_by_part["maps"] > 0
    assert needed.bytes_by_part["imported files"] >= image.nbytes
    assert any("28,160" in line or f"{MASK.size + image.size:,} voxels" in line for line in needed.lines(folder))
    assert not (tmp_path / "out").exists()
    require_room(folder, needed)
    with pytest.raises(StorageError, match="are free"):
        require_room(folder, type(needed)(needed.volumes, 0, {"image": 1 << 60}, 0.0, ()))


def write_tiff(path: Path, image: np.ndarray) -> None:
    z, y, x = SPACING
    metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
    tifffile.imwrite(path, image, imagej=True, resolution=(1 / x, 1 / y), metadata=metadata)


def told(campaign: Campaign, request: SegmentRequest) -> tuple[Estimate, str]:
    needed = estimate(campaign, check_request(campaign, request))
    return needed, "\n".join(needed.lines(DeliveryFolder(request.out)))


def test_what_was_delivered_otherwise_counts_in_an_estimate(predicted: Campaign, tmp_path: Path) -> None:
    folder = DeliveryFolder(str(tmp_path / "out"))
    write_earlier(predicted, folder, None, with_image=True)
    deliver(predicted, folder, "phantom", MASK, None, np.zeros(SHAPE, np.uint16))
    same = SegmentRequest(out=folder.url, volumes=("phantom",))
    needed, words = told(predicted, same)
    assert (needed.volumes, needed.done, needed.bytes) == ((), 1, 0)
    assert words == "1 volume was delivered already: only corrections and new formats are added"
    needed, words = told(predicted, same.model_copy(update={"formats": ("tiff", "nrrd")}))
    assert needed.done == 1
    assert needed.bytes == needed.bytes_by_part["files"] >= 2 * MASK.size
    assert "files" in words
    for change in ({"objects": "yes"}, {"boundary_class": "organelle"}, {"with_image": False}):
        needed, words = told(predicted, SegmentRequest.model_validate(same.model_dump() | change))
        assert [(v.name, v.again) for v in needed.volumes] == [("phantom", True)], change
        assert needed.done == 0
        assert needed.bytes_by_part["labels"] > MASK.size
        assert "delivered otherwise, to be made again, maps are there" in words
        assert "already" not in words
        assert "Nothing to predict" in words


def test_an_estimate_asks_not_again_for_what_lies_in_the_work_folder(predicted: Campaign, tmp_path: Path) -> None:
    write_tiff(tmp_path / "new.tif", np.random.default_rng(0).integers(100, 900, (16, 40, 44), np.uint16))
    request = SegmentRequest(out=str(tmp_path / "out"), files=(str(tmp_path / "new.tif"),), generation=0)
    before, _ = told(predicted, request)
    folder = DeliveryFolder(request.out)
    new = NewVolumes(predicted, folder, frozenset({"phantom"}))
    record = new.add(VolumeImport(str(tmp_path / "new.tif"))).record
    after, words = told(predicted, request)
    assert "imported files" in before.bytes_by_part
    assert "imported files" not in after.bytes_by_part
    assert after.bytes_by_part["maps"] == before.bytes_by_part["maps"]
    assert after.volumes[0].shape_zyx == before.volumes[0].shape_zyx
    assert "to be predicted" in words
    plan = InferencePlan(
        model=delivery_model(predicted, request).model, volume_id="new", volume_digest=volume_digest(record), shape_zyx=(16, 40, 44),
        spacing_um_zyx=SPACING, n_classes=1, seed=0, inference=InferenceConfig(), window_zyx=(8, 8, 8),
        block_zyx=(16, 40, 44), chunk_zyx=(16, 40, 44),
    )  # fmt: skip
    maps = delivery_model(predicted, request).maps_of(Storage(folder.work_url()), "new")
    maps.prepare(plan, ["background", "organelle"])
    maps.finish(
        MapReference(generation=0, volume_id="new", model_digest="m", quantities=("probability",), blocks=1, digest="d")
    )
    predicted_too, words = told(predicted, request)
    assert "maps" not in predicted_too.bytes_by_part
    assert "Nothing to predict" in words


def test_a_file_that_cannot_be_read_keeps_no_other_back(predicted: Campaign, tmp_path: Path) -> None:
    write_tiff(tmp_path / "good.tif", np.random.default_rng(0).integers(100, 900, (16, 40, 44), np.uint16))
    (tmp_path / "bad.tif").write_bytes(b"no image")
    files = (str(tmp_path / "good.tif"), str(tmp_path / "bad.tif"))
    needed, words = told(predicted, SegmentRequest(out=str(tmp_path / "out"), files=files, generation=0))
    assert [v.name for v in needed.volumes] == ["good"]
    assert f"Cannot be delivered: {tmp_path}/bad.tif" in words
    with pytest.raises(UnreadableVolumeError, match=r"bad\.tif"):
        told(predicted, SegmentRequest(out=str(tmp_path / "out"), files=files[1:], generation=0))
