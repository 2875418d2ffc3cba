"""Finds volumes that show the same piece of the specimen without being equal: rescaled to 8 bit, binned, saved with losses.

Both volumes are brought to a coarse grid of at most 32 cells along each axis and correlated over all shifts and mirror
images, without their low frequencies, so that illumination does not count. What agrees there is followed to ever finer
grids, in a few boxes, and must still agree on the finest that both have: there different specimens do not, nor do tiles
that only touch. Small volumes are compared on their finest grid at once. The sign of the correlation does not count: an
inverted copy is a copy.

The voxels of one volume may be larger than those of the other: by the ratio of the spacings, or, of whole copies, of the
shapes. Axes may be exchanged in whole copies only.

Not found: copies that share less than about a tenth of the larger volume, where that has more than 32 voxels along an axis
(down to some 64 voxels of noisy images in smaller ones), or less than 4 cells along an axis; copies turned by other angles
than right ones, stretched, or smoothed so strongly that their finest structure correlates by less than 0.4; two
acquisitions of one specimen, unless they lie on one grid and their noise is low.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rescueseg.geometry import ZYX, Box, Floats, Spacing, zyx
from rescueseg.shared_places import GridMap, Triple
from rescueseg.volumes.coarse_reading import Pyramid
from rescueseg.volumes.correlation import Peak, correlations, peaks, without_low_frequencies

_COARSE = 32
"""Cells along each axis of the grid on which volumes are searched."""
_LEAST_SCORE, _CANDIDATES = 5.5, 3
_ACCEPTED_SCORE, _ACCEPTED_CORRELATION = 15.0, 0.4
"""On the finest grid. Copies of the phantom reach 260 and 0.87, unlike phantoms 9 and 0.36, under one illumination 38 and 0.13."""
_LOST_SCORE = 3.5
"""On a coarser grid: what falls below is not followed."""
_SURE, _SURE_SCORE = 0.9, 8.0
"""A correlation that unlike images never reach, and the score that suffices there: smooth images have few independent cells."""
_THICK, _SURE_THICK = 8, 4
"""Cells that an overlap must have along each axis, where the correlation is below `_SURE` and where not: the planes of
tiles that only touch look alike too."""
_SIDE = 32
"""Cells of a box in which an agreement is followed."""
_REACH = 3
"""Cells by which it may be off from one grid to the next."""
_MOST_RATIO = 8.0
_WHOLE = 0.05
"""Relative difference in shape up to which a volume may be the whole of another."""


def near_copy(one: Pyramid, other: Pyramid, spacing_um_zyx: Spacing, other_spacing_um_zyx: Spacing) -> GridMap | None:
    """Return where a volume lies in another that shows the same, None where nothing speaks for it.

    Parameters
    ----------
    one, other : Pyramid
        The volumes; of several channels the first are compared, or, where their numbers differ, each with each.
    spacing_um_zyx, other_spacing_um_zyx : tuple of float
        Voxel sizes as the files said; they need not be right.

    Returns
    -------
    GridMap
        From `other` to `one`; its tolerance says by how many voxels it may be off.
    """  # fmt: skip
    alike = one.channels == other.channels
    channels = [(0, 0)] if alike else list(itertools.product(range(one.channels), range(other.channels)))[:9]
    for axes, ratio in _hypotheses(one.shape_zyx, other.shape_zyx, spacing_um_zyx, other_spacing_um_zyx):
        step = _coarse_step(one, other, axes, ratio)
        for first, second in channels:
            here = _coarse(one, first, step)
            own = _by_source_axis([s / r for s, r in zip(step, ratio, strict=True)], axes)
            there = _coarse(other, second, own).transpose(axes)
            for peak in peaks(here, there, _LEAST_SCORE, _CANDIDATES):
                grid = _grid(peak, axes, ratio, step, zyx(there.shape))
                confirmed = _follow(one, other, (first, second), grid, step)
                if confirmed is not None:
                    return confirmed
    return None


def _coarse(image: Pyramid, channel: int, step: Sequence[float]) -> Floats:
    """Return a whole volume on a grid, without its low frequencies; kept for the next pair."""
    count = zyx(max(1, int(n / s + 1e-6)) for n, s in zip(image.shape_zyx, step, strict=True))
    key = (channel, *(round(float(s), 9) for s in step))
    return image.kept(key, lambda: without_low_frequencies(image.read(channel, (0, 0, 0), step, count)))


def _hypotheses(one: ZYX, other: ZYX, spacing: Spacing, other_spacing: Spacing) -> list[tuple[ZYX, Triple]]:
    """Return how axes may be exchanged and how many voxels of the first volume one of the second may take."""
    found: list[tuple[ZYX, Triple]] = []
    for axes in itertools.permutations((0, 1, 2)):
        turned = [other[a] for a in axes]
        shapes = [_whole_number(n / m) for n, m in zip(one, turned, strict=True)]
        spacings = [_whole_number(other_spacing[a] / s, 0.001) for a, s in zip(axes, spacing, strict=True)]
        for z, y, x in ([1.0, 1.0, 1.0], spacings, shapes):
            ratio = (z, y, x)
            whole = all(abs(m * r / n - 1) <= _WHOLE for n, m, r in zip(one, turned, ratio, strict=True))
            likely = axes == (0, 1, 2) and ratio != (*shapes,)
            possible = all(1 / _MOST_RATIO <= r <= _MOST_RATIO for r in ratio)
            known = any(axes == a and np.allclose(ratio, r, rtol=0.005) for a, r in found)
            if possible and not known and (likely or whole):
                found.append((zyx(axes), ratio))
    return found


def _whole_number(ratio: float, tolerance: float = 0.04) -> float:
    """Return the whole number, or one over it, that a ratio is near; else the ratio."""
    whole = float(max(1, round(ratio))) if ratio >= 1 else 1 / max(1, round(1 / ratio))
    return whole if abs(ratio / whole - 1) <= tolerance else ratio


def _coarse_step(one: Pyramid, other: Pyramid, axes: ZYX, ratio: Triple) -> list[float]:
    """Return the cells of the coarse grid, in voxels of the first volume."""
    cells, others = one.coarse_cells(), other.coarse_cells()
    return [
        max(float(cell), r * others[a], n / _COARSE, other.shape_zyx[a] * r / _COARSE, r)
        for a, r, n, cell in zip(axes, ratio, one.shape_zyx, cells, strict=True)
    ]


def _by_source_axis(values: Sequence[float], axes: ZYX) -> list[float]:
    return [values[axes.index(axis)] for axis in range(3)]


def _grid(peak: Peak, axes: ZYX, ratio: Triple, step: Sequence[float], cells: ZYX) -> GridMap:
    """Return the map that a peak on the coarse grid stands for."""
    start = [
        (shift + (n if sign < 0 else 0)) * s
        for shift, n, sign, s in zip(peak.shift, cells, peak.signs, step, strict=True)
    ]
    z, y, x = (r * sign for r, sign in zip(ratio, peak.signs, strict=True))
    return GridMap(axes, (z, y, x), (start[0], start[1], start[2]))


def _follow(
    one: Pyramid, other: Pyramid, channels: tuple[int, int], grid: GridMap, step: Sequence[float]
) -> GridMap | None:
    """Follow an agreement to the finest grid that both volumes have; None when it is lost."""
    finest = [max(1.0, abs(s)) for s in grid.steps]
    present = list(step)
    while True:
        last = all(p <= f * 1.001 for p, f in zip(present, finest, strict=True))
        if last:
            grid = _on_whole_voxels(grid)
        found = _agreement(one, other, channels, grid, present, pattern=last)
        if found is None or (found.score < _LOST_SCORE and not last):
            return None
        z, y, x = (b + o * p for b, o, p in zip(grid.start, found.shift, present, strict=True))
        grid = GridMap(grid.axes, grid.steps, (z, y, x))
        if last:
            return _accepted(one, other, grid, found, present)
        # the coarsest axes first: others would be read at a resolution that these do not need yet
        most = max(p / f for f, p in zip(finest, present, strict=True)) / 2
        present = [f * max(1.0, min(p / f, most)) for f, p in zip(finest, present, strict=True)]


@dataclass(frozen=True)
class _Agreement:
    """How well two volumes agree in a few boxes; shifts in cells.

    Parameters
    ----------
    shift, spread : list of int
        By how much the map is off, and how far single boxes are from that.
    correlation, score : float
        Over all boxes; see `rescueseg.volumes.correlation.Peak`.
    """

    shift: list[int]
    spread: list[int]
    correlation: float
    score: float


def _accepted(one: Pyramid, other: Pyramid, grid: GridMap, found: _Agreement, step: Sequence[float]) -> GridMap | None:
    """Return the map with its tolerance; None where the agreement on the finest grid is too weak, or the overlap too thin."""
    thick = _THICK if found.correlation < _SURE else _SURE_THICK
    least = _ACCEPTED_SCORE if found.correlation < _SURE else _SURE_SCORE
    if found.score < least or found.correlation < _ACCEPTED_CORRELATION:
        return None
    if not _is_thick(one, other, grid, thick):
        return None
    exact = found.correlation >= _SURE and not any(found.spread) and all(abs(s) == 1 for s in grid.steps)
    z, y, x = ((0.0 if exact else 1.0 + o) * p for o, p in zip(found.spread, step, strict=True))
    return GridMap(grid.axes, grid.steps, grid.start, (z, y, x))


def _on_whole_voxels(grid: GridMap) -> GridMap:
    """Return a map that begins at whole voxels along the axes where both volumes have the same."""
    z, y, x = (float(round(b)) if abs(s) == 1 else b for b, s in zip(grid.start, grid.steps, strict=True))
    return GridMap(grid.axes, grid.steps, (z, y, x))


def _agreement(
    one: Pyramid, other: Pyramid, channels: tuple[int, int], grid: GridMap, step: Sequence[float], *, pattern: bool
) -> _Agreement | None:
    """Return how well two volumes agree; None where they do not overlap, or what overlaps shows nothing."""
    near: list[Floats] = []
    own: list[tuple[list[int], float]] = []
    independent = 0.0
    for start, count in _sample_cells(one.shape_zyx, other.shape_zyx, grid, step):
        here = without_low_frequencies(one.read(channels[0], start, step, count), pattern=pattern)
        there = without_low_frequencies(_read_other(other, channels[1], grid, start, step, count), pattern=pattern)
        if not here.any() or not there.any():
            continue
        _, correlation, score = next(iter(correlations(here, there)))
        window = tuple(slice(max(0, n - 1 - _REACH), n + _REACH) for n in count)
        part, scores = np.abs(correlation[window]), score[window]
        best = np.unravel_index(int(np.argmax(scores)), scores.shape)
        own.append(([int(b) - min(n - 1, _REACH) for b, n in zip(best, count, strict=True)], float(part[best])))
        near.append(part)
        independent += float(scores[best] / math.atanh(max(1e-6, float(part[best])))) ** 2
    if not near:
        return None
    mean: Floats = np.mean(near, axis=0)
    index = np.unravel_index(int(np.argmax(mean)), mean.shape)
    shift = [int(i) - n // 2 for i, n in zip(index, mean.shape, strict=True)]
    strength = float(mean[index])
    off = [s for s, correlation in own if correlation >= 0.5 * strength]
    spread = [max((abs(s[axis] - shift[axis]) for s in off), default=0) for axis in range(3)]
    return _Agreement(shift, spread, strength, math.atanh(min(0.9999, strength)) * math.sqrt(independent))


def _is_thick(one: Pyramid, other: Pyramid, grid: GridMap, least: int) -> bool:
    """Tell whether an overlap has so many cells along each axis, or all that a volume has."""
    whole, shape = grid.box(Box((0, 0, 0), other.shape_zyx)), one.shape_zyx
    common = whole.intersection(Box((0, 0, 0), shape))
    cells = [max(1.0, abs(s)) for s in grid.steps]
    return common is not None and all(
        n >= min(least * c, m, k) for n, c, m, k in zip(common.shape_zyx, cells, shape, whole.shape_zyx, strict=True)
    )


def _sample_cells(one: ZYX, other: ZYX, grid: GridMap, step: Sequence[float]) -> list[tuple[Triple, ZYX]]:
    """Return where boxes of cells begin that lie in both volumes, and how many cells each has: 8, or 1 where it is small."""
    low, high = [], []
    for axis, begin, stride, n in zip(grid.axes, grid.start, grid.steps, one, strict=True):
        ends = sorted((begin, begin + stride * other[axis]))
        low.append(max(0.0, ends[0]))
        high.append(min(float(n), ends[1]))
    room = [int((b - a) / s + 1e-6) for a, b, s in zip(low, high, step, strict=True)]
    if min(room) < 1:
        return []
    count = zyx(min(_SIDE, r) for r in room)
    starts = [
        sorted({a, a + (r - c) * s}) if r >= 2 * c else [a + (r - c) // 2 * s]
        for a, r, c, s in zip(low, room, count, step, strict=True)
    ]
    return [((z, y, x), count) for z, y, x in itertools.product(*starts)]


def _read_other(
    other: Pyramid, channel: int, grid: GridMap, start: Triple, step: Sequence[float], count: ZYX
) -> Floats:
    """Read the second volume on cells of the first, turned alike."""
    begin, own, cells = [0.0] * 3, [1.0] * 3, [1] * 3
    for axis, edge, stride, at, s, n in zip(grid.axes, grid.start, grid.steps, start, step, count, strict=True):
        ends = sorted(((at - edge) / stride, (at + n * s - edge) / stride))
        begin[axis], own[axis], cells[axis] = ends[0], s / abs(stride), n
    part = other.read(channel, begin, own, zyx(cells)).transpose(grid.axes)
    turned: Floats = part[tuple(slice(None, None, 1 if s > 0 else -1) for s in grid.steps)]
    return turned
