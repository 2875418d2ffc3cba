"""The window grid: coverage, weights that add up to one, blocks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rescueseg.geometry import Box, partition, zyx
from rescueseg.inference.blending import WindowBlender
from rescueseg.inference.windows import Axis, WindowGrid, _finish, choose_blocks, gaussian

axes = st.tuples(st.integers(1, 40), st.integers(1, 24), st.sampled_from([0.0, 0.25, 0.5, 0.75]))


def grids(draw: st.DrawFn) -> WindowGrid:
    parts = [draw(axes) for _ in range(3)]
    return WindowGrid(zyx(p[0] for p in parts), zyx(p[1] for p in parts), draw(st.sampled_from([0.0, 0.25, 0.5])))


some_grid = st.composite(grids)()


@given(axes)
def test_windows_cover_the_axis_and_overlap_as_asked(parts: tuple[int, int, float]) -> None:
    axis = Axis(*parts)
    starts = axis.starts
    assert list(starts) == sorted(set(starts))
    assert starts[0] <= 0
    assert starts[-1] + axis.window >= axis.length
    if axis.window <= axis.length:
        assert starts[0] == 0
        assert starts[-1] + axis.window == axis.length
        assert all(b - a <= max(1, axis.window * (1 - axis.overlap)) for a, b in itertools.pairwise(starts))


@given(axes)
def test_weights_are_positive_and_add_up_to_one(parts: tuple[int, int, float]) -> None:
    axis = Axis(*parts)
    total = np.zeros(axis.length)
    for index, start in enumerate(axis.starts):
        weights = axis.weights(index)
        assert weights.dtype == np.float32
        assert weights.min() > 0
        low = max(0, start)
        total[low : low + len(weights)] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@given(axes, st.data())
def test_touching_is_what_an_exhaustive_search_finds(parts: tuple[int, int, float], data: st.DataObject) -> None:
    axis = Axis(*parts)
    start = data.draw(st.integers(0, axis.length - 1))
    stop = data.draw(st.integers(start + 1, axis.length))
    expected = [i for i, s in enumerate(axis.starts) if s < stop and s + axis.window > start]
    assert list(axis.touching(start, stop)) == expected


@given(some_grid, st.data())
@settings(max_examples=50, deadline=None)
def test_a_block_computes_exactly_the_windows_that_touch_it(grid: WindowGrid, data: st.DataObject) -> None:
    block_zyx = [data.draw(st.integers(1, n)) for n in grid.volume_zyx]
    block = data.draw(st.sampled_from(partition(grid.volume_zyx, block_zyx)))
    touching = list(grid.touching(block))
    if len(grid) < 3000:
        assert touching == [i for i in range(len(grid)) if grid.box(i).intersects(block)]


@given(some_grid)
@settings(max_examples=30, deadline=None)
def test_separable_weights_add_up_to_one_in_the_volume(grid: WindowGrid) -> None:
    if len(grid) > 500:
        return
    total = np.zeros(grid.volume_zyx)
    for index in range(len(grid)):
        z, y, x = grid.weights(index)
        inside = grid.box(index).clip(grid.volume_zyx)
        total[inside.slices] += z[:, None, None] * y[None, :, None] * x[None, None, :]
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@given(some_grid, st.data())
@settings(max_examples=30, deadline=None)
def test_blended_is_the_mean_of_the_windows_by_their_weights(grid: WindowGrid, data: st.DataObject) -> None:
    if len(grid) > 200:
        return
    block_zyx = [data.draw(st.integers(1, n)) for n in grid.volume_zyx]
    block = data.draw(st.sampled_from(partition(grid.volume_zyx, block_zyx)))
    bells = [gaussian(n) for n in grid.window_zyx]
    weights = bells[0][:, None, None] * bells[1][:, None] * bells[2]
    total, weight = np.zeros((2, *block.shape_zyx)), np.zeros(block.shape_zyx)
    blender = WindowBlender(block)
    rng = np.random.default_rng(0)
    for index in range(len(grid)):
        window = grid.box(index)
        values = rng.random((2, *grid.window_zyx), dtype=np.float32)
        if (inside := window.intersection(block)) is not None:
            cut, target = inside.relative_to(window).slices, inside.relative_to(block).slices
            total[(..., *target)] += (values * weights)[(..., *cut)]
            weight[target] += weights[cut]
            part = grid.part(index, block)
            assert (part.index, part.window, part.inside) == (index, window, inside)
            blender.add(part, torch.from_numpy(values[(..., *part.cut)]))
    np.testing.assert_allclose(blender.blended().numpy(), total / weight, rtol=1e-5)


def test_the_gaussian_peaks_in_the_centre_and_keeps_a_floor() -> None:
    bell = gaussian(65)
    assert bell[32] == bell.max() == 1
    np.testing.assert_allclose(bell, bell[::-1])
    assert bell.min() == 1e-3


def test_a_window_longer_than_the_volume_is_centred() -> None:
    axis = Axis(15, 20, 0.25)
    assert axis.starts == (-2,)
    assert np.array_equal(axis.weights(0), np.ones(15, np.float32))


@given(some_grid, st.integers(1, 20_000), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_blocks_are_whole_chunks_within_the_limit(grid: WindowGrid, limit: int, workers: int) -> None:
    chunk = zyx(min(8, n) for n in grid.volume_zyx)
    block = choose_blocks(grid, chunk, limit, workers)
    assert all(b % c == 0 and b < n + c for b, c, n in zip(block, chunk, grid.volume_zyx, strict=True))
    inside = math.prod(min(b, n) for b, n in zip(block, grid.volume_zyx, strict=True))
    assert inside <= limit or block == chunk


def test_blocks_keep_every_worker_busy() -> None:
    grid = WindowGrid((64, 512, 512), (16, 64, 64), 0.25)
    for workers in (1, 2, 4, 8):
        block = choose_blocks(grid, (32, 64, 64), 100_000_000, workers)
        assert len(partition(grid.volume_zyx, block)) >= workers
    assert choose_blocks(grid, (32, 64, 64), 100_000_000, 1) == (64, 512, 512)


def test_blocks_are_cut_where_it_costs_least() -> None:
    """Two workers on a long thin volume cut it once, across the long axis."""
    grid = WindowGrid((32, 64, 1024), (32, 64, 64), 0.25)
    assert choose_blocks(grid, (32, 64, 64), 100_000_000, 2) == (32, 64, 512)


def test_workers_that_compute_the_same_rows_at_a_time_both_compute_them() -> None:
    """Batches are runs along x: cut across x, two workers would compute every window twice, so the volume is cut along it."""
    grid = WindowGrid((25, 512, 512), (24, 80, 80), 0.25)
    chunk = (25, 64, 64)
    assert _finish(grid, (25, 512, 256), 2, 100, True) == len(grid) + 1
    assert choose_blocks(grid, chunk, 8_000_000, 2, 100) == (25, 192, 512)
    assert _finish(grid, (25, 192, 512), 2, 100, True) < 0.6 * len(grid)


def test_the_turns_of_workers_are_gone_through() -> None:
    """Four windows along x in three blocks, each of which costs one window more than its own."""
    grid = WindowGrid((4, 4, 13), (4, 4, 4), 0.25)
    assert grid.shape == (1, 1, 4)
    blocks = (4, 4, 5)
    assert [list(grid.touching(box)) for box in partition(grid.volume_zyx, blocks)] == [[0, 1], [1, 2, 3], [3]]
    assert _finish(grid, blocks, 1, 1, True) == 4 + 3
    assert _finish(grid, blocks, 1, 1, False) == 6 + 3
    # beside 0 1 of the first worker the other computes 3, then 2, while 1 is kept for it
    assert _finish(grid, blocks, 2, 1, True) == 1 + 1 + 1 + 1
    assert _finish(grid, blocks, 2, 1, False) == 1 + 1 + 1 + 3
    # all four are computed together, by both, and then kept for the block in the middle
    assert _finish(grid, blocks, 2, 4, True) == 1 + 4 + 1


@given(some_grid, st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_one_worker_computes_each_window_once_and_several_are_done_no_later(
    grid: WindowGrid, workers: int, batch: int
) -> None:
    chunk = zyx(min(8, n) for n in grid.volume_zyx)
    assume(len(grid) <= 500 and len(partition(grid.volume_zyx, chunk)) <= 500)
    blocks = len(partition(grid.volume_zyx, chunk))
    assert _finish(grid, chunk, 1, batch, True) == len(grid) + blocks
    together = _finish(grid, chunk, workers, batch, True)
    assert (len(grid) + blocks) / workers <= together <= len(grid) + blocks


@pytest.mark.parametrize("shape", [(15, 512, 512), (51, 480, 480), (100, 100, 100), (24, 128, 128), (1, 64, 64)])
def test_flat_volumes_are_covered_by_their_blocks(shape: tuple[int, int, int]) -> None:
    grid = WindowGrid(shape, (16, 96, 96), 0.25)
    chunk = zyx(min(c, n) for c, n in zip((32, 64, 64), shape, strict=True))
    blocks = partition(shape, choose_blocks(grid, chunk, 8_000_000, 2))
    assert sum(b.size for b in blocks) == math.prod(shape)
    assert Box((0, 0, 0), shape).contains(blocks[-1])
