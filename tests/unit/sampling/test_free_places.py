"""Chosen patches keep apart, in whichever volumes, and are the first of their order that do."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rescueseg.geometry import Box, Patch
from rescueseg.sampling.free_places import FreePlaces, bounds_by_volume, choose_apart
from rescueseg.shared_places import IDENTITY, GridMap, SharedPlaces

PLACES = SharedPlaces(
    {"a": (12, 12, 12), "copy": (12, 12, 12), "mirror": (12, 12, 12), "other": (12, 12, 12)},
    [("a", "copy", IDENTITY), ("a", "mirror", GridMap((0, 1, 2), (1, 1, -1), (0, 0, 12)))],
)
boxes = st.builds(Box, st.tuples(*[st.integers(0, 8)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
patches = st.lists(st.builds(Patch, st.sampled_from(["a", "copy", "mirror", "other"]), boxes), max_size=24)


def in_a(patch: Patch) -> Patch:
    """Say where a patch lies in "a", which two of the volumes show again; written down by hand."""
    z, y, x = patch.box.offset_zyx
    if patch.volume_id == "mirror":
        return Patch("a", Box((z, y, 12 - x - patch.box.shape_zyx[2]), patch.box.shape_zyx))
    return Patch("other" if patch.volume_id == "other" else "a", patch.box)


def apart(one: Patch, other: Patch, gap: int = 0) -> bool:
    """Tell whether two patches share no voxel and are `gap` voxels apart."""
    p, q = in_a(one), in_a(other)
    return p.volume_id != q.volume_id or not p.box.intersects(q.box.expand((gap, gap, gap)))


@given(patches, st.integers(0, 8))
def test_the_first_of_an_order_that_share_no_voxel_are_chosen(ordered: list[Patch], count: int) -> None:
    expected: list[Patch] = []
    for patch in ordered:
        if len(expected) < count and all(apart(patch, other) for other in expected):
            expected.append(patch)
    assert choose_apart(ordered, count, PLACES) == expected


@given(patches, patches, st.integers(0, 2))
def test_free_are_the_boxes_that_keep_their_distance_from_all_that_was_taken(
    candidates: list[Patch], taken: list[Patch], gap: int
) -> None:
    bounds, rows = bounds_by_volume(candidates)
    places = FreePlaces(bounds, PLACES, (gap, gap, gap))
    for patch in taken:
        places.take(patch)
    free = [bool(places.free[name][row]) for name, row in rows]
    assert free == [all(apart(c, patch, gap) for patch in taken) for c in candidates]


def test_a_second_order_goes_on_where_the_first_ended() -> None:
    ordered = [Patch("a", Box((0, 0, x), (4, 4, 4))) for x in (0, 2, 4, 8)]
    bounds, rows = bounds_by_volume(ordered)
    places = FreePlaces(bounds)
    assert places.take_first(rows, 1) == [0]
    assert places.take_first(iter(rows), 5) == [2, 3]


def test_an_order_is_read_no_further_than_it_must_be() -> None:
    bounds, rows = bounds_by_volume([Patch("a", Box((0, 0, 0), (4, 4, 4)))])
    assert FreePlaces(bounds).take_first(itertools.cycle(rows), 1) == [0]
    assert FreePlaces(bounds).take_first(itertools.repeat(rows[0]), 0) == []


def test_without_shared_places_each_volume_is_on_its_own() -> None:
    ordered = [Patch(name, Box((0, 0, 0), (4, 4, 4))) for name in ("a", "copy", "a")]
    assert choose_apart(ordered, 9) == ordered[:2]
    assert choose_apart(ordered, 9, PLACES) == ordered[:1]
