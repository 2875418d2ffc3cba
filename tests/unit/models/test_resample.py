"""Resampling keeps places: a voxel of the result shows what lies there in proportion."""

from __future__ import annotations

import pytest
import torch

from rescueseg.models.resample import resample


@pytest.mark.parametrize(("length", "target"), [(100, 33), (70, 23), (64, 32), (95, 32), (103, 20), (26, 50), (40, 1)])
def test_a_ramp_stays_in_its_place(length: int, target: int) -> None:
    places = torch.arange(length, dtype=torch.float32) + 0.5
    result = resample(places.expand(1, 1, 2, 2, length), (2, 2, target))[0, 0, 0, 0]
    ratio = length / target
    expected = (torch.arange(target) + 0.5) * ratio
    inside = slice(1, -1) if target > 2 else slice(None)
    assert torch.allclose(result[inside], expected[inside], atol=0.05 * ratio)


def test_what_gets_coarser_is_averaged() -> None:
    noise = torch.randn((1, 1, 24, 60, 60), generator=torch.Generator().manual_seed(0))
    coarse = resample(noise, (8, 20, 20))
    assert coarse.std() < 0.3 * noise.std()
    torch.testing.assert_close(coarse[0, 0, 0, 0, 0], noise[0, 0, :3, :3, :3].mean())


def test_the_same_shape_is_the_same_tensor() -> None:
    tensor = torch.zeros((1, 2, 3, 4, 5))
    assert resample(tensor, (3, 4, 5)) is tensor
