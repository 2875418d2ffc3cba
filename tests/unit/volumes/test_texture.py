"""Texture measures against analytic oracles, and what must not move them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.volumes.describe import levels_of
from rescueseg.volumes.texture import LAGS, Edges, Variogram, standardise, structure_length, variogram_noise


def gaussian_field(sigma: float, seed: int = 0, shape: tuple[int, int, int] = (24, 96, 96)) -> np.ndarray:
    """White noise blurred along y and x, variance 1: its correlation is exp(-lag² / 4σ²)."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, sigma, sigma), mode="wrap")
    return ((field - field.mean()) / field.std()).astype(np.float32)


def length(field: np.ndarray, axis: int = 2) -> float | None:
    variogram = Variogram()
    variogram.add(field.astype(np.float32), axis)
    return structure_length(variogram.values(), float(field.var()))


@pytest.mark.parametrize("sigma", [2.0, 3.0, 5.0])
def test_the_length_of_a_gaussian_field_is_known(sigma: float) -> None:
    assert length(gaussian_field(sigma)) == pytest.approx(2 * sigma * math.sqrt(math.log(2)), rel=0.12)


def test_white_noise_is_all_noise_and_no_structure() -> None:
    field = np.random.default_rng(0).normal(size=(16, 64, 64)).astype(np.float32)
    variogram = Variogram()
    variogram.add(field, 1)
    assert variogram.values() == pytest.approx(np.ones(len(LAGS)), abs=0.05)
    assert variogram_noise(variogram.values()) == pytest.approx(1, abs=0.05)
    assert length(field) is None


@settings(deadline=None, max_examples=15)
@given(st.floats(0.01, 500), st.floats(-100, 5000), st.floats(0, 1.0), st.integers(0, 50))
def test_neither_scale_nor_noise_moves_the_length(gain: float, offset: float, noise: float, seed: int) -> None:
    field = gaussian_field(3.0, seed)
    noisy = field + noise * np.random.default_rng(seed).normal(size=field.shape)
    assert length(gain * noisy + offset) == pytest.approx(length(field), rel=0.15)


def disc(blur: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:96, :96]
    plane = ndimage.gaussian_filter((np.hypot(y - 48, x - 48) < 28).astype(float), blur)
    planes = np.repeat(plane[None], 6, axis=0)
    return (planes + noise * np.random.default_rng(seed).normal(size=planes.shape)).astype(np.float32)


def edge_blur(planes: np.ndarray) -> float:
    edges = Edges()
    edges.add(planes)
    found = edges.blur()
    assert found is not None
    return found


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0, 4.0])
def test_the_blur_of_a_blurred_edge_is_known(sigma: float) -> None:
    assert edge_blur(disc(sigma)) == pytest.approx(sigma, rel=0.15)


@settings(deadline=None, max_examples=15)
@given(st.floats(1.5, 2.5), st.floats(0, 0.15), st.floats(0.01, 1000), st.integers(0, 50))
def test_neither_noise_nor_scale_moves_the_blur(sigma: float, noise: float, gain: float, seed: int) -> None:
    assert edge_blur(gain * disc(sigma, noise, seed)) == pytest.approx(sigma, rel=0.35)


@settings(deadline=None, max_examples=15)
@given(st.floats(0.8, 3), st.floats(0.5, 3))
def test_more_blur_is_more_blur(sigma: float, more: float) -> None:
    assert edge_blur(disc(sigma + more)) > edge_blur(disc(sigma))


def test_planes_that_are_too_small_or_flat_have_no_edges() -> None:
    edges = Edges()
    edges.add(np.zeros((3, 10, 10), np.float32))
    edges.add(np.zeros((3, 64, 64), np.float32))
    assert edges.blur() is None


def test_channels_are_scaled_each_by_itself() -> None:
    voxels = np.stack([np.full((2, 3, 4), 10), np.full((2, 3, 4), 3000)])
    assert standardise(voxels, (0, 2000), (20, 4000)) == pytest.approx(np.full((2, 3, 4), 0.5))


# levels --------------------------------------------------------------------------------------------------------------


def test_twelve_bits_in_sixteen_are_seen_shifted_or_not() -> None:
    voxels = np.random.default_rng(0).integers(0, 4096, 200_000, dtype=np.uint16)
    plain, shifted = levels_of([voxels]), levels_of([voxels * np.uint16(16)])
    assert (plain.bits, plain.step, plain.high) == (12, 1, 4095)
    assert (shifted.bits, shifted.step) == (12, 16)
    assert levels_of([(voxels // 16).astype(np.uint8)]).bits == 8
    assert levels_of([(voxels // 16 * 257).astype(np.uint16)]).bits == 8


def test_gaps_left_by_stretching_are_seen() -> None:
    voxels = np.rint(np.random.default_rng(0).integers(0, 200, 100_000) * 3.7 + 5).astype(np.uint16)
    levels = levels_of([voxels])
    assert levels.unused == pytest.approx(1 - 1 / 3.7, abs=0.03)


def test_clipping_is_a_spike_at_the_end_and_a_tail_is_not() -> None:
    values = np.random.default_rng(0).normal(200, 30, 200_000)
    clipped, tail = np.clip(values, 0, 255).astype(np.uint8), np.clip(values / 2, 0, 255).astype(np.uint8)
    assert levels_of([clipped]).high_share == pytest.approx((values >= 255).mean(), abs=0.005)
    assert levels_of([tail]).high_share == levels_of([tail]).low_share == 0
    padded = np.where(np.arange(200_000) % 10 == 0, 50, tail).astype(np.uint8)
    [(value, share)] = levels_of([padded]).spikes
    assert value == 50
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_other_types_have_levels_too(dtype: type) -> None:
    voxels = np.random.default_rng(0).integers(-100, 100, 50_000).astype(dtype)
    assert levels_of([voxels]).step == 1
    assert levels_of([voxels.astype(np.float32) / 3]).bits is None
