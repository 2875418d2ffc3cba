"""Boxes and grids against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescueseg.geometry import Box, axis_starts, isotropic_shape, partition

small = st.integers(1, 12)
shapes = st.tuples(small, small, small)
offsets = st.tuples(*[st.integers(-6, 12)] * 3)
boxes = st.builds(Box, offsets, shapes)


def voxels(box: Box) -> set[tuple[int, ...]]:
    return {tuple(i) for i in np.argwhere(np.ones(box.shape_zyx)) + box.offset_zyx}


@given(boxes, boxes)
def test_intersection_is_the_common_voxels(a: Box, b: Box) -> None:
    common = voxels(a) & voxels(b)
    found = a.intersection(b)
    assert (voxels(found) if found else set()) == common
    assert a.intersects(b) == bool(common)
    assert a.contains(b) == (voxels(b) <= voxels(a))


@given(boxes)
def test_a_box_survives_json(box: Box) -> None:
    assert Box.from_dict(box.to_dict()) == box
    assert box.relative_to(box).offset_zyx == (0, 0, 0)
    assert box.size == len(voxels(box))


@given(small, small, st.data())
def test_windows_cover_an_axis_and_stay_inside(length: int, window: int, data: st.DataObject) -> None:
    count = np.zeros(length, int)
    for start in axis_starts(length, window, data.draw(st.integers(1, window))):
        assert 0 <= start <= max(0, length - window)
        count[start : start + window] += 1
    assert count.min() >= 1


@given(shapes, shapes)
def test_partition_covers_every_voxel_once(shape: tuple, block: tuple) -> None:
    count = np.zeros(shape, int)
    for cell in partition(shape, block):
        count[cell.slices] += 1
    assert (count == 1).all()


@given(shapes, st.integers(1, 1000), st.tuples(*[st.floats(0.1, 5)] * 3))
def test_isotropic_shape_fits(limit: tuple, count: int, spacing: tuple) -> None:
    shape = isotropic_shape(spacing, count, limit)
    assert all(1 <= s <= n for s, n in zip(shape, limit, strict=True))


def test_isotropic_shape_is_isotropic_in_micrometre() -> None:
    shape = isotropic_shape((2.0, 0.5, 0.5), 16 * 64 * 64, (100, 1000, 1000))
    assert shape == (16, 64, 64)


def test_a_flat_volume_gives_its_depth_to_the_plane() -> None:
    z, y, x = isotropic_shape((1.0, 1.0, 1.0), 64**3, (4, 1000, 1000))
    assert z == 4
    assert y == x == math.isqrt(64**3 // 4)


def test_an_empty_box_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one voxel"):
        Box((0, 0, 0), (1, 0, 1))
    with pytest.raises(ValueError, match="outside"):
        Box((9, 0, 0), (1, 1, 1)).clip((4, 4, 4))
