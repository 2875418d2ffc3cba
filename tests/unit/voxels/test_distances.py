"""Capped distances are those of scipy, and the same to the last bit wherever the array was cut."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rescueseg.voxels.distances import capped_distance


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.13, 0.2), (0.1, 2.0, 0.3)])
@pytest.mark.parametrize("share", [0.9, 0.999])
def test_distances_are_those_of_scipy(spacing: tuple[float, float, float], share: float) -> None:
    mask = np.random.default_rng(1).random((13, 20, 17)) < share
    cap = 6 * min(spacing)
    expected = np.minimum(ndimage.distance_transform_edt(mask, sampling=spacing), cap)
    np.testing.assert_allclose(capped_distance(mask, spacing, cap), expected, rtol=1e-5)


def test_a_cut_does_not_show_beyond_the_cap() -> None:
    mask = np.random.default_rng(2).random((20, 40, 30)) < 0.97
    spacing, cap = (0.31, 0.1, 0.17), 0.5
    whole = capped_distance(mask, spacing, cap)
    part = capped_distance(mask[3:15, 6:30, 4:26], spacing, cap)
    np.testing.assert_array_equal(part[2:-2, 5:-5, 3:-3], whole[5:13, 11:25, 7:23])


def test_a_mask_without_border_is_as_far_as_can_be() -> None:
    assert (capped_distance(np.ones((3, 4, 5), bool), (1.0, 1.0, 1.0), 9.0) == 9.0).all()
    assert not capped_distance(np.zeros((3, 4, 5), bool), (1.0, 1.0, 1.0), 9.0).any()
