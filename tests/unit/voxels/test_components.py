"""Components and holes are scipy's and scikit-image's, numbers too: a result that depends on them stays what it was."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label

from rescueseg.voxels.components import Connectivity, fill_holes, label_components

RANKS = {6: 1, 18: 2, 26: 3}
"""How many axes the step to a neighbour may take at most: how scipy and scikit-image count."""


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Boxes of up to 7 voxels, thinly and densely filled, flat ones and ones in another memory order too."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=3, max_size=3)))
    share = draw(st.sampled_from((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)))
    mask = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < share
    return draw(st.sampled_from((mask, np.asfortranarray(mask), mask[::-1, :, ::2])))


@settings(deadline=None)
@given(masks(), st.sampled_from(get_args(Connectivity)))
def test_the_components_of_a_mask_are_those_of_scipy_in_the_same_order(mask: np.ndarray, connectivity: Any) -> None:
    labels, count = label_components(mask, connectivity)
    expected, n = ndimage.label(mask, ndimage.generate_binary_structure(3, RANKS[connectivity]))
    np.testing.assert_array_equal(labels, expected)
    assert (count, labels.dtype) == (n, expected.dtype)


@given(
    st.lists(st.integers(2, 7), min_size=3, max_size=3),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from((np.uint8, np.uint16, np.int32, np.uint32, np.int64, ">i4")),
)
def test_values_that_touch_stay_apart_as_in_scikit_image(shape: list[int], most: int, seed: int, dtype: Any) -> None:
    values = np.random.default_rng(seed).integers(0, most + 1, shape).astype(dtype)
    for connectivity in get_args(Connectivity):
        labels, count = label_components(values, connectivity)
        expected = label(values.astype(np.int64), background=0, connectivity=RANKS[connectivity])
        np.testing.assert_array_equal(labels, expected)
        assert count == expected.max()


@pytest.mark.parametrize("connectivity", get_args(Connectivity))
@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 7, 9), (7, 1, 1), (9, 9, 1), (5, 5, 5), (1, 8, 7)])
def test_as_many_components_as_fit_are_counted(shape: tuple[int, int, int], connectivity: Any) -> None:
    """Every second voxel along each axis: the most components that 26 neighbours leave apart, flat boxes too."""
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    labels, count = label_components(mask, connectivity)
    assert count == mask.sum()
    assert labels[mask].tolist() == list(range(1, count + 1))


@given(masks())
def test_holes_are_those_of_scipy(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0)])
def test_boxes_without_voxels(shape: tuple[int, int, int]) -> None:
    for values in (np.zeros(shape, bool), np.zeros(shape, np.uint16)):
        labels, count = label_components(values, 26)
        assert (labels.shape, labels.dtype, count) == (shape, np.int32, 0)
    assert fill_holes(np.zeros(shape, bool)).shape == shape


def test_the_mask_is_not_changed() -> None:
    cube = np.ones((3, 3, 3), bool)
    cube[1, 1, 1] = False
    filled = fill_holes(cube)
    assert not cube[1, 1, 1]
    assert filled.all()
    assert filled.dtype == np.bool_
    label_components(cube, 6)
    assert cube.sum() == 26
