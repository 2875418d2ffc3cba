"""Deliveries of masks that are nothing, everything, dust, or cut at every face, and of balls in voxels six times as long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from scipy import ndimage

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.config import check_config
from rescueseg.delivery.delivered_image import create_delivered_image
from rescueseg.delivery.export import export_labels
from rescueseg.delivery.folder import DeliveryFolder, SourceVolume
from rescueseg.delivery.label_pyramid import add_label_pyramid
from rescueseg.delivery.masks import make_mask
from rescueseg.delivery.object_table import write_table
from rescueseg.delivery.objects import make_objects
from rescueseg.delivery.places import table_path
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import MapReference, ModelReference, Normalisation, VolumeRecord
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout

UNIT: Spacing = (1.0, 1.0, 1.0)
ANISOTROPIC: Spacing = (2.0, 0.325, 0.325)
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Result:
    objects: npt.NDArray[np.uint32]
    rows: list[dict[str, Any]]
    levels: list[npt.NDArray[np.uint32]]


def campaign_with(folder: Path, mask: Mask, spacing: Spacing) -> Campaign:
    """Return a campaign with a volume, and a model that is sure of a mask in it."""
    campaign = Campaign.create(str(folder), check_config({"name": "extremes", "classes": ["thing"]}))
    shape = zyx(mask.shape)
    array = ome_zarr.create_image(campaign.volumes.image_url("v"), ImageLayout((1, *shape), np.uint16, spacing))
    array[0] = np.where(mask, 900, 100).astype(np.uint16)
    campaign.volumes.save(
        VolumeRecord(
            volume_id="v",
            domain="d",
            shape_zyx=shape,
            spacing_um_zyx=spacing,
            channels=1,
            dtype="uint16",
            source="v.tif",
            digest="0" * 64,
            normalisation=Normalisation(low=0, high=1000, mean=500, std=300),
        )
    )
    model = ModelReference(generation=0, trainer="t", path="m", digest="d")
    plan = InferencePlan(
        model=model,
        volume_id="v",
        volume_digest="d",
        shape_zyx=shape,
        spacing_um_zyx=spacing,
        n_classes=1,
        seed=0,
        inference=campaign.config.inference,
        window_zyx=(8, 16, 16),
        block_zyx=shape,
        chunk_zyx=shape,
    )
    maps = VolumeMaps(GenerationFolder.of(campaign.storage, 0), "v")
    maps.prepare(plan, ["thing"])
    files = {}
    for name in plan.quantities:
        values = np.stack([~mask, mask]) if name == "probability" else np.zeros(shape)
        files |= maps.write(name, plan.blocks[0], values.astype(np.float16))
    maps.mark(plan, 0, "d", files)
    maps.finish(
        MapReference(generation=0, volume_id="v", model_digest="d", quantities=plan.quantities, blocks=1, digest="d")
    )
    return campaign


def delivered(
    campaign: Campaign, out: Path, cleanup: CleanUp, objects: ObjectRule, block: ZYX, formats: tuple[Any, ...] = ()
) -> Result:
    """Go the whole way with one size of blocks."""
    record = campaign.volumes.record("v")
    rule = DeliveryRule(model_digest="d", truth_digest="", cleanup=(cleanup,), objects=objects)
    source = SourceVolume("v", campaign.url, campaign.url, 0)
    folder = DeliveryFolder(str(out))
    target = TargetVolume(source, folder, rule, record.shape_zyx, record.spacing_um_zyx, block)
    step = Step(folder.pass_url("v", "all"), "d")
    create_delivered_image(target.image_url, source, step, ("mask", "objects"), block)
    make_mask(target, Step(folder.pass_url("v", "mask"), "d"))
    make_objects(target, Step(folder.pass_url("v", "objects"), "d"))
    for name in ("mask", "objects"):
        pyramid = add_label_pyramid(target.image_url, name, step, record.spacing_um_zyx)
    write_table(target, Step(folder.pass_url("v", "table"), "d"), ["thing"])
    export_labels(target, Step(folder.pass_url("v", "files"), "d"), formats)
    url = target.label_url("objects")
    levels = [np.asarray(zarr.open_array(url, path=str(n), mode="r")[...]) for n in range(pyramid.levels)]
    ome_zarr.validate(target.image_url)
    return Result(levels[0], pq.read_table(out / table_path("v")).to_pylist(), levels)


def specks() -> Mask:
    """73,728 voxels that do not touch: more than 16 bits can number."""
    mask = np.zeros((64, 96, 96), bool)
    mask[::2, ::2, ::2] = True
    return mask


def at_all_faces() -> Mask:
    """One object that touches all six faces, by its arms, and eight in the corners."""
    mask = np.zeros((24, 30, 36), bool)
    mask[12], mask[:, 15], mask[:, :, 18] = False, False, False
    mask[12, 15, :] = mask[12, :, 18] = mask[:, 15, 18] = True
    for corner in np.ndindex(2, 2, 2):
        mask[tuple(-1 if c else 0 for c in corner)] = True
    return mask


CASES = {
    "nothing": (np.zeros((20, 30, 40), bool), 0),
    "everything": (np.ones((20, 30, 40), bool), 1),
    "one voxel": (np.arange(20 * 30 * 40).reshape(20, 30, 40) == 12_345, 1),
    "at all faces": (at_all_faces(), 9),
}
CLEANUPS = {
    "as it is": CleanUp(),
    "cleaned": CleanUp(bridge_um=3, bridge_probability=0.5, spurs_um=2, smallest_um3=0.5, cavities_um3=30),
}


@pytest.mark.parametrize(
    ("case", "cleanup"),
    [*((case, "as it is") for case in CASES), ("everything", "cleaned"), ("at all faces", "cleaned")],
)
def test_extremes_are_delivered_alike_by_four_sizes_of_blocks(tmp_path: Path, case: str, cleanup: str) -> None:
    mask, count = CASES[case]
    campaign = campaign_with(tmp_path / "campaign", mask, UNIT)
    shape = zyx(mask.shape)
    results = []
    for number, block in enumerate([shape, (12, 16, 24), (11, 30, 20), (20, 15, 40)]):
        out = tmp_path / f"out{number}"
        results.append(delivered(campaign, out, CLEANUPS[cleanup], ObjectRule(source="pieces"), block))
    first = results[0]
    assert len(first.rows) == int(first.objects.max())
    if cleanup == "as it is":
        assert first.objects.max() == count
        assert np.array_equal(first.objects > 0, mask)
    for row in first.rows:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float)), row
    assert sum(row["volume_um3"] for row in first.rows) == np.count_nonzero(first.objects)
    for other in results[1:]:
        assert np.array_equal(other.objects, first.objects)
        assert other.rows == first.rows
        for level, same in zip(other.levels, first.levels, strict=True):
            assert np.array_equal(level, same)


def test_more_objects_than_16_bits_can_number(tmp_path: Path) -> None:
    mask = specks()
    campaign = campaign_with(tmp_path / "campaign", mask, UNIT)
    objects, blocks = ObjectRule(source="pieces"), [(64, 96, 96), (32, 48, 40)]
    results = [
        delivered(campaign, tmp_path / f"out{n}", CleanUp(), objects, block, ("tiff",))
        for n, block in enumerate(blocks)
    ]
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == 73_728
    assert np.array_equal(results[0].objects, expected)
    assert [row["id"] for row in results[0].rows] == list(range(1, count + 1))
    assert {row["volume_um3"] for row in results[0].rows} == {1.0}
    assert results[1].rows == results[0].rows
    assert np.array_equal(tifffile.imread(tmp_path / "out0" / "v_objects.tif"), expected)


def test_balls_in_voxels_six_times_as_long(tmp_path: Path) -> None:
    """60 balls of 3 µm radius in voxels of 2 × 0.325 × 0.325 µm, half of them in touching pairs."""
    radius, shape = 3.0, (30, 170, 170)
    rng = np.random.default_rng(2)
    grid = [
        np.array([6.5 + 15 * z, 5.0 + 9.5 * y, 5.0 + 9.5 * x]) for z in range(4) for y in range(5) for x in range(5)
    ]
    centres = []
    for n, place in enumerate(grid[:45]):
        centres.append(place + rng.uniform(-0.4, 0.4, 3))
        if n < 15:
            centres.append(
                centres[-1] + np.array([5.6, 0.0, 0.0]) if n % 2 else centres[-1] + np.array([0.0, 0.0, 5.0])
            )
    assert len(centres) == 60
    places = np.stack(
        np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, ANISOTROPIC, strict=True)], indexing="ij"), -1
    )
    nearest = np.min([np.linalg.norm(places - c, axis=-1) for c in centres], axis=0)
    mask = nearest <= radius
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] < 60, "balls touch"
    campaign = campaign_with(tmp_path / "campaign", mask, ANISOTROPIC)
    dust = CleanUp(smallest_um3=20.0)
    objects = ObjectRule(source="distance", smoothing_um=0.3, depth=0.2, smallest_um3=10.0)
    results = [
        delivered(campaign, tmp_path / f"out{n}", dust, objects, block)
        for n, block in enumerate([(30, 170, 170), (8, 64, 50)])
    ]
    rows = results[0].rows
    assert len(rows) == 60
    assert np.array_equal(results[0].objects, results[1].objects)
    found = np.array([[row["z_um"], row["y_um"], row["x_um"]] for row in rows])
    nearest_ball = np.linalg.norm(found[:, None] - np.array(centres), axis=2)
    assert sorted(nearest_ball.argmin(axis=1)) == list(range(60)), "each ball is one object"
    ball = 4 / 3 * math.pi * radius**3
    alone = [row for row, near in zip(rows, nearest_ball.argmin(axis=1), strict=True) if near >= 30]
    assert np.median([row["volume_um3"] for row in alone]) == pytest.approx(ball, rel=0.05)
    assert np.median([row["sphericity"] for row in alone]) > 0.9
