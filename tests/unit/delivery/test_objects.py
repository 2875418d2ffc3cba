"""Objects made block by block are those of the whole volume, voxel by voxel, and touching balls are parted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.config import ClusterConfig
from rescueseg.delivery.basins import find_basins
from rescueseg.delivery.objects import make_objects, objects_of_box
from rescueseg.delivery.records import DeliveryRule
from rescueseg.delivery.step import Step
from rescueseg.geometry import ZYX, Box, partition
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.storage import Storage
from rescueseg.voxels.basins import climb, find_saddles
from rescueseg.voxels.components import label_components
from tests.touching_balls import SHAPE, SPACING, make_target, maps_of, read_objects, rule_of, star_maps, truth

BLOCKS = [SHAPE, (24, 20, 33), (7, 60, 13), (10, 17, 64)]
RULES = {
    "pieces": ObjectRule(source="pieces", smallest_um3=1.0),
    "probability": ObjectRule(source="probability", smoothing_um=0.3, depth=0.05, smallest_um3=2.0),
    "distance": ObjectRule(source="distance", smoothing_um=0.2, depth=0.2),
    "boundary": ObjectRule(source="boundary", smoothing_um=0.2, depth=0.1, smallest_um3=2.0),
    "border_distance": ObjectRule(source="border_distance", smoothing_um=0.2, depth=0.3),
    "flow": ObjectRule(source="flow", farthest_um=0.8, depth=0.3, smallest_um3=2.0),
}
if find_spec("stardist"):
    RULES["rays"] = ObjectRule(source="rays", depth=0.5, smallest_um3=2.0)
TEMPERATURES = {"probability": 1.4, "boundary": 0.8}


def inputs(source: str) -> tuple[np.ndarray, dict[str, np.ndarray], DeliveryRule]:
    """Return mask, maps and rule; where the class is the boundary it is the second one, and has gaps in the mask."""
    boundary = source == "boundary"
    balls, number = truth(), 2 if boundary else 1
    maps: dict[str, Any] = maps_of(balls, boundary)
    mask = (balls > 0).astype(np.uint8)
    if source == "rays":
        maps |= star_maps(balls)
    if boundary:
        mask[maps["probability"][2] > 0.8] = 2
    return mask, maps, rule_of(RULES[source], TEMPERATURES.get(source, 1.0), number)


@pytest.mark.parametrize("source", ["probability", "distance", "boundary", "border_distance", "flow"])
def test_touching_balls_are_parted(source: str) -> None:
    mask, maps, rule = inputs(source)
    objects, balls = objects_of_box(mask, maps, rule, SPACING), truth()
    inside = objects > 0
    assert (objects.max(), objects.dtype) == (5, np.uint32)
    np.testing.assert_array_equal(inside, mask == 1)
    [names] = np.nonzero(np.bincount(balls[inside]))
    pairs = np.histogram2d(balls[inside], objects[inside], bins=(np.arange(1, 7) - 0.5, np.arange(1, 7) - 0.5))[0]
    assert len(names) == 5
    assert pairs.max(axis=1).sum() > 0.98 * inside.sum()
    assert sorted(pairs.argmax(axis=1)) == [0, 1, 2, 3, 4]
    assert label_components(mask == 1, 26)[1] < 5


@pytest.mark.parametrize("source", RULES)
def test_blocks_do_not_show(tmp_path: Path, source: str) -> None:
    mask, maps, rule = inputs(source)
    expected = objects_of_box(mask, maps, rule, SPACING)
    numbers, first = np.unique(expected, return_index=True)
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    assert (np.diff(first[1:]) > 0).all()
    for number, block in enumerate(BLOCKS):
        target = make_target(tmp_path / str(number), mask, maps, rule, block)
        assert make_objects(target, Step(str(tmp_path / str(number) / "step"), "d")) == expected.max()
        np.testing.assert_array_equal(read_objects(target), expected)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    with open_cluster(ClusterConfig(workers=2)) as client:
        yield client


@pytest.mark.parametrize("source", ["pieces", "probability"])
def test_workers_do_not_show(tmp_path: Path, two_workers: Any, source: str) -> None:
    mask, maps, rule = inputs(source)
    target = make_target(tmp_path, mask, maps, rule, (10, 30, 33))
    make_objects(target, Step(str(tmp_path / "step"), "d", two_workers))
    np.testing.assert_array_equal(read_objects(target), objects_of_box(mask, maps, rule, SPACING))


@pytest.mark.parametrize("source", ["pieces", "distance", *(["rays"] if "rays" in RULES else [])])
def test_a_kill_at_any_block_does_not_show(tmp_path: Path, source: str) -> None:
    mask, maps, rule = inputs(source)
    target, blocks, before = make_target(tmp_path, mask, maps, rule, (12, 30, 33)), 0, 0

    def die(done: int, _total: int) -> None:
        nonlocal blocks, before
        blocks, before = blocks + (done == before + 1), done
        if blocks == 3:
            raise KeyboardInterrupt

    for kill in range(40):
        blocks = before = 0
        try:
            count = make_objects(target, Step(str(tmp_path / "step"), "d", None, die))
            break
        except KeyboardInterrupt:
            kills = kill + 1
    assert kills >= 5
    expected = objects_of_box(mask, maps, rule, SPACING)
    assert count == expected.max()
    np.testing.assert_array_equal(read_objects(target), expected)
    assert make_objects(target, Step(str(tmp_path / "step"), "d")) == count
    assert not Path(target.out.scratch_url("v", "basins")).exists()


def test_lost_basins_are_found_anew(tmp_path: Path) -> None:
    mask, maps, rule = inputs("distance")
    target, step = make_target(tmp_path, mask, maps, rule, (12, 30, 33)), Step(str(tmp_path / "step"), "d")
    make_objects(target, step)
    step.storage.remove("objects.npz")
    step.storage.remove("write")
    make_objects(target, step)
    np.testing.assert_array_equal(read_objects(target), objects_of_box(mask, maps, rule, SPACING))


@pytest.mark.parametrize("source", RULES)
@pytest.mark.parametrize("value", [0, 1])
def test_nothing_and_everything(tmp_path: Path, source: str, value: int) -> None:
    shape, number = (5, 9, 8), 2 if source == "boundary" else 1
    mask = np.full(shape, value, np.uint8)
    maps = {"probability": np.full((number + 1, *shape), 1 / (number + 1), np.float32)}
    maps |= {"border_distance": np.ones((1, *shape), np.float32), "flow": np.zeros((3, *shape), np.float32)}
    if source == "rays":
        maps |= {"object_probability": np.ones((1, *shape), np.float32), "star_distance": np.full((18, *shape), 9.0)}
    rule = rule_of(RULES[source], object_class=number)
    target = make_target(tmp_path, mask, maps, rule, (4, 4, 4))
    assert make_objects(target, Step(str(tmp_path / "step"), "d")) == value
    np.testing.assert_array_equal(read_objects(target), mask)
    np.testing.assert_array_equal(objects_of_box(mask, maps, rule, SPACING), mask)


def test_without_another_class_all_that_is_not_boundary_becomes_objects() -> None:
    mask = np.zeros((1, 9, 9), np.uint8)
    mask[0, 2, 2:7] = mask[0, 6, 2:7] = mask[0, 2:7, 2] = mask[0, 2:7, 6] = 1
    probability = np.stack([1 - mask * 0.9, mask * 0.9]).astype(np.float32)
    rule = rule_of(ObjectRule(source="boundary", depth=0.1))
    objects = objects_of_box(mask, {"probability": probability}, rule, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(objects, label_components(mask == 0, 26)[0])


def test_small_objects_join_a_neighbour_or_vanish() -> None:
    mask = np.zeros((1, 1, 12), np.uint8)
    mask[0, 0, :7], mask[0, 0, 8:10] = 1, 1
    probability = np.array([6, 9, 6, 5, 7, 3, 9, 0, 8, 9, 0, 0], np.float32).reshape(1, 1, -1) / 10
    maps = {"probability": np.stack([1 - probability, probability])}
    rules = [rule_of(ObjectRule(source="probability", depth=0.1, smallest_um3=least)) for least in (0, 2, 3)]
    every, none_small, joined = (objects_of_box(mask, maps, rule, (1, 1, 1))[0, 0].tolist() for rule in rules)
    assert every == none_small == [1, 1, 1, 2, 2, 3, 3, 0, 4, 4, 0, 0]
    assert joined == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]


# basins ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayHeights:
    """Heights in memory."""

    array: np.ndarray

    def read(self, box: Box) -> np.ndarray:
        return self.array[box.slices]


def check_basins(folder: Path, heights: np.ndarray, block: ZYX) -> None:
    """Compare basins with those of the whole volume."""
    step = Step(str(folder / "step"), "d")
    basins, blocks = find_basins(ArrayHeights(heights), step, str(folder / "scratch.zarr"), heights.shape, block)
    labels, summits = climb(heights, (slice(None), slice(None), slice(None)))
    np.testing.assert_array_equal(basins.summits, summits)
    np.testing.assert_array_equal(basins.heights, heights.ravel()[summits])
    np.testing.assert_array_equal(basins.sizes, np.bincount(labels.ravel(), minlength=len(summits) + 1)[1:])
    values, first = np.unique(labels, return_index=True)
    np.testing.assert_array_equal(basins.first, first[values > 0])
    np.testing.assert_array_equal(basins.rows, find_saddles(labels, heights) - [1, 1, 0])
    for index, box in enumerate(partition(heights.shape, block)):
        numbers = np.concatenate([[0], np.searchsorted(summits, blocks.summits(index)) + 1])
        np.testing.assert_array_equal(numbers[blocks.labels(box)], labels[box.slices])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=3, max_size=3),
    st.lists(st.integers(3, 6), min_size=3, max_size=3),
    st.sampled_from((1, 4, 65535)),
    st.sampled_from((0.3, 0.8, 1.0)),
    st.integers(0, 2**32 - 1),
)
def test_basins_of_blocks_are_those_of_the_volume(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], block: list[int], levels: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    heights = (rng.integers(1, levels + 1, shape) * (rng.random(shape) < share)).astype(np.uint16)
    check_basins(tmp_path_factory.mktemp("basins"), heights, (block[0], block[1], block[2]))


def test_a_way_through_many_blocks_is_followed_to_its_end(tmp_path: Path) -> None:
    heights = np.zeros((1, 13, 40), np.uint16)
    row = [(y, x) for y in range(0, 13, 4) for x in (range(39, -1, -1) if y % 8 else range(40))]
    for end in (4, 8, 12):
        at = next(i for i, (y, _) in enumerate(row) if y == end)
        row[at:at] = [(y, row[at][1]) for y in range(end - 3, end)]
    for height, (y, x) in enumerate(row, start=1):
        heights[0, y, x] = height
    check_basins(tmp_path, heights, (1, 5, 4))
    assert Storage(str(tmp_path / "step")).exists("follow_4")
