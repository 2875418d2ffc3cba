"""Components of volumes cut into blocks are those of the whole volume, number for number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.delivery.components import Components, find_components
from rescueseg.delivery.label_readers import ZarrLabels
from rescueseg.geometry import ZYX, Box, partition
from rescueseg.voxels.components import Connectivity, label_components


@dataclass(frozen=True)
class ArrayLabels:
    """Labels in memory."""

    array: np.ndarray

    def read(self, box: Box) -> np.ndarray:
        return self.array[box.slices]


def put_together(components: Components, labels: np.ndarray) -> np.ndarray:
    """Return the numbers of all voxels, block by block."""
    numbers, lookup = np.zeros(labels.shape, np.int64), components.lookup
    for index, box in enumerate(partition(labels.shape, lookup.block_zyx)):
        numbers[box.slices] = lookup.read(ArrayLabels(labels), box)
        local, count = label_components(labels[box.slices], lookup.connectivity)
        assert len(components.of_block(index)) == count + 1
        np.testing.assert_array_equal(components.of_block(index)[local], numbers[box.slices])
    return numbers


def check(folder: Path, labels: np.ndarray, block: ZYX, connectivity: Any) -> Components:
    """Compare components with those of the whole volume."""
    found = find_components(str(folder), "d", ArrayLabels(labels), labels.shape, block, connectivity)
    expected, count = label_components(labels, connectivity)
    np.testing.assert_array_equal(put_together(found, labels), expected)
    assert found.count == count
    np.testing.assert_array_equal(found.sizes[1:], np.bincount(expected.ravel(), minlength=count + 1)[1:])
    values, first = np.unique(expected, return_index=True)
    np.testing.assert_array_equal(found.first[1:], first[values > 0])
    np.testing.assert_array_equal(found.value[1:], labels.ravel()[found.first[1:]])
    inner = np.zeros(labels.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    np.testing.assert_array_equal(np.flatnonzero(found.border), np.setdiff1d(expected[~inner], [0]))
    assert (found.sizes[0], found.first[0], found.border[0], found.value[0]) == (0, -1, False, 0)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.integers(2, 6), min_size=3, max_size=3),
    st.sampled_from(get_args(Connectivity)),
    st.integers(1, 3),
    st.sampled_from((0.05, 0.2, 0.4, 0.7)),
    st.integers(0, 2**32 - 1),
)
def test_blocks_do_not_show(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    block: list[int],
    connectivity: Any,
    most: int,
    share: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.integers(1, most + 1, shape) * (rng.random(shape) < share)).astype(np.uint8)
    check(tmp_path_factory.mktemp("passes"), labels, (block[0], block[1], block[2]), connectivity)


def cases() -> dict[str, np.ndarray]:
    """Return what post-processing has to take: nothing, everything, and what lies in between."""
    one, specks = np.zeros((7, 8, 9), np.uint8), np.zeros((40, 120, 118), np.uint8)
    one[3, 4, 5] = 1
    specks[::2, ::2, ::2] = 1
    faces = np.zeros((12, 13, 14), np.uint8)
    for axis in range(3):
        for side in (0, -1):
            middle: list[Any] = [slice(4, 8)] * 3
            middle[axis] = side
            faces[tuple(middle)] = 1
    return {
        "empty": np.zeros((5, 6, 7), np.uint8),
        "full": np.ones((9, 10, 11), np.uint8),
        "one voxel": one,
        "70,000 specks": specks,
        "an object on every face": faces,
    }


COUNTS = {"empty": 0, "full": 1, "one voxel": 1, "70,000 specks": 20 * 60 * 59, "an object on every face": 6}


@pytest.mark.parametrize("block", [(64, 128, 128), (5, 64, 33), (16, 16, 118), (40, 7, 50)])
@pytest.mark.parametrize("case", COUNTS)
def test_nothing_and_everything(tmp_path: Path, case: str, block: ZYX) -> None:
    assert check(tmp_path, cases()[case], block, 26).count == COUNTS[case]


def test_a_spiral_through_all_blocks_is_one_component(tmp_path: Path) -> None:
    labels = np.zeros((3, 31, 31), np.uint8)
    top, bottom, left, right = 0, 30, 0, 30
    while top <= bottom and left <= right:
        labels[1, top, max(0, left - 2) : right + 1] = 1
        labels[1, top : bottom + 1, right] = 1
        labels[1, bottom, left : right + 1] = 1
        labels[1, top + 2 : bottom + 1, left] = 1
        top, bottom, left, right = top + 2, bottom - 2, left + 2, right - 2
    assert check(tmp_path, labels, (2, 4, 5), 6).count == 1


def test_a_rerun_reads_no_voxel_again_unless_the_labels_are_others(tmp_path: Path) -> None:
    class Nothing:
        def read(self, box: Box) -> np.ndarray:
            raise AssertionError

    labels = cases()["an object on every face"]
    before = check(tmp_path, labels, (5, 5, 5), 26)
    after = find_components(str(tmp_path), "d", Nothing(), labels.shape, (5, 5, 5), 26)
    np.testing.assert_array_equal(put_together(after, labels), put_together(before, labels))
    with pytest.raises(AssertionError):
        find_components(str(tmp_path), "e", Nothing(), labels.shape, (5, 5, 5), 26)
    check(tmp_path, labels[::-1, :, ::2], (5, 5, 5), 6)
    with pytest.raises(RuntimeError, match="no numbers"):
        before.of_block(0)


def test_labels_of_a_zarr_array(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (4, 5, 6), dtype=np.uint8)
    group = zarr.create_group(str(tmp_path / "labels.zarr"), zarr_format=3)
    group.create_array("mask/0", data=labels, chunks=(2, 5, 3))
    url, path, box = str(tmp_path / "labels.zarr"), "mask/0", Box((1, 0, 2), (3, 5, 4))
    part = labels[box.slices]
    np.testing.assert_array_equal(ZarrLabels(url, path).read(box), part)
    for reader, expected in (
        (ZarrLabels(url, path, 2), part == 2),
        (ZarrLabels(url, path, inverted=True), part == 0),
        (ZarrLabels(url, path, 2, inverted=True), part != 2),
    ):
        mask = reader.read(box)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)
