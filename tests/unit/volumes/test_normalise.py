from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.geometry import Box
from rescueseg.records import Normalisation
from rescueseg.storage import digest_json
from rescueseg.volumes.normalise import (
    LINEAR,
    denormalise,
    limits,
    measure,
    measure_samples,
    normalise,
    read_box,
    rescaled,
    with_linear,
)
from tests.puncta import best_dice, puncta


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


@pytest.mark.parametrize("share", [0.0003, 0.001, 0.002, 0.004, 0.01])
def test_sparse_bright_structure_keeps_its_amplitude(share: float) -> None:
    image, truth = puncta((16, 96, 96), share, 150)
    made = measure(image, (16, 32, 32))
    assert best_dice(normalise(image, made), truth) == best_dice(image, truth) >= 0.999
    if share <= 0.002:
        assert best_dice(normalise(image, with_linear(made, 0)), truth) < 0.6, "clipped, as in earlier versions"


@pytest.mark.parametrize("amplitude", [60, 150, 400, 2000])
def test_look_alikes_stay_apart_as_far_as_any_smoothing_tells_them_apart(amplitude: float) -> None:
    image, truth = puncta((16, 96, 96), 0.002, amplitude, look_alikes=True)
    made = measure(image, (16, 32, 32))
    raw, scaled, clipped = (
        max(best_dice(ndimage.gaussian_filter(v[0].astype(np.float64), sigma), truth) for sigma in (0, 0.5, 1, 1.5))
        for v in (image, normalise(image, made), normalise(image, with_linear(made, 0)))
    )
    assert scaled == pytest.approx(raw, abs=0.003)
    assert clipped < 0.8 * raw, "as in earlier versions"


@pytest.mark.parametrize("hot", [1, 30])
def test_saturated_voxels_change_the_scale_of_nothing_and_stay_small_enough_for_half_precision(hot: int) -> None:
    image, _ = puncta((16, 96, 96), 0.001, 150)
    spoiled = image.copy()
    spoiled[0].flat[np.random.default_rng(0).choice(image[0].size, hot, replace=False)] = 65535
    before, after = measure(image, (16, 32, 32)), measure(spoiled, (16, 32, 32))
    assert after.mean == pytest.approx(before.mean, abs=0.1)
    assert after.std == pytest.approx(before.std, rel=0.01)
    scaled = normalise(spoiled, after)
    assert np.abs(scaled).max() < 30
    unspoiled = spoiled < 65535
    assert scaled[unspoiled].std() == pytest.approx(normalise(image, before)[unspoiled].std(), rel=0.01)


@pytest.mark.parametrize("share", [0.004, 0.006, 0.02, 0.05])
def test_many_saturated_voxels_do_not_flatten_the_structure(share: float) -> None:
    image, truth = puncta((16, 96, 96), 0.01, 150)
    rng = np.random.default_rng(0)
    saturated = rng.permutation(truth.size)[: round(share * truth.size)]
    image[0].flat[saturated] = 65535
    scaled = normalise(image, measure(image, (16, 32, 32)))[0]
    seen = image[0] < 65535
    assert np.median(scaled[truth & seen]) - np.median(scaled[~truth & seen]) > 0.6, (
        "three times what the noise adds in training"
    )
    assert np.abs(scaled).max() < 50
    assert np.abs(scaled[seen]).max() < scaled[~seen].min()


@pytest.mark.parametrize("ground", [0.3, 0.45, 0.55, 0.8])
def test_saturated_voxels_beside_much_ground_of_one_value_flatten_nothing_either(ground: float) -> None:
    rng = np.random.default_rng(2)
    kind = rng.choice(4, (1, 16, 96, 96), p=[ground, 0.9 * (0.99 - ground), 0.1 * (0.99 - ground), 0.01])
    volume = np.choose(kind, [0, rng.normal(100, 10, kind.shape), rng.normal(160, 10, kind.shape), 65535]).astype(
        np.uint16
    )
    scaled = normalise(volume, measure(volume, (16, 32, 32)))
    assert scaled[kind == 2].mean() - scaled[kind == 1].mean() > 0.6


def test_bright_structure_over_a_quiet_ground_is_not_saturated() -> None:
    """A deconvolved image: a fifth is structure, thousands of times as bright as the ground is noisy."""
    rng = np.random.default_rng(3)
    volume = rng.normal(0, 1e-3, (1, 16, 96, 96)).astype(np.float32)
    bright = rng.random(volume.shape) < 0.2
    volume[bright] = rng.uniform(50, 1000, bright.sum())
    made = measure(volume, (16, 32, 32))
    assert made.high == pytest.approx(np.percentile(volume, 99.5), rel=0.01)
    scaled = normalise(volume, made)
    assert (scaled.mean(), scaled.std()) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.05))


@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-4, 1e-5])
def test_structure_on_a_background_of_one_value_stays_small_enough(share: float) -> None:
    rng = np.random.default_rng(1)
    volume = np.zeros((1, 32, 128, 128), np.uint16)
    places = rng.choice(volume.size, max(1, round(share * volume.size)), replace=False)
    volume.flat[places] = rng.normal(1000, 100, len(places))
    scaled = normalise(volume, measure(volume, (32, 64, 64)))
    assert 0 < np.ptp(scaled) < 50


def test_hot_pixels_on_a_background_of_one_value_do_not_count_either() -> None:
    volume = np.zeros((1, 20, 50, 50), np.uint16)
    volume[0, 10, 10:30, 5:15] = 200
    volume[0, 3, 3, 3] = 65535
    made = measure(volume, (20, 50, 50))
    assert (made.low, made.high) == (0, 200)
    assert np.unique(normalise(volume, made)).size == 3


@settings(deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(0, 65535), min_size=2, max_size=30), channels=st.integers(1, 2), linear=st.just(LINEAR)
)
def test_no_two_intensities_become_one_and_all_can_be_taken_back(
    values: list[int], channels: int, linear: float
) -> None:
    image = np.resize(np.array(values, np.uint16), (channels, 1, 1, len(values)))
    made = measure_samples([np.float32([0, 90, 95, 100, 105, 110, 200])] * channels, linear)
    scaled = normalise(image, made)
    order = np.argsort(image[0, 0, 0], kind="stable")
    steps = np.diff(image[0, 0, 0][order].astype(int)), np.diff(scaled[0, 0, 0][order])
    assert ((steps[0] > 0) == (steps[1] > 0)).all()
    np.testing.assert_allclose(denormalise(scaled, made), image, rtol=1e-4, atol=1e-3)


def test_between_the_limits_nothing_has_changed_since_values_were_clipped() -> None:
    volume = np.random.default_rng(1).gamma(2.0, 50.0, (1, 16, 32, 32))
    made = measure(volume, (16, 32, 32))
    clipped = with_linear(made, 0)
    assert clipped == measure(volume, (16, 32, 32), linear=0)
    within = (volume >= made.low) & (volume <= made.high)
    np.testing.assert_array_equal(normalise(volume, made)[within], normalise(volume, clipped)[within])
    _, high = limits(clipped)
    assert normalise(volume, clipped).max() == pytest.approx(high)
    assert normalise(volume, made).max() > high


def test_scalings_of_earlier_versions_are_read_and_written_as_they_were() -> None:
    stored = {"low": 10.0, "high": 20.0, "mean": 15.0, "std": 5.0}
    part = stored | {"per_channel": []}
    old = Normalisation.model_validate(stored | {"per_channel": [part, part]})
    assert old.to_json() == stored | {"per_channel": [part, part]}
    assert digest_json(old.to_json()) == digest_json(stored | {"per_channel": [part, part]})
    scaled = normalise(np.float32([[[[0, 90]]], [[[12.5, 15]]]]), old)
    np.testing.assert_array_equal(scaled.ravel(), [-1, 1, -0.5, 0])
    new = with_linear(old, LINEAR)
    assert Normalisation.model_validate(new.to_json()) == new
    assert new.per_channel[0].linear == LINEAR


def test_a_volume_of_another_gain_keeps_the_rule() -> None:
    image, _ = puncta((16, 96, 96), 0.001, 150)
    made = measure(image, (16, 32, 32))
    brighter = rescaled(made, [(0.5, -20.0)])
    np.testing.assert_allclose(normalise(image * 2.0 + 40, brighter), normalise(image, made), atol=1e-4)


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


def test_between_the_limits_the_measured_scaling_gives_mean_zero_and_deviation_one() -> None:
    volume = np.random.default_rng(1).gamma(2.0, 50.0, (1, 16, 32, 32))
    made = measure(volume, (16, 32, 32))
    scaled = np.clip(normalise(volume, made), *limits(made))
    assert scaled.mean() == pytest.approx(0, abs=0.02)
    assert scaled.std() == pytest.approx(1, abs=0.02)
