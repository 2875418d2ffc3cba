from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from rescueseg.errors import CampaignError, ConfigError, VolumeError
from rescueseg.geometry import Box, Patch
from rescueseg.records import Relation
from rescueseg.shared_places import GridMap
from rescueseg.volumes import VolumeImport, comparison, import_volume
from rescueseg.volumes.anchors import find_anchors
from rescueseg.volumes.batch_import import add_volumes
from rescueseg.volumes.coarse_reading import Pyramid
from rescueseg.volumes.import_lock import one_at_a_time
from rescueseg.volumes.near_copies import near_copy
from rescueseg.volumes.ome_zarr import downsample, level_factors
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.same_voxels import ORIENTATIONS, equal_voxels

SPACING = (0.25, 0.1, 0.1)
TWICE = (0.5, 0.2, 0.2)


def equal(one: np.ndarray, other: np.ndarray) -> list[GridMap]:
    one, other = one[np.newaxis], other[np.newaxis]
    found = equal_voxels(one, other, find_anchors(one), find_anchors(other))
    assert all(share == 1 for _, share in found)
    return [grid for grid, _ in found]


def pyramid(image: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Pyramid:
    levels = [image]
    while factors := level_factors(levels[-1].shape, spacing):
        levels.append(downsample(levels[-1], factors))
        spacing = tuple(s * f for s, f in zip(spacing, factors, strict=True))
    return Pyramid(tuple(level[np.newaxis] for level in levels))


def eight_bit(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), np.percentile(image, 99.9)
    return ((image - float(low)) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    return make_phantom(seed=1)[0]


@pytest.fixture(scope="module")
def another() -> np.ndarray:
    return make_phantom(seed=2)[0]


# equal voxels


@pytest.mark.parametrize("seed", range(24))
def test_turned_crops_lie_where_their_voxels_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 4000, (30, 32, 34)).astype(np.uint16)
    numbers = np.arange(source.size).reshape(source.shape)
    cuts = []
    for number in range(2):
        shape = rng.integers(10, 22, 3)
        at = tuple(slice(o, o + n) for o, n in zip(rng.integers(0, 30 - shape), shape, strict=True))
        axes, signs = ORIENTATIONS[int(rng.integers(48))] if number else ORIENTATIONS[0]
        cuts.append((at, axes, tuple(slice(None, None, s) for s in signs)))
    one, other = (source[at].transpose(axes)[turn] for at, axes, turn in cuts)
    here, there = (numbers[at].transpose(axes)[turn] for at, axes, turn in cuts)
    found = equal(one, other.astype(np.float32))
    common = np.isin(there, here)
    assert bool(found) == (common.sum() >= 16)
    for grid in found[:1]:
        box = grid.box(Box((0, 0, 0), there.shape)).intersection(Box((0, 0, 0), here.shape))
        assert box is not None
        np.testing.assert_array_equal(np.sort(here[box.slices].ravel()), np.sort(there[common]))
        voxel = Box(tuple(int(i) for i in np.argwhere(common)[0]), (1, 1, 1))
        assert here[grid.box(voxel).slices].item() == there[voxel.slices].item()


@pytest.mark.parametrize("thin", [(1, 40, 40), (40, 1, 40), (1, 1, 40)])
def test_overlaps_of_one_voxel_are_found(thin: tuple[int, int, int]) -> None:
    source = np.random.default_rng(0).integers(0, 4000, (80, 80, 80)).astype(np.uint16)
    start = [40 - n if n < 40 else 0 for n in thin]
    found = equal(source[:40, :40, :40], source[tuple(slice(o, o + 40) for o in start)])
    assert found
    assert found[0] == GridMap((0, 1, 2), (1, 1, 1), tuple(float(o) for o in start))


def test_unlike_volumes_that_are_flat_saturated_or_dark_share_nothing(phantom: np.ndarray, another: np.ndarray) -> None:
    assert equal(phantom, another) == []
    dim = [np.clip(v / 8, 10, 60).astype(np.uint8) for v in (phantom, another)]
    assert equal(*dim) == []
    masked = [np.where(v > 900, 255, 0).astype(np.uint8) for v in (phantom, another)]
    assert equal(*masked) == []
    padded = [np.pad(v[:20, :60, :60], 20) for v in (phantom, another)]
    assert equal(*padded) == []
    assert equal(np.zeros((20, 20, 20)), np.zeros((20, 20, 20))) == []


def test_what_is_constant_along_an_axis_joins_nothing_at_any_shift() -> None:
    """Two specimens with one bar along z: it lies alike at all shifts, whatever few planes the volumes share there."""
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 4000, (32, 24, 24)).astype(np.uint16) for _ in range(2))
    one[:, 4:20, 4:20] = other[:, 4:20, 4:20] = rng.integers(0, 4000, (16, 16))
    assert equal(one, other) == []


def test_a_tile_that_a_file_holds_twice_is_found_twice(phantom: np.ndarray) -> None:
    tile = phantom[:, :60, :60]
    found = equal(np.concatenate([tile, phantom[:, 60:90, 80:140], tile[:, ::-1]], axis=1), tile)
    assert {(grid.steps, grid.start) for grid in found} == {
        ((1, 1, 1), (0, 0, 0)),
        ((1, -1, 1), (0, 150, 0)),
    }


def test_large_volumes_keep_few_windows_and_find_small_crops() -> None:
    large = np.random.default_rng(0).normal(1000, 50, (64, 300, 300)).astype(np.uint16)
    kept = find_anchors(large[np.newaxis])
    assert len(kept.rows) < 120_000
    crop = large[20:52, 101:133, 57:89]
    assert equal_voxels(large[np.newaxis], crop[np.newaxis], kept, find_anchors(crop[np.newaxis])) == [
        (GridMap((0, 1, 2), (1, 1, 1), (20, 101, 57)), 1.0)
    ]


# near copies


@pytest.mark.parametrize(
    ("change", "spacing", "expected"),
    [
        (eight_bit, SPACING, ((1, 1, 1), (0, 0, 0))),
        (lambda v: 255 - eight_bit(v), SPACING, ((1, 1, 1), (0, 0, 0))),
        (lambda v: eight_bit(v)[:, ::-1, ::-1], SPACING, ((1, -1, -1), (0, 160, 160))),
        (lambda v: eight_bit(v)[4:30, 40:140, 31:120], SPACING, ((1, 1, 1), (4, 40, 31))),
        (lambda v: downsample(v, (2, 2, 2)), TWICE, ((2, 2, 2), (0, 0, 0))),
        (lambda v: downsample(v, (2, 2, 2)), SPACING, ((2, 2, 2), (0, 0, 0))),
        (lambda v: downsample(eight_bit(v), (1, 2, 2))[::-1], (0.25, 0.2, 0.2), ((-1, 2, 2), (32, 0, 0))),
        (lambda v: ndimage.gaussian_filter(v.astype(np.float32), 0.7), SPACING, ((1, 1, 1), (0, 0, 0))),
    ],
)
def test_near_copies_are_found_where_they_lie(phantom: np.ndarray, change, spacing, expected) -> None:
    grid = near_copy(pyramid(phantom), pyramid(change(phantom), spacing), SPACING, spacing)
    assert grid is not None
    steps, start = expected
    assert (grid.axes, grid.steps) == ((0, 1, 2), steps)
    assert all(abs(a - b) <= t for a, b, t in zip(grid.start, start, grid.tolerance, strict=True))
    assert max(grid.tolerance) <= 2


def test_a_near_copy_with_its_axes_exchanged_is_found(phantom: np.ndarray) -> None:
    turned = eight_bit(phantom).transpose(2, 1, 0)
    grid = near_copy(pyramid(phantom), pyramid(turned, (0.1, 0.1, 0.25)), SPACING, (0.1, 0.1, 0.25))
    assert grid == GridMap((2, 1, 0), (1, 1, 1), (0, 0, 0))


def test_a_crop_of_a_large_volume_is_followed_to_the_voxel() -> None:
    large = make_phantom((40, 400, 400), seed=5)[0]
    grid = near_copy(pyramid(large), pyramid(eight_bit(large)[5:37, 101:265, 57:221]), SPACING, SPACING)
    assert grid == GridMap((0, 1, 2), (1, 1, 1), (5, 101, 57))


def test_unlike_specimens_under_one_illumination_or_camera_are_not_joined(
    phantom: np.ndarray, another: np.ndarray
) -> None:
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    light, stripes = 1 - 0.6 * (x * x + y * y), np.random.default_rng(0).normal(0, 60, (160, 160))
    for one, other in (
        (phantom, another),
        (phantom * light, another * light),
        (phantom + stripes, another + stripes),
        (phantom[:, :24, :24], another[:, :24, :24]),
    ):
        assert near_copy(pyramid(one), pyramid(other), SPACING, SPACING) is None


class Counted:
    """A level that counts the voxels read of it."""

    def __init__(self, level: np.ndarray) -> None:
        self.level, self.shape, self.dtype, self.read = level, level.shape, level.dtype, 0

    def __getitem__(self, index: object) -> np.ndarray:
        part = self.level[index]
        self.read += part.size
        return part


def test_flat_volumes_are_not_read_at_full_resolution() -> None:
    rng = np.random.default_rng(0)
    coarse = [rng.normal(1000, 200, (20, 160, 160)) for _ in range(2)]
    coarse.append(coarse[0][:, ::-1])
    flat = [ndimage.zoom(c.astype(np.float32), (1, 5, 5), order=1) for c in coarse]
    read = [Pyramid(tuple(Counted(level) for level in pyramid(image).levels)) for image in flat]
    assert near_copy(read[0], read[1], SPACING, SPACING) is None
    first = sum(level.read for level in read[0].levels)
    assert read[0].levels[0].read == 0
    assert 0 < first <= 2**23
    assert near_copy(read[0], pyramid(flat[1][:, ::-1] ** 2), SPACING, SPACING) is None
    assert sum(level.read for level in read[0].levels) == first, "the coarse grid serves the next pair too"
    assert near_copy(read[0], read[2], SPACING, SPACING) == GridMap((0, 1, 2), (1, -1, 1), (0, 800, 0))
    assert sum(level.read for level in read[0].levels) <= 2 * 2**23


def test_tiles_that_only_touch_are_not_joined_and_those_that_overlap_are(phantom: np.ndarray) -> None:
    left, right = phantom[:, :, :80], eight_bit(phantom)
    assert near_copy(pyramid(left), pyramid(right[:, :, 80:]), SPACING, SPACING) is None
    grid = near_copy(pyramid(left), pyramid(right[:, :, 64:]), SPACING, SPACING)
    assert grid == GridMap((0, 1, 2), (1, 1, 1), (0, 0, 64))


@pytest.mark.parametrize(
    "name",
    ["gonuclear_1135", "plantseg_ovule_cells", "stardist_img3d", "vesselnn_burgess2014_tgMouse", "gala_em_train"],
)
def test_tiles_of_real_volumes(real_data: Path, name: str) -> None:
    """Halves that touch share nothing; a mirrored 8-bit tile that overlaps by a third lies where it does."""
    image = tifffile.imread(real_data / name / "raw.tif")[:, :400, :400]
    spacing = tuple(json.loads((real_data / name / "meta.json").read_text())["voxel_size_um_zyx"])
    half = image.shape[2] // 2
    left, right, begin = image[:, :, :half], image[:, :, half:], half - half // 3
    assert equal(left, right) == []
    assert near_copy(pyramid(left, spacing), pyramid(right, spacing), spacing, spacing) is None
    tile = eight_bit(image)[:, ::-1, begin:]
    grid = near_copy(pyramid(left, spacing), pyramid(tile, spacing), spacing, spacing)
    assert grid == GridMap((0, 1, 2), (1, -1, 1), (0, image.shape[1], begin))
    assert equal(left, image[:, 5:, half - 3 :])[0].start == (0, 5, half - 3)


def test_a_coarse_grid_holds_the_means_of_what_its_cells_cover() -> None:
    image = np.random.default_rng(0).random((1, 10, 12, 14))
    read = Pyramid((image,)).read(0, (1, 2, 3), (2, 3, 4), (4, 3, 2))
    expected = [
        [[image[0, 1 + 2 * i : 3 + 2 * i, 2 + 3 * j : 5 + 3 * j, 3 + 4 * k : 7 + 4 * k].mean() for k in range(2)]
         for j in range(3)] for i in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(read, expected)
    half = Pyramid((image,)).read(0, (0.5, 0, 0), (1, 1, 1), (3, 12, 14))
    np.testing.assert_allclose(half, (image[0, :3] + image[0, 1:4]) / 2)


def test_the_levels_of_a_pyramid_lie_where_they_do() -> None:
    """Of an odd length, too, where a level is not exactly half as long."""
    image = np.broadcast_to(np.arange(257, dtype=np.float32), (65, 65, 257))
    found = pyramid(image, (1, 1, 1))
    assert len(found.levels) > 1
    read = found.read(0, (0, 0, 0), (4, 4, 8), (16, 16, 32))
    np.testing.assert_allclose(read, np.broadcast_to(8 * np.arange(32) + 3.5, read.shape))


# campaigns


def test_few_equal_voxels_do_not_hide_how_the_rest_lies(
    campaign: Campaign, tmp_path: Path, phantom: np.ndarray
) -> None:
    """A rescaling leaves some values as they were: they alone may suit another way to lie as well."""
    image = eight_bit(ndimage.gaussian_filter(phantom.astype(np.float32), 1.5))[:, :100, :100]
    rescaled = ((image - 13.0) * 1.0625).clip(0, 255).round().astype(np.uint8)[:, ::-1]
    import_volume(campaign, VolumeImport(write(tmp_path, "a", image), spacing=SPACING))
    import_volume(campaign, VolumeImport(write(tmp_path, "b", rescaled), spacing=SPACING))
    patch = Patch("a", Box((3, 5, 7), (4, 4, 4)))
    assert any(
        box.contains(Box((3, 100 - 9, 7), (4, 4, 4))) for box in campaign.volumes.shared_places().boxes_in("b", [patch])
    )


def contents(campaign: Campaign) -> dict[str, bytes]:
    folder = Path(campaign.storage.path(""))
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder: Path, name: str, image: np.ndarray) -> str:
    tifffile.imwrite(folder / f"{name}.tif", np.ascontiguousarray(image), metadata={"axes": "ZYX"})
    return str(folder / f"{name}.tif")


def test_an_image_is_known_again_with_another_truth_and_spacing(
    campaign: Campaign, tmp_path: Path, phantom: np.ndarray
) -> None:
    file = write(tmp_path, "a", phantom[:, :60, :60])
    truth = write(tmp_path, "t", (phantom[:, :60, :60] > 900).astype(np.uint8))
    first = import_volume(campaign, VolumeImport(file, spacing=SPACING))
    said: list[str] = []
    add_volumes(campaign, [VolumeImport(file, spacing=TWICE, truth=truth, volume_id="b")], say=said.append)
    assert campaign.volumes.record("b").digest != first.digest
    assert said[1:] == ["'b' shows what 'a' shows: voxels are equal, so holdout boxes of one count in the other"]
    patch = Patch("a", Box((3, 5, 7), (4, 4, 4)))
    assert campaign.volumes.shared_places().boxes_in("b", [patch]) == [patch.box]


def test_a_near_copy_may_be_declared_distinct_and_equal_voxels_may_not(
    campaign: Campaign, tmp_path: Path, phantom: np.ndarray
) -> None:
    import_volume(campaign, VolumeImport(write(tmp_path, "a", phantom), spacing=SPACING))
    files = [write(tmp_path, "b", eight_bit(phantom)[:, ::-1]), write(tmp_path, "c", phantom[4:])]
    said: list[str] = []
    add_volumes(campaign, [VolumeImport(files[0], spacing=SPACING)], say=said.append)
    assert said[1] == (
        "'b' shows what 'a' shows, mirrored along y: a near copy, so holdout boxes of one count in the other; "
        "if they are different specimens, add it with --distinct-from a"
    )
    assert campaign.volumes.shared_places().related("a") == ["a", "b"]
    done = CliRunner().invoke(app, ["add", campaign.url, *files, "--spacing", "0.25,0.1,0.1", "--distinct"])
    assert done.exit_code == 0, done.output
    assert "a person said that they are different specimens" in done.output.replace("\n", " ")
    assert campaign.volumes.shared_places().related("a") == ["a", "c"]
    kinds = {(r.one, r.other): (r.found, r.distinct) for r in campaign.volumes.relations().relations}
    assert kinds["a", "b"] == ("near copy", True)
    assert kinds["a", "c"] == ("equal voxels", False)


def test_campaigns_of_earlier_versions_are_compared_later(
    campaign: Campaign, tmp_path: Path, phantom: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_STORED", 0)
    for name, part in (("a", phantom), ("b", phantom[4:, ::-1]), ("c", make_phantom((24, 40, 40), seed=3)[0])):
        import_volume(campaign, VolumeImport(write(tmp_path, name, part), volume_id=name, spacing=SPACING))
    found = campaign.volumes.relations()
    assert [(r.one, r.other) for r in found.relations] == [("a", "b")]
    assert len(campaign.storage.list("volumes/anchors")) == 3
    campaign.storage.remove("relations.json")
    campaign.storage.remove("volumes/anchors")
    with pytest.raises(CampaignError, match=r"never compared: a, b, c. Run 'rescueseg check"):
        campaign.volumes.shared_places()
    before = contents(campaign)
    dry = Campaign.open(campaign.url)
    comparison.ensure_compared(dry.volumes, write=False)
    assert dry.volumes.shared_places().related("a") == ["a", "b"]
    assert contents(campaign) == before
    steps: list[tuple[str, int, int]] = []
    comparison.ensure_compared(campaign.volumes, lambda what, done, total: steps.append((what, done, total)))
    assert campaign.volumes.relations() == found
    assert steps == [(f"{v}: compared with the others", i, 3) for i, v in enumerate("abc")]
    steps.clear()
    comparison.ensure_compared(campaign.volumes, lambda what, done, total: steps.append((what, done, total)))
    assert steps == []
    done = CliRunner().invoke(app, ["check", campaign.url])
    assert done.exit_code == 0, done.output
    assert "'b' shows what 'a' shows, mirrored along y, at [4:32, 0:160, 0:160] of it" in done.output.replace("\n", " ")


def test_what_was_found_of_a_volume_that_never_came_in_says_nothing(
    campaign: Campaign, tmp_path: Path, phantom: np.ndarray
) -> None:
    """An import killed before its last act leaves its relations; another file may then get the name."""
    import_volume(campaign, VolumeImport(write(tmp_path, "a", phantom), spacing=SPACING))
    known = campaign.volumes.relations()
    stale = Relation(
        one="a", other="b", axes=(0, 1, 2), steps=(1, 1, 1), start=(0, 0, 0), tolerance=(0, 0, 0), found="equal voxels"
    )
    campaign.volumes.save_relations(
        known.model_copy(update={"compared": {**known.compared, "b": "gone"}, "relations": (stale,)})
    )
    assert campaign.volumes.shared_places().related("a") == ["a"]
    import_volume(campaign, VolumeImport(write(tmp_path, "b", make_phantom((24, 40, 40), seed=3)[0]), spacing=SPACING))
    assert campaign.volumes.relations().relations == ()
    assert campaign.volumes.shared_places().related("b") == ["b"]


@pytest.fixture
def three(campaign: Campaign, tmp_path: Path, phantom: np.ndarray) -> Campaign:
    """A volume and two near copies of it, of which the second is an inverted copy of the first."""
    image = phantom[:24, :48, :48]
    for name, part in (("a", image), ("b", eight_bit(image)), ("c", 255 - eight_bit(image))):
        import_volume(campaign, VolumeImport(write(tmp_path, name, part), spacing=SPACING))
    assert {(r.one, r.other) for r in campaign.volumes.relations().relations} == {("a", "b"), ("a", "c")}
    assert campaign.volumes.relations().through == (("b", "c"),)
    return campaign


def test_copies_of_a_volume_that_leaves_are_compared_with_each_other(three: Campaign, tmp_path: Path) -> None:
    three.storage.remove("volumes/a.json")
    with pytest.raises(CampaignError, match="never compared: b, c"):
        three.volumes.shared_places()
    comparison.ensure_compared(three.volumes)
    assert three.volumes.shared_places().related("b") == ["b", "c"]
    assert three.volumes.relations().through == ()


def test_copies_of_a_volume_that_is_replaced_are_compared_with_each_other(three: Campaign, tmp_path: Path) -> None:
    three.storage.remove("volumes/a.json")
    import_volume(three, VolumeImport(write(tmp_path, "a", make_phantom((24, 40, 40), seed=3)[0]), spacing=SPACING))
    assert three.volumes.shared_places().related("b") == ["b", "c"]
    assert three.volumes.shared_places().related("a") == ["a"]


def test_copies_of_a_volume_that_is_declared_distinct_are_compared_with_each_other(three: Campaign) -> None:
    comparison.declare_distinct(three.volumes, "a")
    assert three.volumes.shared_places().related("b") == ["b", "c"]
    assert three.volumes.shared_places().related("a") == ["a"]
    marks = {(r.one, r.other): r.distinct for r in three.volumes.relations().relations}
    assert marks == {("a", "b"): True, ("a", "c"): True, ("b", "c"): False}


def test_one_near_copy_may_be_declared_distinct_and_the_others_stay(three: Campaign, tmp_path: Path) -> None:
    file = str(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=r"there is no volume 'nobody'. Volumes: a, b, c"):
        add_volumes(three, [VolumeImport(file, spacing=SPACING, distinct_from=["nobody"])])
    comparison.declare_distinct(three.volumes, "c", ["b"])
    assert three.volumes.shared_places().related("a") == ["a", "b", "c"], "they are no near copies that were found"
    said: list[str] = []
    add_volumes(three, [VolumeImport(file, spacing=SPACING, distinct_from=["c"])], say=said.append)
    assert said[1].startswith("  'c' and 'a' still count as one specimen"), "b is a near copy of both"
    marks = {(r.one, r.other): r.distinct for r in three.volumes.relations().relations}
    assert (marks["a", "b"], marks["a", "c"]) == (False, True)


def test_an_image_that_is_not_there_is_named_and_nothing_changes(three: Campaign, tmp_path: Path) -> None:
    three.storage.remove("volumes/b.ome.zarr")
    before = contents(three)
    with pytest.raises(VolumeError, match=r"the image of volume 'b' is not there.*remove volumes/b.json as well"):
        import_volume(three, VolumeImport(write(tmp_path, "d", make_phantom((24, 40, 40), seed=3)[0]), spacing=SPACING))
    assert contents(three) == before


def test_volumes_whose_channels_differ_in_number_are_compared_too(
    campaign: Campaign, tmp_path: Path, phantom: np.ndarray, another: np.ndarray
) -> None:
    both = np.stack([another, phantom], axis=1)
    tifffile.imwrite(tmp_path / "both.tif", both, metadata={"axes": "ZCYX"}, imagej=True)
    import_volume(campaign, VolumeImport(str(tmp_path / "both.tif"), spacing=SPACING))
    import_volume(campaign, VolumeImport(write(tmp_path, "a", phantom[4:]), spacing=SPACING))
    assert [(r.one, r.other, r.start, r.found) for r in campaign.volumes.relations().relations] == [
        ("both", "a", (4, 0, 0), "equal voxels")
    ]


def test_waiting_for_another_import_is_said(campaign: Campaign, caplog: pytest.LogCaptureFixture) -> None:
    with one_at_a_time(campaign.storage):
        pass
    assert caplog.messages == []
    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(campaign.storage):
            waiting = pool.submit(lambda: one_at_a_time(campaign.storage).__enter__())
            time.sleep(2.5)
            assert not waiting.done()
            assert "another process imports or compares volumes" in caplog.text
        waiting.result(timeout=10)
