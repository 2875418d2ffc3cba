"""Boxes and grids in voxel space. Every triple is ordered z, y, x."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ZYX = tuple[int, int, int]
Spacing = tuple[float, float, float]


def zyx(values: Iterable[int]) -> ZYX:
    """Return three Python integers, whatever sequence they came in.

    Raises
    ------
    ValueError
        If there are not exactly three values.
    """
    z, y, x = (int(v) for v in values)
    return z, y, x


@dataclass(frozen=True, order=True)
class Box:
    """An axis-aligned box of voxels.

    Parameters
    ----------
    offset_zyx : tuple of int
        First voxel inside; may be negative for a box that reads beyond the volume.
    shape_zyx : tuple of int
        Extent in voxels, each at least 1.

    Raises
    ------
    ValueError
        If an extent is below 1.
    """

    offset_zyx: ZYX
    shape_zyx: ZYX

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset_zyx", zyx(self.offset_zyx))
        object.__setattr__(self, "shape_zyx", zyx(self.shape_zyx))
        if min(self.shape_zyx) < 1:
            raise ValueError(f"a box needs at least one voxel along each axis, not {self.shape_zyx}")

    @classmethod
    def from_bounds(cls, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Box:
        """Return the box from `start_zyx` up to, not including, `stop_zyx`.

        Examples
        --------
        >>> Box.from_bounds((2, 0, 0), (6, 8, 8))
        Box(offset_zyx=(2, 0, 0), shape_zyx=(4, 8, 8))
        """
        return cls(zyx(start_zyx), zyx(b - a for a, b in zip(start_zyx, stop_zyx, strict=True)))

    @property
    def stop_zyx(self) -> ZYX:
        """First voxel beyond the box."""
        return zyx(o + s for o, s in zip(self.offset_zyx, self.shape_zyx, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape_zyx)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut the box out of a zyx array; the box must start inside the array.

        Examples
        --------
        >>> image = np.zeros((16, 64, 64), dtype=np.float32)
        >>> image[Box((2, 0, 0), (4, 8, 8)).slices].shape
        (4, 8, 8)
        """
        z, y, x = (slice(o, o + s) for o, s in zip(self.offset_zyx, self.shape_zyx, strict=True))
        return z, y, x

    def intersection(self, other: Box) -> Box | None:
        """Return the common box, or None when the two do not overlap.

        Examples
        --------
        >>> print(Box((0, 0, 0), (4, 8, 8)).intersection(Box((2, 4, 4), (4, 8, 8))))
        [2:4, 4:8, 4:8]
        >>> Box((0, 0, 0), (4, 8, 8)).intersection(Box((4, 0, 0), (4, 8, 8))) is None
        True
        """
        start = [max(a, b) for a, b in zip(self.offset_zyx, other.offset_zyx, strict=True)]
        stop = [min(a, b) for a, b in zip(self.stop_zyx, other.stop_zyx, strict=True)]
        return Box.from_bounds(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def intersects(self, other: Box) -> bool:
        """Tell whether the two share at least one voxel."""
        return all(
            a < b + t and b < a + s
            for a, s, b, t in zip(self.offset_zyx, self.shape_zyx, other.offset_zyx, other.shape_zyx, strict=True)
        )

    def contains(self, other: Box) -> bool:
        """Tell whether every voxel of `other` lies inside.

        Examples
        --------
        >>> Box((0, 0, 0), (8, 64, 64)).contains(Box((4, 8, 8), (4, 16, 16)))
        True
        >>> Box((0, 0, 0), (8, 64, 64)).contains(Box((6, 8, 8), (4, 16, 16)))
        False
        """
        return all(a <= b for a, b in zip(self.offset_zyx, other.offset_zyx, strict=True)) and all(
            a >= b for a, b in zip(self.stop_zyx, other.stop_zyx, strict=True)
        )

    def expand(self, halo_zyx: Sequence[int]) -> Box:
        """Return the box grown by `halo_zyx` voxels on both sides of each axis.

        Examples
        --------
        >>> print(Box((2, 0, 0), (4, 8, 8)).expand((1, 4, 4)))
        [1:7, -4:12, -4:12]
        """
        start = [o - h for o, h in zip(self.offset_zyx, halo_zyx, strict=True)]
        stop = [o + h for o, h in zip(self.stop_zyx, halo_zyx, strict=True)]
        return Box.from_bounds(start, stop)

    def clip(self, shape_zyx: Sequence[int]) -> Box:
        """Return the part inside a volume of `shape_zyx`.

        Raises
        ------
        ValueError
            If nothing of the box lies inside.

        Examples
        --------
        >>> print(Box((1, -4, -4), (6, 16, 16)).clip((16, 64, 64)))
        [1:7, 0:12, 0:12]
        """
        inside = self.intersection(Box((0, 0, 0), zyx(shape_zyx)))
        if inside is None:
            raise ValueError(f"{self} lies outside a volume of shape {tuple(shape_zyx)}")
        return inside

    def relative_to(self, other: Box) -> Box:
        """Return the same box with its offset counted from the offset of `other`.

        Examples
        --------
        Where a patch lies in the larger array that was read around it:

        >>> print(Box((2, 4, 4), (4, 8, 8)).relative_to(Box((1, 0, 0), (6, 16, 16))))
        [1:5, 4:12, 4:12]
        """
        return Box(zyx(a - b for a, b in zip(self.offset_zyx, other.offset_zyx, strict=True)), self.shape_zyx)

    def to_dict(self) -> dict[str, list[int]]:
        """Return a JSON-ready form."""
        return {"offset_zyx": list(self.offset_zyx), "shape_zyx": list(self.shape_zyx)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Box:
        """Read what `to_dict` wrote."""
        return cls(zyx(data["offset_zyx"]), zyx(data["shape_zyx"]))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{o}:{o + s}" for o, s in zip(self.offset_zyx, self.shape_zyx, strict=True)) + "]"


@dataclass(frozen=True, order=True)
class Patch:
    """A box in one volume of the campaign."""

    volume_id: str
    box: Box


def axis_starts(length: int, window: int, stride: int) -> list[int]:
    """Return window starts that cover an axis; the last is moved back so that it ends with the axis.

    Parameters
    ----------
    length, window, stride : int
        In voxels. A window longer than the axis yields the single start 0.

    Examples
    --------
    >>> axis_starts(100, window=32, stride=24)
    [0, 24, 48, 68]
    """
    if window >= length:
        return [0]
    starts = list(range(0, length - window, stride))
    return [*starts, length - window]


def stride_of(window: int, overlap: float) -> int:
    """Return the step between windows that overlap by at least the fraction `overlap`.

    Examples
    --------
    >>> stride_of(96, 0.25), stride_of(96, 0.0)
    (72, 96)
    """
    return max(1, math.floor(window * (1 - overlap) + 1e-9))


def partition(shape_zyx: Sequence[int], block_zyx: Sequence[int]) -> list[Box]:
    """Cut a volume into disjoint blocks, in z, y, x order; the last along an axis may be smaller.

    Examples
    --------
    >>> for block in partition((8, 20, 16), (8, 16, 16)):
    ...     print(block)
    [0:8, 0:16, 0:16]
    [0:8, 16:20, 0:16]
    """
    starts = [range(0, n, b) for n, b in zip(shape_zyx, block_zyx, strict=True)]
    return [Box(zyx(start), zyx(block_zyx)).clip(shape_zyx) for start in itertools.product(*starts)]


def isotropic_shape(spacing_um_zyx: Sequence[float], voxels: int, limit_zyx: Sequence[int]) -> ZYX:
    """Return the box shape that is about isotropic in micrometre, holds about `voxels`, and fits in a volume.

    Parameters
    ----------
    spacing_um_zyx : sequence of float
        Voxel size in micrometre.
    voxels : int
        About how many voxels the box holds; what a thin axis cannot take goes to the others.
    limit_zyx : sequence of int
        Shape of the volume; no axis gets longer.

    Examples
    --------
    Planes five times as far apart as the pixels within them; then too few planes for that:

    >>> isotropic_shape((0.5, 0.1, 0.1), 102_400, limit_zyx=(100, 1000, 1000))
    (16, 80, 80)
    >>> isotropic_shape((0.5, 0.1, 0.1), 102_400, limit_zyx=(8, 1000, 1000))
    (8, 113, 113)
    """
    free = sorted(range(3), key=lambda a: limit_zyx[a] * spacing_um_zyx[a])
    shape = [1, 1, 1]
    remaining = float(voxels)
    while free:
        side = (remaining * math.prod(spacing_um_zyx[a] for a in free)) ** (1 / len(free))
        axis = free.pop(0)
        length = max(1, min(limit_zyx[axis], round(side / spacing_um_zyx[axis])))
        shape[axis] = length
        remaining = max(1.0, remaining / length)
    return zyx(shape)


Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def box_bounds(boxes: Sequence[Box]) -> tuple[Integers, Integers]:
    """Return the starts and stops of boxes: two int64 arrays of shape (n, 3).

    Examples
    --------
    >>> starts, stops = box_bounds([Box((0, 0, 0), (4, 8, 8)), Box((2, 4, 4), (4, 8, 8))])
    >>> stops.tolist()
    [[4, 8, 8], [6, 12, 12]]
    """
    starts = np.array([box.offset_zyx for box in boxes], dtype=np.int64).reshape(-1, 3)
    return starts, starts + np.array([box.shape_zyx for box in boxes], dtype=np.int64).reshape(-1, 3)


def overlapping(starts: Integers, stops: Integers, box: Box) -> npt.NDArray[np.bool_]:
    """Tell which of n boxes, given by int64 arrays (n, 3) of starts and stops, share a voxel with `box`.

    Examples
    --------
    >>> starts = np.array([[0, 0, 0], [0, 0, 8]])
    >>> overlapping(starts, starts + 8, Box((0, 0, 0), (8, 8, 8))).tolist()
    [True, False]
    """
    result: npt.NDArray[np.bool_] = np.all((starts < box.stop_zyx) & (stops > box.offset_zyx), axis=1)
    return result


SAME_SPACING = 0.05
"""Relative difference in spacing below which nothing is resampled."""


def same_spacing(a: Sequence[float], b: Sequence[float]) -> bool:
    """Tell whether two spacings, in one unit, are near enough to spare the resampling.

    Examples
    --------
    >>> same_spacing((0.30, 0.1, 0.1), (0.31, 0.1, 0.1))
    True
    >>> same_spacing((0.30, 0.1, 0.1), (0.33, 0.1, 0.1))
    False
    """
    return all(abs(p - q) <= SAME_SPACING * q for p, q in zip(a, b, strict=True))


def resampled_shape(shape_zyx: Sequence[int], from_um: Sequence[float], to_um: Sequence[float]) -> ZYX:
    """Return the shape that covers the same field with voxels of another size; at least 1 along each axis.

    Examples
    --------
    >>> resampled_shape((50, 400, 400), from_um=(0.5, 0.1, 0.1), to_um=(0.5, 0.2, 0.2))
    (50, 200, 200)
    """
    if same_spacing(from_um, to_um):
        return zyx(shape_zyx)
    return zyx(max(1, round(n * a / b)) for n, a, b in zip(shape_zyx, from_um, to_um, strict=True))


def round_up(shape_zyx: Sequence[int], multiple_zyx: Sequence[int]) -> ZYX:
    """Round each axis up to a multiple.

    Examples
    --------
    >>> round_up((10, 100, 100), (8, 16, 16))
    (16, 112, 112)
    """
    return zyx(math.ceil(n / m) * m for n, m in zip(shape_zyx, multiple_zyx, strict=True))
