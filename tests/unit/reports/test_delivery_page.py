"""The summary page of deliveries that were made by hand: what stands in it, and pictures against the arrays themselves."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from rescueseg.campaign import Campaign
from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.delivery.delivered_image import create_delivered_image
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.label_colours import object_colour
from rescueseg.delivery.label_pyramid import add_label_pyramid
from rescueseg.delivery.masks import make_mask
from rescueseg.delivery.new_volumes import NewVolume
from rescueseg.delivery.object_table import write_table
from rescueseg.delivery.places import PLACES, DoubtfulPlace, PlacesToProofread, keep_places
from rescueseg.delivery.records import DELIVERY, DeliveredVolume
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.errors import StorageError
from rescueseg.geometry import Box
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.reports import delivered_pictures
from rescueseg.reports.delivered_pictures import DeliveredPictures
from rescueseg.reports.delivered_sizes import object_sizes
from rescueseg.reports.delivery_page import rule_in_words, write_page
from rescueseg.storage import Storage
from rescueseg.volumes.ome_zarr import open_level
from rescueseg.voxels.components import label_components
from tests.delivered_campaign import RULE, deliver, source, write_delivery
from tests.delivered_campaign import write_table as write_rows
from tests.evaluated_campaign import SHAPE, SPACING, make_campaign, write_generation, write_model


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    campaign = make_campaign(tmp_path_factory.mktemp("page"))
    write_model(campaign, 0)
    return campaign


@pytest.fixture
def folder(campaign: Campaign, tmp_path: Path) -> DeliveryFolder:
    folder = DeliveryFolder(str(tmp_path / "my out"))
    write_delivery(campaign, folder)
    return folder


def blocks() -> npt.NDArray[np.uint32]:
    """Return three objects in a volume whose fullest plane is 5."""
    objects = np.zeros(SHAPE, np.uint32)
    objects[3:7, 10:40, 10:40] = 1
    objects[4:6, 50:60, 20:80] = 2
    objects[12:20, 70:90, 60:70] = 3
    return objects


def page(folder: DeliveryFolder) -> str:
    return Path(folder.storage.path("index.html")).read_text()


def text(folder: DeliveryFolder) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page(folder))).split())


def test_page_names_what_was_delivered(campaign: Campaign, folder: DeliveryFolder) -> None:
    objects, entropy = blocks(), np.zeros(SHAPE)
    entropy[objects == 2] = 0.5
    record = deliver(
        campaign, folder, "phantom", (objects > 0).astype(np.uint8), objects, np.ones(SHAPE, "u1"), entropy
    )
    odd = record.model_copy(update={"warnings": ("<b>unlike</b> what it has learned",), "version": 3})
    folder.records.write(folder.volume_record("phantom"), odd)
    place = DoubtfulPlace(volume_id="phantom", box=Box((2, 10, 10), (6, 20, 20)), entropy=0.25)
    folder.records.write(PLACES, PlacesToProofread(digest="", places=(place,)))
    write_page(folder)
    words = text(folder)
    assert "<b>unlike</b> what it has learned" in words  # as text, not as bold print
    assert "version 3, with corrections" in words
    assert "3 objects" in words
    assert "Dice 0.871 0.884 0.902" in words
    assert "AP50 – 0.500 0.613" in words
    assert "below 0.55" in words
    assert "protrusions thinner than 0.2 µm" in words
    assert "Chosen among 2 settings" in words
    assert "phantom, object 2 z y x 0.9, 5.45, 4.95 µm · 0.500 nat" in words
    assert words.index("phantom, object 2") < words.index("phantom, object 1")
    assert f"z y x {Box((2, 10, 10), (6, 20, 20))} · 0.250 nat" in words
    assert f"rescueseg view '{folder.storage.url}' phantom" in words


def test_the_page_says_how_a_new_file_was_brought_to_the_model(campaign: Campaign, folder: DeliveryFolder) -> None:
    mask = (blocks() > 0).astype(np.uint8)
    deliver(campaign, folder, "new", mask, None, np.ones(SHAPE, "u1"))
    deliver(campaign, folder, "phantom", mask, None, np.ones(SHAPE, "u1"))
    record = campaign.volumes.record("phantom").model_copy(update={"volume_id": "new"})
    likeness = "mapped by 0.5 × v + 3; resampled from 1 × 1 × 1 µm to the domain's 2 × 1 × 1 µm"
    new = NewVolume(record=record, path="new.tif", source="", likeness=likeness)
    RecordFolder(Storage(folder.work_url())).write(RecordFile("new/new", NewVolume), new)
    write_page(folder)
    assert text(folder).count("How it was brought to what the model has learned") == 1
    assert f"{likeness}." in text(folder)
    folder.storage.remove("work")
    write_page(folder)
    assert "brought" not in text(folder)


def test_all_addresses_lie_in_the_delivery(campaign: Campaign, folder: DeliveryFolder) -> None:
    objects = blocks()
    deliver(campaign, folder, "phantom", (objects > 0).astype(np.uint8), objects, np.ones(SHAPE, "u1"))
    write_page(folder)
    addresses = re.findall(r'(?:href|src)="([^"]*)"', page(folder))
    assert {"phantom.ome.zarr", "tables/phantom.parquet", "pictures/volume_phantom.png"} <= set(addresses)
    for address in addresses:
        assert folder.storage.exists(unquote(address)), address
    assert "url(" not in page(folder)
    assert "<script" not in page(folder)


def test_masks_alone_without_image_scores_and_table(campaign: Campaign, folder: DeliveryFolder) -> None:
    mask = (blocks() > 0).astype(np.uint8)
    deliver(campaign, folder, "phantom", mask, None, np.ones(SHAPE, "u1"))
    Path(folder.storage.path("phantom.ome.zarr/zarr.json")).write_text('{"zarr_format": 3, "node_type": "group"}')
    whole = folder.records.read(DELIVERY)
    assert whole is not None
    folder.records.write(DELIVERY, whole.model_copy(update={"scores": (), "boxes": 0}))
    write_page(folder)
    words = text(folder)
    assert "There are no test boxes in these volumes" in words
    assert "Objects to look at first" not in words
    assert "How large" not in words
    picture = imagecodecs.png_decode(Path(folder.storage.path("pictures/volume_phantom.png")).read_bytes())
    share = (picture[..., :3].max(axis=-1) > 60).mean()
    assert share == pytest.approx((mask[5] > 0).mean(), abs=0.03)  # labels on black, and a scale bar


def test_an_empty_volume_has_its_page(campaign: Campaign, folder: DeliveryFolder) -> None:
    nothing = np.zeros(SHAPE, np.uint8)
    deliver(campaign, folder, "phantom", nothing, nothing.astype(np.uint32), np.ones(SHAPE, "u1"))
    write_page(folder)
    assert "0 objects" in text(folder)


@pytest.mark.parametrize("source_name", ["distance", "border_distance", "probability", "boundary"])
def test_a_depth_has_the_unit_of_its_map(source_name: str) -> None:
    objects = ObjectRule.model_validate({"source": source_name, "depth": 0.25})
    [sentence] = [s for s in rule_in_words(RULE.model_copy(update={"objects": objects}), ["cell"]) if "saddle" in s]
    assert ("at least 0.25 µm below" in sentence) == ("distance" in source_name)


def test_folder_without_delivery_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the folder holds no delivery"):
        write_page(DeliveryFolder(str(tmp_path / "nothing")))


def test_sizes_are_those_of_the_arrays(folder: DeliveryFolder) -> None:
    rng = np.random.default_rng(5)
    sizes: dict[str, list[float]] = {"cell": [], "vessel": []}
    for name in ("a", "b"):
        volumes = 10.0 ** rng.uniform(-4, 3, 200)
        classes = np.array(["cell", "vessel"])[rng.integers(0, 2, 200)]
        write_rows(
            folder, name, [{"class": str(c), "volume_um3": float(v)} for c, v in zip(classes, volumes, strict=True)]
        )
        for of in sizes:
            sizes[of] += volumes[classes == of].tolist()
    counted = object_sizes(folder, ["a", "b", "none"], ("cell", "vessel", "dust"))
    assert list(counted) == ["cell", "vessel"]
    for name, expected in sizes.items():
        one = counted[name]
        assert one.count == len(expected) == one.bins.sum()
        assert one.total_um3 == pytest.approx(sum(expected))
        assert (one.smallest_um3, one.largest_um3) == (min(expected), max(expected))
        edges = 10.0 ** (np.arange(one.bins.size + 1) / 20 - 9)
        assert np.array_equal(one.bins, np.histogram(expected, edges)[0])


def test_the_picture_shows_the_fullest_plane_in_the_objects_colours(campaign: Campaign, folder: DeliveryFolder) -> None:
    objects = blocks()
    volume = deliver(campaign, folder, "phantom", (objects > 0).astype(np.uint8), objects, np.zeros(SHAPE, "u1"))
    picture = imagecodecs.png_decode(DeliveredPictures(folder, volume, 1).whole())[..., :3].astype(int)
    right = picture[:, picture.shape[1] // 2 :]
    rows, columns = (np.arange(n) for n in right.shape[:2])
    plane = objects[5][np.ix_(rows * SHAPE[1] // rows.size, columns * SHAPE[2] // columns.size)]
    for number in (1, 2):
        inside = right[plane == number]
        hue = np.array(object_colour(number)) * 0.38
        assert np.median(np.abs(inside - hue).max(axis=1)) <= 3
    assert not (plane == 3).any()
    assert np.median(right[plane == 0].max(axis=1)) == 0


def test_a_plane_without_coarser_levels_is_thinned(
    campaign: Campaign, folder: DeliveryFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = (blocks() > 0).astype(np.uint8)
    volume = deliver(campaign, folder, "phantom", mask, None, np.ones(SHAPE, "u1"))
    monkeypatch.setattr(delivered_pictures, "_DRAWN", 32 * 32)
    plane, covered = delivered_pictures._plane(DeliveredPictures(folder, volume, 1).mask, Box((5, 0, 0), (1, 96, 96)))
    assert np.array_equal(plane, mask[5, ::3, ::3])
    assert covered == Box((5, 0, 0), (1, 96, 96))


def test_a_delivery_as_its_steps_make_it(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 1.5, judged=False)
    folder, block = DeliveryFolder(str(tmp_path / "out")), (8, 32, 32)
    write_delivery(campaign, folder)
    target = TargetVolume(source(campaign, "phantom"), folder, RULE, SHAPE, SPACING, block)
    step = Step(folder.pass_url("phantom", "all"), "digest")
    create_delivered_image(target.image_url, target.source, step, ["mask"], block, with_image=False)
    make_mask(target, step)
    add_label_pyramid(target.image_url, "mask", step, SPACING, ["organelle"])
    write_table(target, step, ["organelle"])
    record = DeliveredVolume(
        volume_id="phantom",
        source="image.tif",
        in_campaign=True,
        shape_zyx=SHAPE,
        spacing_um_zyx=SPACING,
        digest="d",
        labels=("mask",),
    )
    folder.records.write(folder.volume_record("phantom"), record)
    keep_places(campaign, folder, [target.source], 3)
    write_page(folder)
    pieces, count = label_components(np.asarray(open_level(target.label_url("mask"))[...]), 26)
    assert f"organelle {count:,}" in text(folder)
    assert "phantom, piece " in text(folder)
    assert "Places to proofread first" in text(folder)
    total = float((pieces > 0).sum() * np.prod(SPACING))
    assert object_sizes(folder, ["phantom"], ("organelle",))["organelle"].total_um3 == pytest.approx(total)
