"""The global window grid of a volume, its Gaussian weights, and the blocks it is computed in. Pure functions.

The grid depends on the volume and the window alone. A block computes every window that touches it and keeps what lies
inside, so that each voxel gets the same windows in the same order whatever the blocks are.

The weights of the windows over a voxel add up to one by construction: the grid is a product of three axes and so is
the Gaussian, hence the weights are normalised per axis, beforehand, and no sum of weights is ever stored.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, axis_starts, partition, stride_of, zyx

SIGMA = 1 / 8
"""Standard deviation of the weight as a share of the window, as usual since nnU-Net (10.1038/s41592-020-01008-z)."""
FLOOR = 1e-3
"""Least weight along an axis as a share of its peak."""

_FEW_WINDOWS, _LIKELY = 500, 30
"""Up to so many windows the finish of the workers is found by going through their turns, for so many shapes of blocks."""

Weights = npt.NDArray[np.float32]


def gaussian(window: int) -> npt.NDArray[np.float64]:
    """Return the weight along one axis: a Gaussian with its peak of 1 in the centre and a floor above zero.

    Examples
    --------
    >>> gaussian(5).round(3).tolist()
    [0.006, 0.278, 1.0, 0.278, 0.006]
    """
    distance = np.arange(window) - (window - 1) / 2
    bell: npt.NDArray[np.float64] = np.exp(-0.5 * (distance / (SIGMA * window)) ** 2)
    return np.maximum(bell, FLOOR, out=bell)


@dataclass(frozen=True)
class Axis:
    """The windows along one axis.

    Parameters
    ----------
    length, window : int
        In voxels. A window longer than the axis is centred on it and reaches beyond both ends.
    overlap : float
        Overlap of neighbours as a fraction of the window.

    Examples
    --------
    >>> axis = Axis(length=10, window=4, overlap=0.25)
    >>> axis.starts
    (0, 3, 6)
    >>> list(axis.touching(0, 4))
    [0, 1]
    """

    length: int
    window: int
    overlap: float

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First voxel of each window, ascending; the last window is moved back so that it ends with the axis."""
        if self.window >= self.length:
            return (-((self.window - self.length) // 2),)
        return tuple(axis_starts(self.length, self.window, stride_of(self.window, self.overlap)))

    def touching(self, start: int, stop: int) -> range:
        """Return the indices of the windows that hold a voxel of [start, stop)."""
        return range(bisect.bisect_right(self.starts, start - self.window), bisect.bisect_left(self.starts, stop))

    def weights(self, index: int) -> Weights:
        """Return the normalised weight of one window, for its voxels inside the axis: over all windows they sum to 1."""
        start = self.starts[index]
        low, high = max(0, start), min(self.length, start + self.window)
        bell = gaussian(self.window)
        total = np.zeros(high - low)
        for other in self.touching(low, high):
            a = max(low, self.starts[other])
            b = min(high, self.starts[other] + self.window)
            total[a - low : b - low] += bell[a - self.starts[other] : b - self.starts[other]]
        return (bell[low - start : high - start] / total).astype(np.float32)


@dataclass(frozen=True)
class WindowPart:
    """The part of a window inside a block.

    Parameters
    ----------
    index : int
        Of the window in its grid.
    window : Box
        All of it; it may reach beyond the volume.
    inside : Box
        What lies in the block.
    weights : ndarray of float32, zyx
        Of the voxels inside.
    """

    index: int
    window: Box
    inside: Box
    weights: Weights

    @property
    def cut(self) -> tuple[slice, slice, slice]:
        """Where the part lies in an array of the window, zyx."""
        return self.inside.relative_to(self.window).slices


@dataclass(frozen=True)
class WindowGrid:
    """All windows of a volume, numbered in z, y, x order; none is stored.

    Parameters
    ----------
    volume_zyx, window_zyx : tuple of int
        In voxels.
    overlap : float
        Overlap of neighbouring windows as a fraction of the window.
    """

    volume_zyx: ZYX
    window_zyx: ZYX
    overlap: float

    @cached_property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The windows along z, y and x."""
        z, y, x = (Axis(n, w, self.overlap) for n, w in zip(self.volume_zyx, self.window_zyx, strict=True))
        return z, y, x

    @property
    def shape(self) -> ZYX:
        """Number of windows along each axis."""
        return zyx(len(axis.starts) for axis in self.axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def position(self, index: int) -> ZYX:
        """Return a window's place along each axis."""
        return zyx(int(i) for i in np.unravel_index(index, self.shape))

    def box(self, index: int) -> Box:
        """Return a window; it reaches beyond a volume that is smaller than the window."""
        start = [axis.starts[i] for axis, i in zip(self.axes, self.position(index), strict=True)]
        return Box(zyx(start), self.window_zyx)

    def weights(self, index: int) -> tuple[Weights, Weights, Weights]:
        """Return the normalised weights along z, y and x of a window's voxels inside the volume."""
        z, y, x = (axis.weights(i) for axis, i in zip(self.axes, self.position(index), strict=True))
        return z, y, x

    def touching(self, block: Box) -> Iterator[int]:
        """Yield, ascending, the indices of the windows that hold a voxel of a block."""
        ranges = [axis.touching(a, b) for axis, a, b in zip(self.axes, block.offset_zyx, block.stop_zyx, strict=True)]
        for position in itertools.product(*ranges):
            yield int(np.ravel_multi_index(position, self.shape))

    def batches(self, block: Box, size: int, *, whole: bool) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the windows of a block that are computed together, ascending, and all that are computed with them.

        Batches are runs of `size` windows along x. Where they are `whole`, they are the same ones whichever block asks, so
        that what is computed together does not depend on the block.

        Examples
        --------
        >>> grid = WindowGrid((4, 4, 20), (4, 4, 4), 0.0)
        >>> list(grid.batches(Box((0, 0, 4), (4, 4, 8)), 2, whole=True))
        [([1], [0, 1]), ([2], [2, 3])]
        """
        row = self.shape[2]
        for (line, number), group in itertools.groupby(self.touching(block), lambda i: (i // row, i % row // size)):
            own, first = list(group), line * row + number * size
            yield own, list(range(first, min(first + size, (line + 1) * row))) if whole else own

    def part(self, index: int, block: Box) -> WindowPart:
        """Return the part of a window inside a block that it touches, with its weights."""
        window = self.box(index)
        inside = window.intersection(block)
        assert inside is not None, "every window of a block touches it"
        first = [max(0, o) for o in window.offset_zyx]
        z, y, x = (
            weights[o - f : o - f + s]
            for weights, o, f, s in zip(self.weights(index), inside.offset_zyx, first, inside.shape_zyx, strict=True)
        )
        return WindowPart(index, window, inside, z[:, None, None] * y[None, :, None] * x[None, None, :])

    def parts(self, block: Box) -> Iterator[WindowPart]:
        """Yield the parts of all windows that touch a block, by ascending index."""
        return (self.part(index, block) for index in self.touching(block))


def choose_blocks(
    grid: WindowGrid,
    chunk_zyx: Sequence[int],
    block_voxels: int,
    workers: int,
    batch: int = 1,
    *,
    shared: bool = True,
) -> ZYX:
    """Return the block shape with which `workers` workers finish first.

    A window at the border of blocks is kept for the others by the first of them that has computed it (see
    `rescueseg.inference.shared_windows`); those that compute it at the same time all do. Fewer blocks than workers leave some
    idle, few blocks leave some idle at the end, and each block costs about as much beside its windows as one window. Where
    there are few windows, the workers' turns are gone through batch by batch: halves of a small volume are rarely equal.

    Parameters
    ----------
    grid : WindowGrid
        The windows.
    chunk_zyx : sequence of int
        Blocks are whole numbers of chunks.
    block_voxels : int
        Largest block; a single chunk may exceed it.
    workers : int
        Blocks computed at a time.
    batch : int
        Windows computed together; see `WindowGrid.batches`.
    shared : bool
        Whether blocks keep windows for one another.

    Returns
    -------
    tuple of int
        Shape in voxels; it may reach beyond the volume, up to a whole chunk.

    Examples
    --------
    Two workers share a volume along x:

    >>> grid = WindowGrid((32, 32, 64), (32, 32, 32), 0.0)
    >>> choose_blocks(grid, (32, 32, 32), block_voxels=100_000, workers=2)
    (32, 32, 32)
    """
    options = [_axis_options(axis, chunk) for axis, chunk in zip(grid.axes, chunk_zyx, strict=True)]
    costs: list[tuple[float, int, ZYX]] = []
    for combination in itertools.product(*options):
        shape = zyx(option[0] for option in combination)
        inside = math.prod(min(s, n) for s, n in zip(shape, grid.volume_zyx, strict=True))
        if inside > block_voxels and shape != zyx(chunk_zyx):
            continue
        rounds = math.ceil(math.prod(option[1] for option in combination) / workers)
        windows: float = math.prod(option[3] for option in combination)
        if rounds > 1:
            full = inside / math.prod(grid.volume_zyx)
            windows = len(grid) * min(rounds * full, (1 - full) / workers + full)
        costs.append((windows + rounds, math.prod(option[2] for option in combination), shape))
    likely = sorted(costs)[:_LIKELY] if len(grid) <= _FEW_WINDOWS else [min(costs)]
    if len(likely) > 1:
        likely = [(_finish(grid, shape, workers, batch, shared), rest, shape) for _, rest, shape in likely]
    return min(likely)[2]


def _finish(grid: WindowGrid, block_zyx: ZYX, workers: int, batch: int, shared: bool) -> float:
    """Return when the last of the workers is done, in windows: each block costs one more than the windows left to it."""
    blocks = partition(grid.volume_zyx, block_zyx)
    waiting = iter(spread(range(len(blocks)), workers))
    left: list[Iterator[tuple[list[int], list[int]]]] = [iter(()) for _ in range(workers)]
    clocks = [(0, worker) for worker in range(workers)]
    kept: dict[int, int] = {}
    end = 0
    while clocks:
        now, worker = heapq.heappop(clocks)
        todo = next((all_ for own, all_ in left[worker] if any(kept.get(i, math.inf) > now for i in own)), None)
        if todo is not None:
            after = now + len(todo)
            if shared:
                kept |= {index: min(after, kept.get(index, after)) for index in todo}
        elif (block := next(waiting, None)) is not None:
            left[worker], after = grid.batches(blocks[block], batch, whole=shared), now + 1
        else:
            end = max(end, now)
            continue
        heapq.heappush(clocks, (after, worker))
    return end


def spread(blocks: Sequence[int], workers: int) -> list[int]:
    """Return blocks in an order in which each of several workers has a row of neighbours of its own.

    Examples
    --------
    >>> spread([0, 1, 2, 3, 4], 2), spread([0, 1, 2], 1)
    ([0, 3, 1, 4, 2], [0, 1, 2])
    """
    length = math.ceil(len(blocks) / workers)
    rows = [blocks[start : start + length] for start in range(0, len(blocks), max(1, length))]
    return [block for together in itertools.zip_longest(*rows) for block in together if block is not None]


def _axis_options(axis: Axis, chunk: int) -> list[tuple[int, int, int, int]]:
    """Return (block length, blocks, windows over all blocks, windows of the largest block) for an axis."""
    chunks = math.ceil(axis.length / chunk)
    lengths = sorted({math.ceil(chunks / n) * chunk for n in range(1, chunks + 1)})
    options = []
    for length in lengths:
        counts = [len(axis.touching(a, min(a + length, axis.length))) for a in range(0, axis.length, length)]
        options.append((length, len(counts), sum(counts), max(counts)))
    return options
