"""The default inference window: no longer than the same number of windows needs to cover the smallest volume."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.config import TrainingConfig
from rescueseg.geometry import ZYX, isotropic_shape, round_up, zyx
from rescueseg.inference.windows import WindowGrid
from rescueseg.models.inference_window import plan_inference_window
from rescueseg.models.survey import Survey
from rescueseg.models.unet.network import build_network
from rescueseg.models.unet.plan import make_plan

SPACING, MULTIPLE = (0.3, 0.1, 0.1), (4, 8, 8)


def window_of(volume: ZYX, training: ZYX) -> ZYX:
    return plan_inference_window(Survey(1, SPACING, volume, volume), training, MULTIPLE, 8.0)


@pytest.mark.parametrize(
    ("volume", "training", "window"),
    [
        ((51, 480, 480), (20, 60, 60), (32, 120, 120)),  # two layers, which overlap by 13 planes in place of 29
        (
            (100, 130, 130),
            (20, 48, 48),
            (32, 80, 80),
        ),  # four in a plane, of 80 in place of 104 voxels; four layers of 32, not 36
        ((16, 208, 520), (16, 40, 40), (16, 120, 120)),  # y and x stay as long as each other
        ((12, 40, 40), (12, 40, 40), (12, 40, 40)),  # all of it is one window
        ((12, 40, 40), (20, 48, 48), (20, 48, 48)),  # never smaller than that of the training
    ],
)
def test_windows_of_known_volumes(volume: ZYX, training: ZYX, window: ZYX) -> None:
    assert window_of(volume, training) == window


@settings(max_examples=80, deadline=None)
@given(
    volume=st.tuples(st.integers(4, 90), st.integers(30, 400), st.integers(30, 400)),
    levels=st.tuples(st.integers(1, 5), st.integers(2, 8), st.integers(2, 8)),
    multiple=st.sampled_from([(4, 8, 8), (4, 8, 16), (2, 16, 8), (8, 4, 4)]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_a_window_is_as_short_as_the_same_number_of_them_allows(
    volume: ZYX, levels: ZYX, multiple: ZYX, overlap: float
) -> None:
    training = zyx(n * m for n, m in zip(levels, multiple, strict=True))
    larger = isotropic_shape(SPACING, 8 * math.prod(training), volume)
    most = round_up([max(a, b) for a, b in zip(larger, training, strict=True)], multiple)
    survey = Survey(1, SPACING, volume, volume, overlap)
    window = plan_inference_window(survey, training, multiple, 8.0)
    count = WindowGrid(volume, window, overlap).shape
    assert all(n % m == 0 for n, m in zip(window, multiple, strict=True)), "else the network cannot compute it"
    assert all(a <= b <= c for a, b, c in zip(training, window, most, strict=True))
    assert all(a <= b for a, b in zip(count, WindowGrid(volume, most, overlap).shape, strict=True))
    is_tied = most[1] == most[2] and training[1] == training[2] and multiple[1] == multiple[2]
    assert window[1] == window[2] or not is_tied
    tied = (0, 1, 1) if is_tied else (0, 1, 2)
    for axis in range(3):
        shorter = zyx(n - m * (tied[a] == tied[axis]) for a, (n, m) in enumerate(zip(window, multiple, strict=True)))
        too_short = any(a < b for a, b in zip(shorter, training, strict=True))
        fewest = WindowGrid(volume, most, overlap).shape
        assert too_short or any(a > b for a, b in zip(WindowGrid(volume, shorter, overlap).shape, fewest, strict=True))


def test_a_network_of_unequal_strides_can_compute_its_inference_window() -> None:
    """Patches that are narrow along y: strides of 8 along y and 16 along x, of which 136 is no multiple."""
    plan = make_plan(TrainingConfig(), Survey(1, (1.0, 0.2, 0.2), (24, 237, 298), (24, 46, 86)), 1)
    assert plan.network.total_stride_zyx[1] != plan.network.total_stride_zyx[2]
    network = build_network(plan.network, seed=0)
    image = torch.zeros(1, 1, *plan.inference_window_zyx)
    with torch.inference_mode():
        assert network.head(network.features(image), None).shape[2:] == image.shape[2:]
