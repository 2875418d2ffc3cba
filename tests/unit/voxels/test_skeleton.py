"""Middle lines of solids worked out by hand, of random masks, and of real objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import skeletonize

from rescueseg.voxels.components import label_components
from rescueseg.voxels.skeleton import skeleton_of

EVERY = np.ones((3, 3, 3), bool)


def block(shape: tuple[int, int, int], *places: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def branch_points(line: np.ndarray) -> int:
    neighbours = ndimage.convolve(line.astype(np.uint8), EVERY.astype(np.uint8), mode="constant") - 1
    return label_components(line & (neighbours > 2), 26)[1]


@pytest.mark.parametrize("length", [9, 10, 20, 40])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rod_becomes_a_line_about_as_long(length: int, width: int, axis: int) -> None:
    rod = block((12, 12, 50), (slice(3, 3 + width), slice(3, 3 + width), slice(4, 4 + length)))
    line = skeleton_of(np.moveaxis(rod, 2, axis))
    places = np.argwhere(line)
    assert length - width <= len(places) <= length
    assert len(np.unique(places[:, axis])) == len(places), "one voxel after the other"
    across = np.delete(places, axis, axis=1)
    assert np.abs(across - (3 + (width - 1) / 2)).max() <= 1, "in the middle"
    assert line[~np.moveaxis(rod, 2, axis)].sum() == 0


@pytest.mark.parametrize("width", [2, 4])
def test_rods_and_sheets_that_the_box_cuts_keep_a_line(width: int) -> None:
    rod = block((12, 12, 20), (slice(3, 3 + width), slice(3, 3 + width), slice(None)))
    sheet = block((12, 20, 20), (slice(3, 3 + width), slice(None), slice(None)))
    assert not skeletonize(rod).any()
    assert 20 - width <= skeleton_of(rod).sum() <= 20
    for mask in (sheet, np.ones((2, 2, 2), bool), np.ones((4, 4, 4), bool), np.ones((8, 8, 8), bool)):
        assert skeleton_of(mask).any()


@pytest.mark.parametrize("width", [2, 4])
def test_an_arm_of_even_width_is_kept(width: int) -> None:
    """What a thinning takes off from its end, though the rest of the object keeps a line."""
    bar, arm = slice(6, 6 + width), slice(20, 20 + width)
    letter = block((15, 42, 50), (bar, bar, slice(5, 45)), (bar, slice(6, 36), arm))
    far = [
        ndimage.distance_transform_edt(~np.asarray(thin, bool))[letter].max()
        for thin in (skeletonize(letter), skeleton_of(letter))
    ]
    assert far[0] > 15
    assert far[1] < 4
    line = skeleton_of(letter)
    assert 70 - 3 * width <= line.sum() <= 70
    assert branch_points(line) == 1


@given(st.integers(0, 10_000), st.tuples(*[st.integers(1, 12)] * 3), st.floats(0.5, 2.0), st.floats(-0.1, 0.1))
@settings(deadline=None, max_examples=60)
def test_every_component_keeps_one_line_inside(
    seed: int, shape: tuple[int, int, int], smooth: float, level: float
) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth) > level
    numbers, count = label_components(mask, 26)
    line = skeleton_of(mask)
    assert not line[~mask].any()
    assert label_components(line, 26)[1] == count
    assert set(np.unique(numbers[line])) == set(range(1, count + 1))


@pytest.mark.parametrize("name", ["stardist_img3d", "gonuclear_1135", "bbbc050_mosaic_train", "cdeep3m_mito_train"])
def test_real_objects_keep_a_line(real_data: Path, name: str) -> None:
    mask = tifffile.imread(real_data / name / "labels.tif")[:32, :128, :128] > 0
    numbers, count = label_components(mask, 26)
    line = skeleton_of(mask)
    assert set(np.unique(numbers[line])) == set(range(1, count + 1))
    changed = np.unique(numbers[line != np.asarray(skeletonize(mask), bool)])
    assert len(changed) < count / 2, "most are as scikit-image has them"
