"""Image evidence: known noise comes back, and what is not asked for does not count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.triage import image as im

SPACING = (1.0, 1.0, 1.0)


@given(st.floats(2, 60), st.floats(0.1, 30), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_known_noise_comes_back_over_structure_and_in_any_unit(sigma: float, gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    structure = ndimage.gaussian_filter(rng.normal(0, 1, (3, 128, 128)), (0, 8, 8)) * 2000
    planes = (structure + rng.normal(0, sigma, structure.shape)) * gain
    np.testing.assert_allclose(im.haar_noise(planes, im.quantisation_step(planes)), sigma * gain, rtol=0.12)


def test_noise_never_falls_below_that_of_rounding() -> None:
    flat = np.full((2, 64, 64), 7, np.uint8)
    np.testing.assert_allclose(im.haar_noise(flat, 1.0), 1 / math.sqrt(12))
    assert im.quantisation_step(flat) == 0
    assert im.quantisation_step(np.array([3, 9, 6, 3])) == 3


def test_noise_differs_by_plane() -> None:
    rng = np.random.default_rng(1)
    planes = np.stack([rng.normal(100, s, (200, 200)) for s in (2, 8, 32)])
    np.testing.assert_allclose(im.haar_noise(planes, 0.0), (2, 8, 32), rtol=0.05)


def test_regions_of_a_lone_ball_and_of_crowded_cells() -> None:
    z, y, x = np.indices((24, 24, 24)) - 11.5
    labels = (z**2 + y**2 + x**2 < 36).astype(np.int32)
    unknown = np.zeros(labels.shape, bool)
    unknown[:2] = True
    parts = im.regions(labels, unknown, SPACING, 12.0)
    assert not (parts.core & (labels == 0)).any()
    assert not ((parts.surroundings | parts.background) & (labels > 0)).any()
    assert not (parts.surroundings | parts.background)[:2].any()
    crowded = np.ones((8, 20, 20), np.int32)
    crowded[:, :, 10:] = 2
    parts = im.regions(crowded, np.zeros(crowded.shape, bool), SPACING, 8.0)
    assert set(np.argwhere(parts.surroundings)[:, 2]) == {9, 10}, "the common border stands for the surroundings"
    assert not parts.background.any()


def test_texture_is_found_at_the_structures_scale_and_noise_and_drift_are_not() -> None:
    rng = np.random.default_rng(2)
    background = np.ones((32, 64, 64), bool)
    noise = rng.normal(0, 10, background.shape)
    drift = np.linspace(0, 50, 64) + np.zeros(background.shape)
    blobs = ndimage.gaussian_filter(rng.normal(0, 1, background.shape), 2.5)
    blobs *= 10 / blobs.std()
    spreads = [im.robust_spread(im.background_texture(a, background, SPACING, 8.0)) for a in (noise, drift, blobs)]
    assert spreads[0] < 1
    assert spreads[1] < 3
    assert spreads[2] > 3.5
    assert len(im.background_texture(noise, np.zeros_like(background), SPACING, 8.0)) == 0


def test_the_structure_takes_no_part_in_the_background() -> None:
    image = np.full((16, 32, 32), 5.0)
    image[6:10, 12:20, 12:20] = 1000
    background = ndimage.binary_erosion(image < 100, border_value=1)
    np.testing.assert_allclose(im.background_texture(image, background, SPACING, 4.0), 0, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 40.0])
def test_correlation_lengths_follow_blur_and_spacing_and_not_noise(noise: float) -> None:
    rng = np.random.default_rng(3)
    image = ndimage.gaussian_filter(rng.normal(0, 1, (64, 96, 96)), (6, 3, 3))
    image = image / image.std() * 50 + rng.normal(0, noise, image.shape)
    z, plane = im.correlation_lengths(image, SPACING)
    # half-width of a Gaussian's autocovariance: 2 σ √(ln 2)
    assert plane == pytest.approx(2 * 3 * math.sqrt(math.log(2)), rel=0.25)
    assert z / plane == pytest.approx(2, rel=0.3)
    assert im.correlation_lengths(image, (2.0, 1.0, 1.0))[0] == pytest.approx(2 * z)
    assert all(map(math.isnan, im.correlation_lengths(np.ones((64, 64, 64)), SPACING)))


def test_plane_steps_find_the_step() -> None:
    image = np.random.default_rng(4).normal(0, 1, (10, 30, 30))
    image[6:] += 25
    steps = im.plane_steps(image)
    assert int(np.argmax(np.abs(steps))) == 5
    assert steps[5] == pytest.approx(25, abs=0.5)
    assert im.plane_steps(image[:1]).shape == (0,), "a single plane has no neighbour"


def test_weighted_median() -> None:
    assert im.weighted_median([3, 1, 2], [1, 1, 5]) == 2
    assert im.weighted_median([math.nan, 4], [9, 1]) == 4
    assert math.isnan(im.weighted_median([], []))
    tie = [0.6, 0.9, 0.4, 0.8, 0.4, 0.5]  # 1.4 of 3.6 lies at 0 and 0.4 at 1: a half, but for rounding
    assert im.weighted_median([4, 0, 4, 4, 0, 1], tie) == 4


def test_borders_with_the_background_are_none_between_objects() -> None:
    """Filters calculate in floats: the largest integer turned into the smallest, and background counted as an object."""
    labels = np.zeros((4, 12, 12), np.int32)
    labels[:, :, :6] = 5
    assert not im.object_borders(labels).any()
    labels[:, :3] = 7
    assert set(np.argwhere(im.object_borders(labels))[:, 1]) == {2, 3}
