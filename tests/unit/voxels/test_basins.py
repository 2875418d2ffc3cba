"""Basins against plain loops over voxels, and against a spanning forest of all voxels that knows of no basins."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.voxels import basins
from rescueseg.voxels.basins import climb, find_saddles, highest_saddles, join_basins, join_small, level_of, saddle

SHAPES = st.lists(st.integers(1, 6), min_size=3, max_size=3)
SEEDS = st.integers(0, 2**32 - 1)
Place = tuple[int, int, int]


def around(place: Place, shape: tuple[int, ...]) -> list[Place]:
    steps = itertools.product((-1, 0, 1), repeat=3)
    places = [(place[0] + z, place[1] + y, place[2] + x) for z, y, x in steps if (z, y, x) != (0, 0, 0)]
    return [p for p in places if all(0 <= c < n for c, n in zip(p, shape, strict=True))]


def walk(heights: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    """Return the flat place that each voxel of the inner box leads to, -1 outside, step by step."""
    size, inside = heights.shape, np.zeros(heights.shape, bool)
    inside[inner] = True
    ends = np.full(size, -1)
    for start in np.ndindex(*size):
        place = start
        while heights[start] and inside[place]:
            further = max([*around(place, size), place], key=lambda p: (heights[p], [-c for c in p]))
            if further == place:
                break
            place = further
        if heights[start]:
            ends[start] = np.ravel_multi_index(place, size)
    return ends[inner]


def terrain(rng: np.random.Generator, shape: list[int], levels: int) -> np.ndarray:
    return (rng.integers(1, levels + 1, shape) * (rng.random(shape) < 0.8)).astype(np.uint16)


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.sampled_from((1, 3, 65535)), st.lists(st.booleans(), min_size=6, max_size=6), SEEDS)
def test_every_voxel_leads_where_a_walk_ends(shape: list[int], levels: int, cuts: list[bool], seed: int) -> None:
    heights = terrain(np.random.default_rng(seed), shape, levels)
    bounds = [(int(a and n > 2), n - int(b and n > 2)) for n, a, b in zip(shape, cuts[:3], cuts[3:], strict=True)]
    z, y, x = (slice(*b) for b in bounds)
    labels, ends = climb(heights, (z, y, x))
    expected = walk(heights, (z, y, x))
    np.testing.assert_array_equal(np.concatenate([[-1], ends])[labels], expected)
    np.testing.assert_array_equal(ends, np.setdiff1d(expected, [-1]))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from((1, 3, 65535)), st.sampled_from((4, 70_000)), st.booleans(), SEEDS)
def test_saddles_are_the_highest_pairs_of_neighbours(
    shape: list[int], levels: int, most: int, slabs: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    heights = terrain(rng, shape, levels)
    labels = np.where(heights > 0, rng.integers(1, most + 1, shape), 0).astype(np.int32)
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for place in np.ndindex(*shape):
        for other in around(place, tuple(shape)):
            a, b, low, high = labels[place], labels[other], *sorted((int(heights[place]), int(heights[other])))
            if 0 < a < b:
                expected[int(a), int(b)] = max(expected.get((int(a), int(b)), (0, 0)), (low, high))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basins, "_TOGETHER", 30 if slabs else 1 << 19)
        rows = find_saddles(labels, heights)
    assert [(int(a), int(b), int(s)) for a, b, s in rows] == [
        (*pair, int(saddle(np.array(low), np.array(high)))) for pair, (low, high) in sorted(expected.items())
    ]


def forest_of_voxels(heights: np.ndarray, depth: int) -> np.ndarray:
    """Return the seed of each voxel, by Kruskal over all pairs of neighbours: the heights differ all."""
    places = [p for p in np.ndindex(*heights.shape) if heights[p]]
    pairs = {tuple(sorted((p, q))) for p in places for q in around(p, heights.shape) if heights[q]}
    order = sorted(pairs, key=lambda pair: sorted(int(heights[p]) for p in pair), reverse=True)
    whole, summits = {p: {p} for p in places}, dict.fromkeys(places, 1 << 40)
    for p, q in order:
        a, b = whole[p], whole[q]
        if a is not b:
            low = max(min(a, b, key=lambda c: max(int(heights[v]) for v in c)), key=lambda v: heights[v])
            summits[low] = int(heights[low]) - min(int(heights[p]), int(heights[q]))
            a |= b
            whole |= dict.fromkeys(b, a)
    part, has_seed = {p: {p} for p in places}, {p: summits[p] >= depth for p in places}
    seed_of = {p: p for p in places if has_seed[p]}
    for p, q in order:
        a, b = part[p], part[q]
        if a is not b and not (any(has_seed[v] for v in a) and any(has_seed[v] for v in b)):
            a |= b
            part |= dict.fromkeys(b, a)
    seeds = np.full(heights.shape, -1)
    for p in places:
        [seed] = [s for s in seed_of if s in part[p]]
        seeds[p] = np.ravel_multi_index(seed, heights.shape)
    return seeds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(1, 120), SEEDS)
def test_basins_joined_are_a_spanning_forest_of_all_voxels(shape: list[int], depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    heights = (1 + rng.permutation(int(np.prod(shape))).reshape(shape)).astype(np.uint16)
    heights[rng.random(shape) < 0.3] = 0
    labels, ends = climb(heights, (slice(None), slice(None), slice(None)))
    seeds = join_basins(heights.ravel()[ends], find_saddles(labels, heights) - [1, 1, 0], depth)
    ours = np.concatenate([[-1], ends[seeds]])[labels]
    np.testing.assert_array_equal(ours, forest_of_voxels(heights, depth))


def test_a_plateau_is_one_object_whatever_its_shape() -> None:
    heights = np.zeros((1, 9, 9), np.uint16)
    for arm in range(0, 9, 2):
        heights[0, :, arm] = 7
    heights[0, 8] = 7
    labels, ends = climb(heights, (slice(None), slice(None), slice(None)))
    assert len(ends) == 5
    assert set(join_basins(heights.ravel()[ends], find_saddles(labels, heights) - [1, 1, 0], 1)) == {0}


def test_nothing_has_no_basins() -> None:
    nothing = np.zeros((2, 3, 4), np.uint16)
    labels, ends = climb(nothing, (slice(None), slice(None), slice(None)))
    rows = find_saddles(labels, nothing)
    assert (labels.any(), ends.shape, rows.shape) == (False, (0,), (0, 3))
    assert join_basins(nothing.ravel()[ends], rows, 1).shape == join_small(np.zeros(0, np.int64), rows, 5).shape == (0,)


def join_small_plainly(sizes: list[int], rows: list[list[int]], least: int) -> list[int]:
    """Look at everything again after each object that joined."""
    group, gone = list(range(len(sizes))), set[int]()
    while True:
        total = {g: sum(s for s, h in zip(sizes, group, strict=True) if h == g) for g in set(group)}
        small = [(n, g) for g, n in total.items() if n < least and g not in gone]
        if not small:
            return [-1 if g in gone else g for g in group]
        _, number = min(small)
        ways = [(-s, group[a] if group[b] == number else group[b]) for a, b, s in rows if group[a] != group[b]
                and number in (group[a], group[b])]  # fmt: skip
        if ways:
            group = [min(ways)[1] if g == number else g for g in group]
        else:
            gone.add(number)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.integers(1, 9), min_size=0, max_size=9), st.integers(0, 20))
def test_small_objects_join_the_smallest_first(data: Any, sizes: list[int], least: int) -> None:
    pairs = list(itertools.combinations(range(len(sizes)), 2))
    saddles = data.draw(st.lists(st.integers(0, 4), min_size=len(pairs), max_size=len(pairs)))
    rows = [[a, b, s << 16] for (a, b), s in zip(pairs, saddles, strict=True) if s]
    ours = join_small(np.array(sizes, np.int64), np.array(rows, np.int64).reshape(-1, 3), least)
    assert ours.tolist() == join_small_plainly(sizes, rows, least)


def test_both_ways_of_sorting_saddles_agree() -> None:
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.integers(0, 20, 500), rng.integers(20, 40, 500), rng.integers(0, 1 << 32, 500)])
    rows[:, 2] |= rows[:, 2] >> 16 & 0xFFFF
    far = highest_saddles(rows * [1, 1 << 20, 1])
    np.testing.assert_array_equal(far, highest_saddles(rows) * [1, 1 << 20, 1])
    assert level_of(far[:, 2]).max() < 1 << 16
