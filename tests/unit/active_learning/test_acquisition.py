from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rescueseg.active_learning.acquisition import class_entropy, power_noise
from rescueseg.geometry import Box, box_bounds, partition
from rescueseg.inference.box_means import box_sums, touching

SHAPE = (7, 11, 13)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    offset = [draw(st.integers(0, n - 1)) for n in SHAPE]
    return Box(tuple(offset), tuple(draw(st.integers(1, n - o)) for n, o in zip(SHAPE, offset, strict=True)))


@settings(deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=8), st.tuples(*[st.integers(2, 9)] * 3), st.integers(0, 2**32 - 1))
def test_sums_over_blocks_are_the_sums_over_boxes(found: list[Box], block: tuple[int, int, int], seed: int) -> None:
    """Whole numbers, so that the sums are exact; boxes cross block borders at will."""
    volume = np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.float32)
    starts, stops = box_bounds(found)
    total = np.zeros(len(found))
    for part in partition(SHAPE, block):
        index = touching(part, starts, stops)
        assert list(index) == [i for i, box in enumerate(found) if box.intersects(part)]
        total[index] += box_sums(volume[part.slices], part.offset_zyx, starts[index], stops[index])
    assert list(total) == [volume[box.slices].sum(dtype=np.float64) for box in found]


@settings(deadline=None)
@given(boxes(), boxes())
def test_a_box_that_reaches_beyond_the_block_counts_what_is_inside(box: Box, block: Box) -> None:
    common = box.intersection(block)
    total = box_sums(np.ones(block.shape_zyx), block.offset_zyx, *box_bounds([box]))
    assert total == (common.size if common else 0)


def test_half_floats_are_summed_exactly() -> None:
    """65504 is the largest float16: a sum in that type would be infinite."""
    volume = np.full((4, 50, 50), 3.0, dtype=np.float16)
    assert box_sums(volume, (0, 0, 0), *box_bounds([Box((0, 0, 0), (4, 50, 50))])) == 30_000
    assert box_sums(volume[:, :, :40], (0, 0, 0), *box_bounds([Box((1, 0, 0), (3, 50, 50))])) == 18_000


def test_no_boxes_no_sums() -> None:
    assert box_sums(np.ones((2, 2, 2)), (0, 0, 0), *box_bounds([])).shape == (0,)


def test_class_entropy_is_the_product() -> None:
    entropy, probability = np.full((1, 1, 2), 0.5, np.float16), np.array([[[0.25, 1.0]]])
    np.testing.assert_allclose(class_entropy(entropy, probability), [[[0.125, 0.5]]])


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_power_noise_draws_in_proportion_to_the_power_of_the_score(beta: float) -> None:
    """Gumbel-max: P(first) = score^β / Σ score^β."""
    score = np.array([1.0, 2.0, 4.0])
    rng = np.random.default_rng(0)
    counts = np.bincount([int(np.argmax(power_noise(score, beta, rng))) for _ in range(4000)], minlength=3)
    expected = 4000 * score**beta / (score**beta).sum()
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_power_noise_fades_and_leaves_nothing_last() -> None:
    score = np.array([0.0, 0.3, -1e-12, 0.31, 0.2])
    noisy = power_noise(score, 1e6, np.random.default_rng(0))
    assert list(np.argsort(-noisy)[:3]) == [3, 1, 4]
    assert noisy[0] == noisy[2] == -np.inf
