"""Patches of a rough mask: disjoint, small, and with whole objects in them where there are any."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.geometry import Box
from rescueseg.triage.rough_masks import central_box
from rescueseg.triage.rough_truth import (
    LEAST_LIMIT,
    MOST_LIMIT,
    NETWORK_SHARE,
    WHOLE_OBJECTS,
    objects_of,
    rough_boxes,
    whole_objects,
)

SPACING = (2.0, 1.0, 1.0)


def balls(shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    numbers = np.zeros(shape, np.int32)
    grid = np.indices(shape)
    for i in range(1, count + 1):
        centre = [rng.integers(3, n - 3) for n in shape]
        radius = rng.uniform(4, 7)
        away = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, SPACING, strict=True))
        numbers[(away <= radius**2) & (numbers == 0)] = i
    return numbers


def net(shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2 - 1 : shape[0] // 2 + 2, ::12] = 1
    mask[shape[0] // 2 - 1 : shape[0] // 2 + 2, :, ::12] = 1
    return mask


@given(st.integers(0, 50), st.integers(6, 40))
@settings(deadline=None, max_examples=15)
def test_patches_are_disjoint_inside_the_volume_and_hold_whole_objects(seed: int, count: int) -> None:
    numbers = balls((30, 90, 90), count, seed)
    boxes = rough_boxes(lambda box: numbers[box.slices], numbers.shape, SPACING, np.random.default_rng(seed))
    assert boxes == rough_boxes(lambda box: numbers[box.slices], numbers.shape, SPACING, np.random.default_rng(seed))
    volume = Box((0, 0, 0), numbers.shape)
    assert boxes
    assert all(volume.contains(box) for box in boxes)
    assert not any(a.intersects(b) for i, a in enumerate(boxes) for b in boxes[:i])
    held = [len(whole_objects(objects_of(numbers[box.slices]), box, numbers.shape)) for box in boxes]
    assert min(held) >= 1 or len(boxes) == 1


@pytest.mark.parametrize("seed", range(4))
def test_five_whole_objects_are_held_where_there_are_many(seed: int) -> None:
    numbers = balls((40, 160, 160), 60, seed)
    boxes = rough_boxes(lambda box: numbers[box.slices], numbers.shape, SPACING, np.random.default_rng(seed))
    assert sum(len(whole_objects(objects_of(numbers[b.slices]), b, numbers.shape)) for b in boxes) >= WHOLE_OBJECTS
    assert sum(box.size for box in boxes) < 0.3 * numbers.size


def test_a_network_ends_at_its_share_of_the_volume() -> None:
    mask = net((12, 600, 600))
    boxes = rough_boxes(lambda box: mask[box.slices], mask.shape, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert len(boxes) == 1
    limit = max(LEAST_LIMIT, NETWORK_SHARE * math.prod(mask.shape))
    assert 0.8 * limit < boxes[0].size < 1.4 * limit


def test_on_a_huge_volume_a_network_ends_at_what_fits_into_memory() -> None:
    shape, seen = (2000, 20000, 20000), []

    def read(box: Box) -> np.ndarray:
        seen.append(box.size)
        z, y, x = np.ogrid[box.slices]
        return ((z % 12 < 3) & (y % 12 < 3) | (x % 12 < 3)).astype(np.uint8)

    boxes = rough_boxes(read, shape, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert len(boxes) == 1
    assert max(seen) < 1.4 * MOST_LIMIT + 64 * 256 * 256


def test_an_empty_volume_gives_no_patch() -> None:
    nothing = np.zeros((10, 20, 20), np.uint8)
    assert rough_boxes(lambda box: nothing[box.slices], nothing.shape, SPACING, np.random.default_rng(0)) == []


def test_an_object_at_the_volumes_own_border_is_whole() -> None:
    numbers = np.zeros((10, 20, 20), np.int32)
    numbers[0:5, 5:10, 5:10] = 1
    assert whole_objects(numbers, Box((0, 0, 0), (10, 20, 20)), (10, 20, 20)) == [1]
    assert whole_objects(numbers, Box((3, 0, 0), (10, 20, 20)), (13, 20, 20)) == []


@given(
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.floats(0.1, 5)] * 3),
    st.integers(10_000, 2_000_000),
)
@settings(deadline=None)
def test_of_a_large_patch_the_middle_is_looked_at(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], voxels: int
) -> None:
    box = Box((5, 0, 9), shape)
    middle = central_box(box, spacing, voxels)
    assert box.contains(middle)
    assert middle == box or middle.size <= 1.5 * voxels
    assert middle == box or box.size > voxels
