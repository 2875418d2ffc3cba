"""The plan: window, strides, kernels and working spacing from the physics of the data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescueseg.config import InferenceConfig, TrainingConfig
from rescueseg.geometry import resampled_shape
from rescueseg.models.survey import Survey, working_spacing
from rescueseg.models.unet.plan import (
    PROFILES,
    TrainingPlan,
    choose_strides,
    inference_window,
    make_plan,
)

SPACINGS = st.tuples(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0.01, 5))
SHAPES = st.tuples(st.integers(1, 200), st.integers(1, 600), st.integers(1, 600))


def plan_of(spacing: tuple[float, float, float], volume: tuple[int, int, int], **config: object) -> TrainingPlan:
    return make_plan(
        TrainingConfig.model_validate(config),
        Survey(in_channels=1, spacing_um_zyx=spacing, volume_zyx=volume, field_zyx=volume),
        1,
    )


@given(SPACINGS, SHAPES, st.sampled_from(sorted(PROFILES)))
def test_windows_fit_the_network_and_the_budget(
    spacing: tuple[float, float, float], volume: tuple[int, int, int], profile: str
) -> None:
    plan = plan_of(spacing, volume, profile=profile)
    multiple = plan.network.total_stride_zyx
    for window in (plan.window_zyx, plan.inference_window_zyx):
        assert all(n % m == 0 for n, m in zip(window, multiple, strict=True))
        assert all(n < v + m for n, v, m in zip(window, volume, multiple, strict=True))
    rounding = math.prod(1 + m / n for n, m in zip(plan.window_zyx, multiple, strict=True))
    assert math.prod(plan.window_zyx) <= 1.5 * rounding * PROFILES[profile].window_voxels
    assert all(a >= b for a, b in zip(plan.inference_window_zyx, plan.window_zyx, strict=True))
    deepest = [n // m for n, m in zip(plan.window_zyx, multiple, strict=True)]
    assert all(n >= 4 or m == 1 for n, m in zip(deepest, multiple, strict=True))


def test_the_coarse_axis_is_halved_once_the_others_caught_up() -> None:
    strides, kernels = choose_strides((0.4, 0.1, 0.1), (32, 128, 128), 4)
    assert strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_isotropic_data_are_halved_along_every_axis() -> None:
    strides, kernels = choose_strides((1, 1, 1), (64, 64, 64), 4)
    assert strides == ((2, 2, 2),) * 4
    assert kernels == ((3, 3, 3),) * 4


def test_a_flat_stack_keeps_its_planes() -> None:
    strides, _ = choose_strides((1, 1, 1), (6, 128, 128), 3)
    assert [s[0] for s in strides] == [1, 1, 1]


def test_settings_win_over_the_plan() -> None:
    config = {"window_zyx": (9, 30, 33), "batch_size": 3, "iterations": 7, "dropout": 0.5}
    config |= {"unet": {"channels": [4, 8, 16]}}
    plan = plan_of((1, 1, 1), (64, 64, 64), **config)
    assert plan.window_zyx == (10, 32, 40)
    assert plan.network.channels == (4, 8, 16)
    assert (plan.batch_size, plan.iterations, plan.network.dropout) == (3, 7, 0.5)
    assert inference_window(plan, InferenceConfig(window_zyx=(20, 50, 50))) == (20, 56, 56)
    assert inference_window(plan, InferenceConfig()) == plan.inference_window_zyx


def test_the_working_spacing_is_that_of_most_labelled_voxels() -> None:
    fine, coarse = (0.1, 0.1, 0.1), (0.4, 0.2, 0.2)
    assert working_spacing([(fine, 10), (coarse, 30)]) == coarse
    assert working_spacing([(fine, 30), (coarse, 10)]) == fine


@pytest.mark.parametrize(("spacing", "shape"), [((0.2, 0.1, 0.1), (10, 20, 30)), ((0.4, 0.05, 0.1), (5, 40, 30))])
def test_resampling_keeps_the_field(spacing: tuple[float, ...], shape: tuple[int, ...]) -> None:
    assert resampled_shape((10, 20, 30), (0.2, 0.1, 0.1), spacing) == shape
    assert resampled_shape((1, 1, 1), (0.1, 0.1, 0.1), (9.0, 9.0, 9.0)) == (1, 1, 1)
