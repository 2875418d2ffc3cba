"""The table of objects, against whole arrays, scikit-image and balls, and whatever the blocks are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import SimpleITK
import zarr
from scipy import ndimage
from skimage.measure import regionprops

from rescueseg.campaign import Campaign
from rescueseg.delivery import object_table
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.object_branches import branches_of, coarser
from rescueseg.delivery.object_measures import shape_measures
from rescueseg.delivery.object_sums import count_objects, join_sums
from rescueseg.delivery.object_table import write_table
from rescueseg.delivery.places import doubtful_objects
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.evaluation.temperature import temper
from rescueseg.geometry import ZYX, Box, Spacing, partition
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import create_label_image
from tests.delivered_campaign import source
from tests.evaluated_campaign import SHAPE, SPACING, make_campaign, phantom_truth, write_maps, write_model

BLOCKS = [SHAPE, (8, 40, 56), (7, 33, 31)]
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    campaign = make_campaign(tmp_path_factory.mktemp("table"))
    write_model(campaign, 0)
    probability = np.random.default_rng(0).dirichlet((1, 2, 3), SHAPE).transpose(3, 0, 1, 2)
    entropy = -(probability * np.log(np.maximum(probability, 1e-9))).sum(axis=0)
    write_maps(campaign, 0, probability, entropy)
    return campaign


def target_of(campaign: Campaign, folder: Path, mask: Array, objects: Array | None, block: ZYX) -> TargetVolume:
    """Write labels as a delivery has them."""
    rule = DeliveryRule(
        model_digest="m",
        truth_digest="",
        temperature=1.4,
        cleanup=(CleanUp(), CleanUp()),
        objects=None if objects is None else ObjectRule(source="pieces"),
    )
    out = DeliveryFolder(str(folder))
    target = TargetVolume(source(campaign, "phantom"), out, rule, SHAPE, SPACING, block)
    zarr.create_group(target.image_url, overwrite=True, zarr_format=3)
    for name, array in (("mask", mask), ("objects", objects)):
        if array is not None:
            layout = ImageLayout(SHAPE, array.dtype, SPACING, chunks=block, shards=block, name=name)
            create_label_image(target.image_url, layout)[...] = array
    return target


def labels() -> tuple[Array, Array]:
    """Return a mask of two classes, and its pieces, of which some touch the border."""
    mask = phantom_truth().astype(np.uint8)
    mask[:, :, 48:] *= 2
    mask[2, 3, 3:90] = 1
    pieces = np.zeros(SHAPE, np.uint32)
    for value in (1, 2):
        numbers = ndimage.label(mask == value, np.ones((3, 3, 3)))[0]
        pieces[mask == value] = numbers[mask == value] + pieces.max()
    first = np.unique(pieces, return_index=True)
    order = np.zeros(len(first[0]), np.uint32)
    order[np.argsort(first[1][1:]) + 1] = np.arange(1, len(first[0]))
    return mask, order[pieces]


def table_of(target: TargetVolume, digest: str = "d") -> dict[str, list[Any]]:
    write_table(target, Step(target.out.pass_url("phantom", "table"), digest), ("one", "two"))
    return dict(pq.read_table(target.out.storage.path("tables/phantom.parquet")).to_pydict())


def test_rows_are_those_of_whole_arrays(campaign: Campaign, tmp_path: Path) -> None:
    mask, pieces = labels()
    assert pieces.max() > 3
    table = table_of(target_of(campaign, tmp_path, mask, pieces * 3, (8, 40, 56)))
    lines = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    assert [line["id"] for line in lines] == list(range(3, 3 * int(pieces.max()) + 1, 3))
    maps, image = source(campaign, "phantom").maps, source(campaign, "phantom").open_image()[0]
    probability = temper(np.asarray(maps.open("probability")[...], np.float32), 1.4)
    entropy = np.asarray(maps.open("predictive_entropy")[...], np.float64)
    for line, region in zip(lines, regionprops(pieces, spacing=SPACING), strict=True):
        inside = pieces == region.label
        value = int(mask[inside][0])
        assert (line["volume"], line["class"]) == ("phantom", ("one", "two")[value - 1])
        assert line["volume_um3"] == pytest.approx(inside.sum() * math.prod(SPACING))
        assert [line[f"{a}_um"] for a in "zyx"] == pytest.approx(np.argwhere(inside).mean(axis=0) * SPACING)
        box = (*(s.start for s in region.slice), *(s.stop for s in region.slice))
        assert tuple(line[n] for n in ("z0", "y0", "x0", "z1", "y1", "x1")) == box
        assert line["touches_border"] == any(a == 0 for a in box[:3]) or box[3:] != SHAPE
        assert line["mean_entropy"] == pytest.approx(entropy[inside].mean(), abs=1e-6)
        assert line["mean_probability"] == pytest.approx(float(probability[value][inside].mean(dtype=float)), abs=1e-6)
        assert line["mean_intensity"] == pytest.approx(np.asarray(image)[inside].mean(dtype=float), rel=1e-9)
        axes = [line[f"axis_{n}_um"] for n in (1, 2, 3)]
        assert axes == sorted(axes, reverse=True)
        covariance = np.cov(np.argwhere(inside).T * np.array(SPACING)[:, None], bias=True) if inside.sum() > 1 else 0
        expected = np.linalg.eigvalsh(covariance + np.diag(np.square(SPACING) / 12))[::-1]
        assert axes == pytest.approx(2 * np.sqrt(5 * expected))
    assert {line["touches_border"] for line in lines} == {True, False}
    tubes = [line for line in lines if line["branches"] is not None]
    assert tubes
    assert all(line["sphericity"] < 0.5 for line in tubes)
    assert all(line["branch_length_um"] > 0 for line in tubes)


@pytest.mark.parametrize("with_objects", [True, False])
def test_blocks_do_not_show(campaign: Campaign, tmp_path: Path, with_objects: bool) -> None:
    mask, pieces = labels()
    tables = [
        table_of(target_of(campaign, tmp_path / str(n), mask, pieces if with_objects else None, block))
        for n, block in enumerate(BLOCKS)
    ]
    assert tables[0] == tables[1] == tables[2]


def test_without_objects_the_pieces_of_the_mask_are_rows(campaign: Campaign, tmp_path: Path) -> None:
    mask, pieces = labels()
    block = (8, 40, 56)
    with_objects = table_of(target_of(campaign, tmp_path / "a", mask, pieces, block))
    assert table_of(target_of(campaign, tmp_path / "b", mask, None, block)) == with_objects


def test_an_empty_mask_has_an_empty_table_with_all_columns(campaign: Campaign, tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    mask, pieces = labels()
    full = table_of(target_of(campaign, tmp_path / "a", mask, pieces, SHAPE))
    for name, objects in (("b", None), ("c", empty.astype(np.uint32))):
        table = table_of(target_of(campaign, tmp_path / name, empty, objects, (8, 40, 56)))
        assert list(table) == list(full)
        assert table["id"] == []


def test_a_table_is_made_once_and_anew_for_other_labels(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, pieces = labels()
    target = target_of(campaign, tmp_path, mask, pieces, (8, 40, 56))
    table_of(target)
    path = Path(target.out.storage.path("tables/phantom.parquet"))
    before = path.stat().st_mtime_ns
    table_of(target)
    assert path.stat().st_mtime_ns == before
    pieces[pieces == 2] = 0
    target = target_of(campaign, tmp_path, mask, pieces, (8, 40, 56))
    assert 2 not in table_of(target, "e")["id"]


def test_a_killed_run_goes_on(campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, pieces = labels()
    expected = table_of(target_of(campaign, tmp_path / "whole", mask, pieces, (8, 40, 56)))
    target = target_of(campaign, tmp_path / "killed", mask, pieces, (8, 40, 56))
    counted: list[Box] = []

    def dying(job: Any, box: Box) -> object:
        counted.append(box)
        if len(counted) == 5:
            raise KeyboardInterrupt
        return plain(job, box)

    plain = object_table._count_block
    monkeypatch.setattr(object_table, "_count_block", dying)
    with pytest.raises(KeyboardInterrupt):
        table_of(target)
    assert not Path(target.out.storage.path("tables")).exists()
    assert table_of(target) == expected
    assert len(counted) == len(set(counted)) + 1


def test_the_most_doubtful_objects_are_read_from_it(campaign: Campaign, tmp_path: Path) -> None:
    mask, pieces = labels()
    target = target_of(campaign, tmp_path, mask, pieces, (8, 40, 56))
    table = table_of(target)
    found = doubtful_objects(target.out, ["phantom"], 3)
    first = sorted(zip(np.negative(table["mean_entropy"]), table["id"], strict=True))[:3]
    assert [f.number for f in found] == [number for _, number in first]


# shapes ---------------------------------------------------------------------------------------------------------------


def measures(objects: Array, spacing: Spacing, block: ZYX | None = None) -> dict[str, Array]:
    """Measure objects in blocks."""
    parts = []
    padded = np.pad(objects, 1)
    for box in partition(objects.shape, block or objects.shape):
        around = padded[tuple(slice(o, o + n + 2) for o, n in zip(box.offset_zyx, box.shape_zyx, strict=True))]
        classes = (objects[box.slices] > 0).astype(np.uint8)
        parts.append(count_objects(objects[box.slices], around, box, objects.shape, classes, 1).arrays())
    sums = join_sums(parts, np.unique(objects)[1:].astype(np.int64))
    return dict(shape_measures(sums, objects.shape, spacing))


def ellipsoid(shape: ZYX, radii_um: Spacing, spacing: Spacing) -> Array:
    middle = np.subtract(shape, 1)[:, None, None, None] / 2 + np.reshape((0.31, 0.17, 0.43), (3, 1, 1, 1))
    at = (np.indices(shape) - middle) * np.array(spacing)[:, None, None, None]
    return np.asarray(np.square(at / np.array(radii_um)[:, None, None, None]).sum(axis=0) <= 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.5, 0.2, 0.3)])
def test_a_ball_has_the_surface_and_axes_of_a_ball(spacing: Spacing) -> None:
    radius = 12 * max(spacing)
    shape = tuple(int(2 * radius / s) + 6 for s in spacing)
    got = measures(ellipsoid(shape, (radius,) * 3, spacing).astype(np.uint32), spacing, (9, 20, 20))
    assert got["surface_um2"][0] == pytest.approx(4 * math.pi * radius**2, rel=0.01)
    assert got["sphericity"][0] == pytest.approx(1, abs=0.01)
    assert [got[f"axis_{n}_um"][0] for n in (1, 2, 3)] == pytest.approx([2 * radius] * 3, rel=0.01)


def test_surfaces_are_those_of_itk() -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(24, 40, 50)), 2)
    objects = (1 + (np.indices(field.shape)[2] > 20)) * (field > 0.01)  # two networks that touch each other
    got = measures(objects.astype(np.uint32), (1, 1, 1), (9, 20, 20))
    image = SimpleITK.GetImageFromArray(np.pad(objects, 1).astype(np.uint32))
    itk = SimpleITK.LabelShapeStatisticsImageFilter()
    itk.ComputePerimeterOn()
    itk.Execute(image)
    assert got["surface_um2"] == pytest.approx([itk.GetPerimeter(1), itk.GetPerimeter(2)], rel=1e-9)


def test_an_ellipsoid_has_its_surface_and_axes() -> None:
    a, b, c = 30.0, 15.0, 10.0
    got = measures(ellipsoid((25, 65, 35), (c, a, b), (1, 1, 1)).astype(np.uint32), (1, 1, 1))
    p = 1.6075  # Thomsen: within 1.1 %
    surface = 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    assert got["surface_um2"][0] == pytest.approx(surface, rel=0.02)
    assert [got[f"axis_{n}_um"][0] for n in (1, 2, 3)] == pytest.approx([2 * a, 2 * b, 2 * c], rel=0.01)
    region = regionprops(ellipsoid((25, 65, 35), (c, a, b), (1, 1, 1)).astype(np.uint8))[0]
    assert got["axis_1_um"][0] == pytest.approx(region.axis_major_length, rel=0.01)


def test_branches_of_a_cross_a_ring_and_a_speck() -> None:
    um = (0.3, 0.1, 0.1)
    cross = np.zeros((5, 41, 41), bool)
    cross[2, 20, 2:39] = cross[2, 2:39, 20] = True
    assert branches_of(cross, um) == (4, pytest.approx(4 * 1.8))
    y_shape = np.zeros((3, 41, 41), bool)
    y_shape[1, 20:39, 20] = True
    for n in range(1, 16):
        y_shape[1, 20 - n, 20 - n] = y_shape[1, 20 - n, 20 + n] = True
    count, length = branches_of(y_shape, um)
    assert count == 3
    assert length == pytest.approx(1.8 + 2 * 1.5 * math.sqrt(2), abs=0.15)
    ring = np.zeros((1, 41, 41), bool)
    ring[0, 5:36, 5:36] = True
    ring[0, 8:33, 8:33] = False
    count, length = branches_of(ring, um)
    assert count == 1
    assert length == pytest.approx(4 * 2.7, rel=0.1)
    speck = np.zeros((3, 3, 3), bool)
    speck[1, 1, 1] = True
    assert branches_of(speck, um) == (0, 0.0)
    speck[1, 1, 2] = True
    assert branches_of(speck, um) == (1, pytest.approx(0.1))


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_a_tube_has_one_branch_however_wide_it_is(width: int) -> None:
    tube = np.ones((width, width, 40), bool)
    count, length = branches_of(tube, (1.0, 1.0, 1.0))
    assert count == 1
    assert 40 - width - 1 <= length <= 40


def test_a_network_that_is_too_large_is_taken_coarser_and_stays_connected() -> None:
    assert coarser((20, 400, 400), (0.3, 0.1, 0.1), 20 * 200 * 200) == (1, 2, 2)
    assert coarser((20, 40, 40), (0.3, 0.1, 0.1)) == (1, 1, 1)
