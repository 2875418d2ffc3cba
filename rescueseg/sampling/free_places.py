"""Choosing patches of which no two share a voxel: they are taken one after the other, in an order that the caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import Box, Integers, Patch, box_bounds, overlapping, zyx
from rescueseg.shared_places import SharedPlaces

Bounds = tuple[Integers, Integers]
"""Where boxes start and stop: two int64 arrays of shape (n, 3)."""
Row = tuple[str, int]
"""A volume and the number of a box there."""


class FreePlaces:
    """Boxes of several volumes, and which of them share no voxel with a patch that was taken.

    Parameters
    ----------
    bounds : mapping of str to pair of ndarray
        Starts and stops of each volume's boxes; see `bounds_by_volume` and `rescueseg.geometry.box_bounds`.
    places : SharedPlaces, optional
        Which places of the volumes are the same; without it each volume is on its own.
    gap_zyx : tuple of int
        Distance that is kept from a patch that was taken, in voxels.

    Attributes
    ----------
    free : dict of str to ndarray of bool, shape (n,)
        Of each volume's boxes, those that may still be taken.

    Examples
    --------
    Three boxes of 16 rows, one every 8 rows:

    >>> starts = np.array([[0, 0, 0], [0, 8, 0], [0, 16, 0]])
    >>> grid = FreePlaces({"v": (starts, starts + (8, 16, 16))})
    >>> grid.take_first([("v", 0), ("v", 1), ("v", 2)], count=3)
    [0, 2]
    """

    def __init__(
        self,
        bounds: Mapping[str, Bounds],
        places: SharedPlaces | None = None,
        gap_zyx: Sequence[int] = (0, 0, 0),
    ) -> None:
        self.bounds, self.gap_zyx = bounds, gap_zyx
        self.places = SharedPlaces({}) if places is None else places
        self.free: dict[str, npt.NDArray[np.bool_]] = {v: np.ones(len(s), dtype=bool) for v, (s, _) in bounds.items()}

    def take(self, patch: Patch) -> None:
        """Take a patch: boxes that share a voxel with it, in its volume or in one that shows the same, are free no more."""
        for name in self.places.related(patch.volume_id):
            if name in self.bounds:
                for box in self.places.boxes_in(name, [patch], self.gap_zyx):
                    self.free[name] &= ~overlapping(*self.bounds[name], box)

    def take_first(self, ordered: Iterable[Row], count: int) -> list[int]:
        """Take the first boxes of an order that are free.

        Parameters
        ----------
        ordered : iterable of (str, int)
            Volume and number of each box; not read further than it must be.
        count : int
            How many at most.

        Returns
        -------
        list of int
            Their positions in `ordered`, from 0 on.
        """
        taken: list[int] = []
        for position, (name, row) in enumerate(ordered):
            if len(taken) >= count:
                break
            if self.free[name][row]:
                starts, stops = self.bounds[name]
                self.take(Patch(name, Box.from_bounds(zyx(starts[row]), zyx(stops[row]))))
                taken.append(position)
        return taken


def bounds_by_volume(patches: Sequence[Patch]) -> tuple[dict[str, Bounds], list[Row]]:
    """Sort patches by volume for `FreePlaces`; return their bounds, and of each patch its volume and number there.

    Examples
    --------
    >>> box = Box((0, 0, 0), (8, 8, 8))
    >>> bounds_by_volume([Patch("a", box), Patch("b", box), Patch("a", box)])[1]
    [('a', 0), ('b', 0), ('a', 1)]
    """
    boxes: dict[str, list[Box]] = {}
    rows: list[Row] = []
    for patch in patches:
        own = boxes.setdefault(patch.volume_id, [])
        rows.append((patch.volume_id, len(own)))
        own.append(patch.box)
    return {name: box_bounds(own) for name, own in boxes.items()}, rows


def choose_apart(ordered: Iterable[Patch], count: int, places: SharedPlaces | None = None) -> list[Patch]:
    """Return the first `count` patches, in the order of `ordered`, of which no two share a voxel.

    Parameters
    ----------
    ordered : iterable of Patch
        The best first.
    count : int
        How many at most.
    places : SharedPlaces, optional
        Which places of the volumes are the same; without it each volume is on its own.

    Examples
    --------
    >>> ordered = [Patch("v", Box((0, y, 0), (8, 16, 16))) for y in (0, 8, 16)]
    >>> [str(patch.box) for patch in choose_apart(ordered, 2)]
    ['[0:8, 0:16, 0:16]', '[0:8, 16:32, 0:16]']
    """
    patches = list(ordered)
    bounds, rows = bounds_by_volume(patches)
    return [patches[i] for i in FreePlaces(bounds, places).take_first(rows, count)]
