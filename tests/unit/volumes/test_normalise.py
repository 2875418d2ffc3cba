from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.geometry import Box
from rescueseg.records import Normalisation
from rescueseg.volumes.normalise import measure, normalise, read_box


@settings(deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    before=st.tuples(*[st.integers(0, 9)] * 3),
    after=st.tuples(*[st.integers(0, 9)] * 3),
)
def test_a_box_beyond_the_volume_is_mirrored_as_numpy_pads(
    shape: tuple[int, int, int], before: tuple[int, int, int], after: tuple[int, int, int]
) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (2, *shape)).astype(np.uint8)
    padded = np.pad(volume, [(0, 0), *zip(before, after, strict=True)], mode="reflect")
    box = Box.from_bounds([-b for b in before], [n + a for n, a in zip(shape, after, strict=True)])
    np.testing.assert_array_equal(read_box(volume, box), padded)


def test_a_box_wholly_outside_is_mirrored_too() -> None:
    line = np.arange(5).reshape(1, 1, 5)
    np.testing.assert_array_equal(read_box(line, Box((0, 0, 5), (1, 1, 3)))[0, 0], [3, 2, 1])
    np.testing.assert_array_equal(read_box(line, Box((0, 0, -8), (1, 1, 2)))[0, 0], [0, 1])


def test_normalise_clips_shifts_and_scales() -> None:
    voxels = np.array([0, 10, 20, 30], np.uint16).reshape(1, 1, 1, 4)
    scaled = normalise(voxels, Normalisation(low=10, high=20, mean=15, std=5))
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled[0, 0, 0], [-1, -1, 1, 1])


def test_each_channel_has_its_own_scaling() -> None:
    rng = np.random.default_rng(0)
    voxels = np.stack([rng.normal(100, 10, (8, 16, 16)), rng.normal(5000, 900, (8, 16, 16))]).astype(np.float32)
    measured = measure(voxels, (4, 8, 8))
    assert len(measured.per_channel) == 2
    scaled = normalise(voxels, measured)
    np.testing.assert_allclose(scaled.mean(axis=(1, 2, 3)), 0, atol=0.06)
    np.testing.assert_allclose(scaled.std(axis=(1, 2, 3)), 1, atol=0.06)


def test_limits_are_percentiles_so_that_hot_pixels_do_not_count() -> None:
    volume = np.random.default_rng(0).integers(100, 200, (1, 20, 30, 30))
    volume[0, 0, 0, :10] = 60_000
    assert measure(volume, (8, 8, 8)).high < 200


def test_a_constant_volume_does_not_divide_by_zero() -> None:
    measured = measure(np.full((1, 4, 4, 4), 7), (4, 4, 4))
    assert measured.std == 1
    assert not normalise(np.full((1, 4, 4, 4), 7), measured).any()


def test_a_nearly_empty_volume_keeps_its_only_signal() -> None:
    volume = np.zeros((1, 10, 20, 20), np.uint8)
    volume[0, 5, 5, 5:8] = 200
    measured = measure(volume, (8, 8, 8))
    assert (measured.low, measured.high) == (0, 200)


def test_a_large_volume_is_sampled_and_always_alike() -> None:
    class Counting:
        shape, ndim, reads = (1, 64, 64, 64), 4, 0

        def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray:
            self.reads += 1
            z = selection[1].start
            return np.arange(z, z + 8 * 8 * 8, dtype=np.float32)

    first, second = Counting(), Counting()
    assert measure(first, (8, 8, 8)) == measure(second, (8, 8, 8))
    assert first.reads == 64


def test_the_measured_scaling_gives_mean_zero_and_deviation_one() -> None:
    volume = np.random.default_rng(1).gamma(2.0, 50.0, (1, 16, 32, 32))
    scaled = normalise(volume, measure(volume, (16, 32, 32)))
    assert scaled.mean() == pytest.approx(0, abs=0.02)
    assert scaled.std() == pytest.approx(1, abs=0.02)
