"""The default inference window: no longer than the same number of windows needs to cover the smallest volume."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.geometry import ZYX, isotropic_shape, round_up
from rescueseg.inference.windows import WindowGrid
from rescueseg.models.inference_window import plan_inference_window
from rescueseg.models.survey import Survey

SPACING, MULTIPLE = (0.3, 0.1, 0.1), (4, 8, 8)


def window_of(volume: ZYX, training: ZYX) -> ZYX:
    return plan_inference_window(Survey(1, SPACING, volume, volume), training, MULTIPLE, 8.0)


def windows(volume: ZYX, window: ZYX) -> ZYX:
    """How many windows the engine's own grid has along each axis."""
    return WindowGrid(volume, window, 0.25).shape


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


@settings(max_examples=60, deadline=None)
@given(
    volume=st.tuples(st.integers(4, 90), st.integers(30, 400), st.integers(30, 400)),
    z=st.integers(1, 5),
    side=st.integers(2, 8),
)
def test_a_window_is_as_short_as_the_same_number_of_them_allows(volume: ZYX, z: int, side: int) -> None:
    training = (4 * z, 8 * side, 8 * side)
    larger = isotropic_shape(SPACING, 8 * training[0] * training[1] * training[2], volume)
    most = round_up([max(a, b) for a, b in zip(larger, training, strict=True)], MULTIPLE)
    window = window_of(volume, training)
    assert all(n % m == 0 for n, m in zip(window, MULTIPLE, strict=True))
    assert all(a <= b <= c for a, b, c in zip(training, window, most, strict=True))
    assert windows(volume, window) == windows(volume, most)
    assert (window[1] == window[2]) or most[1] != most[2]
    tied = (0, 1, 1) if most[1] == most[2] else (0, 1, 2)
    for axis in range(3):
        shorter = [n - m * (tied[a] == tied[axis]) for a, (n, m) in enumerate(zip(window, MULTIPLE, strict=True))]
        too_short = any(a < b for a, b in zip(shorter, training, strict=True))
        assert too_short or windows(volume, (shorter[0], shorter[1], shorter[2])) != windows(volume, most)
