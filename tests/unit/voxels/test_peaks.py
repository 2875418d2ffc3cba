"""Peaks are what a walk over all voxels and their neighbours finds, in the volume and in any box of it."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rescueseg.voxels.peaks import find_peaks

VALUES = arrays(
    np.float16, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.sampled_from([0, 0.25, 0.5, 1])
)


def peaks_by_hand(values: np.ndarray) -> np.ndarray:
    found = np.zeros(values.shape, bool)
    for place in np.ndindex(values.shape):
        neighbours = [
            tuple(p + d for p, d in zip(place, step, strict=True))
            for step in itertools.product((-1, 0, 1), repeat=3)
            if any(step)
        ]
        inside = [n for n in neighbours if all(0 <= a < b for a, b in zip(n, values.shape, strict=True))]
        higher = [values[n] > values[place] or (values[n] == values[place] and n < place) for n in inside]
        found[place] = values[place] > 0 and not any(higher)
    return found


@given(VALUES)
def test_peaks_are_higher_than_all_neighbours(values: np.ndarray) -> None:
    np.testing.assert_array_equal(find_peaks(values), peaks_by_hand(values))


@given(VALUES, st.integers(1, 5))
def test_a_box_has_the_volumes_peaks_and_perhaps_more(values: np.ndarray, cut: int) -> None:
    whole = find_peaks(values)
    for part in (slice(None, cut), slice(cut, None)):
        assert not (whole[part] & ~find_peaks(values[part])).any()
