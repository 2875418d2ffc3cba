"""Disagreement about objects: exact where it can be computed by hand, and what the definition says everywhere else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rescueseg.inference.object_disagreement import object_disagreement

SHAPE = (9, 9, 20)


def two_balls(smaller: float = 4.0) -> np.ndarray:
    """Return two balls that touch, 1 and 2; voxels of both belong to the first."""
    z, y, x = np.mgrid[:9, :9, :20]
    first = (z - 4) ** 2 + (y - 4) ** 2 + (x - 5) ** 2 <= 4.0**2
    second = (z - 4) ** 2 + (y - 4) ** 2 + (x - 14) ** 2 <= smaller**2
    return np.where(first, 1, np.where(second, 2, 0))


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("smaller", [4.0, 2.0])
def test_two_balls_that_some_members_merge(n: int, smaller: float) -> None:
    """By hand: k (n − k) of the n (n − 1) / 2 pairs differ, and in them a ball covers V / (V + W) of the merged object."""
    parted = two_balls(smaller)
    merged = (parted > 0).astype(int)
    voxels = np.bincount(parted.reshape(-1))
    for k in range(n + 1):
        found = object_disagreement([merged] * k + [parted] * (n - k))
        share = k * (n - k) / (n * (n - 1) / 2)
        assert (found[parted == 0] == 0).all()
        for ball in (1, 2):
            expected = share * (1 - voxels[ball] / (voxels[1] + voxels[2]))
            np.testing.assert_allclose(found[parted == ball], expected, rtol=1e-6)
    if smaller == 4.0:
        half = object_disagreement([merged, parted])
        np.testing.assert_allclose(half[parted > 0], 0.5)  # equal balls: half of the merged object each


@pytest.mark.parametrize("k", range(5))
def test_an_object_that_some_members_lack(k: int) -> None:
    """By hand: a voxel that k of 4 members have in the same object, and the others in none."""
    ball = two_balls() == 1
    found = object_disagreement([ball.astype(np.uint8)] * k + [np.zeros(SHAPE, np.uint8)] * (4 - k))
    np.testing.assert_allclose(found[ball], k * (4 - k) / 6, rtol=1e-6)
    assert (found[~ball] == 0).all()


def test_objects_that_share_no_voxel_but_one_disagree_next_to_wholly() -> None:
    row = np.zeros((1, 1, 9), np.int32)
    left, right = row.copy(), row.copy()
    left[0, 0, :5], right[0, 0, 4:] = 7, 3
    assert object_disagreement([left, right]).ravel().tolist() == [1, 1, 1, 1, pytest.approx(8 / 9), 1, 1, 1, 1]


def brute_force(numberings: list[np.ndarray]) -> np.ndarray:
    """Compute the definition voxel by voxel, with sets."""
    result = np.zeros(numberings[0].shape)
    pairs = list(itertools.combinations(numberings, 2))
    for place in np.ndindex(result.shape):
        for one, two in pairs:
            if one[place] and two[place]:
                a, b = one == one[place], two == two[place]
                result[place] += 1 - (a & b).sum() / (a | b).sum()
            elif one[place] or two[place]:
                result[place] += 1
    return result / len(pairs)


numbering = arrays(np.uint16, (2, 3, 5), elements=st.sampled_from([0, 1, 2, 9, 700]))


@settings(deadline=None, max_examples=60)
@given(st.lists(numbering, min_size=2, max_size=5))
def test_it_is_what_the_definition_says(numberings: list[np.ndarray]) -> None:
    found = object_disagreement(numberings)
    np.testing.assert_allclose(found, brute_force(numberings), atol=1e-6)
    assert found.dtype == np.float32
    k, n = (np.stack(numberings) > 0).sum(axis=0), len(numberings)
    assert (found >= 2 * k * (n - k) / (n * (n - 1)) - 1e-6).all(), "as much as presence alone makes"
    assert (found <= 1 + 1e-6).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(numbering, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_numbers_and_the_order_of_members_mean_nothing(numberings: list[np.ndarray], chance) -> None:  # type: ignore[no-untyped-def]
    renumbered = []
    for one in numberings:
        names = chance.sample(range(1, 5000), 701)
        renumbered.append(np.where(one > 0, np.asarray([0, *names])[one], 0))
    chance.shuffle(renumbered)
    np.testing.assert_allclose(object_disagreement(renumbered), object_disagreement(numberings), atol=1e-6)


def test_nothing_anywhere_and_one_member() -> None:
    nothing = np.zeros((2, 3, 4), np.int32)
    assert not object_disagreement([nothing, nothing]).any()
    with pytest.raises(ValueError, match="single member"):
        object_disagreement([nothing])
