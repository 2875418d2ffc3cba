"""Numbers of objects in a corrected box, against rules that are checked object by object."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.delivery.corrected_objects import corrected_numbers, drawn_objects
from rescueseg.geometry import Box

Numbers = npt.NDArray[np.uint32]


def row(*values: int) -> Numbers:
    return np.array([[values]], np.uint32)


def corrected(before: Numbers, drawn: Numbers, largest: int, ignore: Numbers | None = None) -> tuple[list[int], int]:
    """Correct a row whose first and last voxels are the rim."""
    box = Box((0, 0, 1), (1, 1, before.shape[2] - 2))
    nothing = np.zeros(drawn.shape, bool)
    after, largest = corrected_numbers(before, box, drawn, nothing if ignore is None else ignore > 0, largest)
    return after[0, 0].tolist(), largest


def test_an_object_that_nobody_changed_keeps_its_number() -> None:
    assert corrected(row(0, 5, 5, 0, 2, 2, 0), row(1, 1, 0, 9, 9), 7) == ([5, 5, 0, 2, 2], 7)


def test_a_changed_and_a_new_object_get_new_numbers() -> None:
    assert corrected(row(0, 5, 5, 0, 0, 0, 0), row(1, 0, 0, 2, 2), 7) == ([8, 0, 0, 9, 9], 9)


def test_a_changed_object_that_goes_on_beyond_the_box_keeps_its_number() -> None:
    assert corrected(row(5, 5, 5, 5, 0, 0, 0), row(1, 0, 0, 0, 0), 7) == ([5, 0, 0, 0, 0], 7)
    assert corrected(row(5, 0, 0, 0, 0, 0, 0), row(1, 1, 0, 0, 0), 7) == ([5, 5, 0, 0, 0], 7)  # drawn on to it


def test_touching_another_object_beyond_the_box_is_no_going_on() -> None:
    assert corrected(row(5, 6, 6, 0, 0, 0, 0), row(1, 0, 0, 0, 0), 7) == ([8, 0, 0, 0, 0], 8)


def test_two_parts_of_what_was_one_object_get_two_numbers() -> None:
    before = np.zeros((1, 4, 6), np.uint32)
    before[0, :, 2:] = 5
    drawn = np.zeros((1, 4, 3), np.uint32)  # the box leaves out the rim on the right
    drawn[0, :3, 1:], drawn[0, 3, 1:] = 1, 2
    box, nothing = Box((0, 0, 1), (1, 4, 4)), np.zeros((1, 4, 4), bool)
    wide = np.concatenate([drawn, drawn[..., -1:]], axis=2)
    after, largest = corrected_numbers(before, box, wide, nothing, 7)
    assert after[0, :, 2].tolist() == [5, 5, 5, 8]  # the one with more faces goes on
    assert largest == 8


def test_what_was_not_annotated_stays_and_carries_its_number() -> None:
    before, drawn, ignore = row(0, 5, 5, 5, 0, 0, 0), row(0, 1, 0, 0, 0), row(1, 0, 0, 0, 0)
    assert corrected(before, drawn, 7, ignore) == ([5, 5, 0, 0, 0], 7)
    assert corrected(before, row(3, 3, 3, 3, 3), 7, row(1, 1, 1, 1, 1)) == ([5, 5, 5, 0, 0], 7)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Numbers, Box, Numbers, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = rng.integers(3, 7, 3)
    before = ndimage.zoom(rng.integers(0, 5, shape), 2, order=0).astype(np.uint32)
    start, stop = rng.integers(0, 2, 3), np.array(before.shape) - rng.integers(0, 2, 3)
    box = Box.from_bounds(start.tolist(), stop.tolist())
    drawn = before[box.slices] * 3
    if draw(st.booleans()):
        where = tuple(slice(a, a + 3) for a in rng.integers(0, 4, 3))
        drawn[where] = rng.integers(0, 20)
    ignore = np.zeros(box.shape_zyx, bool)
    if draw(st.booleans()):
        ignore[:, :2] = True
    return before, box, drawn, ignore


@given(boxes())
@settings(max_examples=150, deadline=None)
def test_rules_hold_for_any_box(given: tuple[Numbers, Box, Numbers, npt.NDArray[np.bool_]]) -> None:
    before, box, drawn, ignore = given
    largest_before = int(before.max())
    after, largest = corrected_numbers(before, box, drawn, ignore, largest_before)
    old, seen = before[box.slices], ~ignore
    assert np.array_equal(after[ignore], old[ignore])
    assert np.array_equal(after[seen] > 0, drawn[seen] > 0)
    used = set()
    for one in np.unique(drawn[seen & (drawn > 0)]):
        inside = seen & (drawn == one)
        [number] = np.unique(after[inside])
        assert number not in used, "two drawn objects have one number"
        used.add(number)
        others = [n for n in np.unique(old[inside]) if n]
        unchanged = len(others) == 1 and np.array_equal(inside, seen & (old == others[0]))
        if unchanged:
            assert number == others[0]
        elif number <= largest_before:  # the number of something that touches it and stays
            fixed = before.copy()
            fixed[box.slices][seen] = 0
            framed = np.zeros(before.shape, bool)
            framed[box.slices] = inside
            assert (ndimage.binary_dilation(framed) & (fixed == number)).any()
    new = sorted(n for n in used if n > largest_before)
    assert new == list(range(largest_before + 1, largest + 1))


def test_objects_of_a_mask_that_was_corrected() -> None:
    old = row(4, 4, 0, 6, 6, 0, 0)
    assert drawn_objects(old, row(1, 1, 0, 1, 1, 0, 0) > 0, (1, 1, 1))[0, 0].tolist() == [1, 1, 0, 2, 2, 0, 0]
    joined = drawn_objects(old, row(1, 1, 1, 1, 1, 0, 1) > 0, (1, 1, 1))[0, 0].tolist()
    assert joined in ([1, 1, 1, 2, 2, 0, 3], [1, 1, 2, 2, 2, 0, 3])
    assert drawn_objects(old, np.ones((1, 1, 7), bool), (1, 1, 1))[0, 0, 4:].tolist() == [2, 2, 2]
    assert not drawn_objects(old, np.zeros((1, 1, 7), bool), (1, 1, 1)).any()
    assert drawn_objects(np.zeros((1, 1, 2), np.uint32), np.ones((1, 1, 2), bool), (1, 1, 1)).tolist() == [[[1, 1]]]


def test_only_a_part_that_falls_apart_becomes_another_object() -> None:
    """An object that enters the box twice is one; where one of its arms is cut, the smaller piece is another."""
    old = np.zeros((1, 3, 7), np.uint32)
    old[0, 0], old[0, 2] = 4, 4
    same = drawn_objects(old, old > 0, (1, 1, 1))
    assert np.array_equal(same, (old > 0).astype(np.uint32))
    cut = old > 0
    cut[0, 0, 2] = False
    after = drawn_objects(old, cut, (1, 1, 1))[0]
    assert after[2, 0] == after[0, 6] != after[0, 0] > 0
