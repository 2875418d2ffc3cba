"""Which places of a campaign's volumes are the same piece of the specimen, whatever the volumes are called.

One image may be in a campaign several times: with another truth or spacing, cropped, mirrored, as one tile of many. How
two volumes lie to each other is a `GridMap`; `SharedPlaces` follows these maps from volume to volume and answers one
question: where do these patches lie in that volume? Everything that keeps places apart asks it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rescueseg.geometry import ZYX, Box, Patch

Triple = tuple[float, float, float]

_MOST_MAPS = 8
"""Ways in which one volume may lie in another: a tile that a file holds twice lies there in two ways."""
_LEAST_COMMON = 4
"""Voxels that two volumes must have in common along each axis (or all that one has), so that it tells how the rest lies:
a plane that is equal in two specimens by accident makes that plane one place, and nothing else."""
_ROUNDING = 1e-6
"""Voxels by which a coordinate may miss a whole number for its rounding errors."""


@dataclass(frozen=True)
class GridMap:
    """Where the voxels of one volume lie in the grid of another: axes exchanged, mirrored, stepped and shifted.

    Parameters
    ----------
    axes : tuple of int
        For each axis z, y, x of the target, the axis of the source that runs along it.
    steps : tuple of float
        For each axis of the target, its voxels per voxel of the source; negative where the source is mirrored.
    start : tuple of float
        For each axis of the target, where the source's first face lies, in voxels.
    tolerance : tuple of float
        For each axis of the target, by how many voxels this may be wrong.

    Examples
    --------
    The source is a crop of 16 voxels along x that begins at voxel 100, mirrored along x:

    >>> crop = GridMap((0, 1, 2), (1.0, 1.0, -1.0), (0.0, 0.0, 116.0))
    >>> print(crop.box(Box((0, 0, 0), (4, 4, 4))))
    [0:4, 0:4, 112:116]
    >>> print(crop.inverse().box(Box((0, 0, 112), (4, 4, 4))))
    [0:4, 0:4, 0:4]
    """

    axes: ZYX
    steps: Triple
    start: Triple
    tolerance: Triple = (0.0, 0.0, 0.0)

    def box(self, box: Box) -> Box:
        """Return where a box of the source lies in the target, rounded outwards by the tolerance; not clipped."""
        start, stop = [], []
        for axis, step, begin, tolerance in zip(self.axes, self.steps, self.start, self.tolerance, strict=True):
            ends = sorted(begin + step * edge for edge in (box.offset_zyx[axis], box.stop_zyx[axis]))
            start.append(math.floor(ends[0] - tolerance + _ROUNDING))
            stop.append(max(start[-1] + 1, math.ceil(ends[1] + tolerance - _ROUNDING)))
        return Box.from_bounds(start, stop)

    def inverse(self) -> GridMap:
        """Return where the target lies in the source."""
        order = [self.axes.index(axis) for axis in range(3)]
        return GridMap(
            (order[0], order[1], order[2]),
            _triple(1 / self.steps[i] for i in order),
            _triple(-self.start[i] / self.steps[i] for i in order),
            _triple(self.tolerance[i] / abs(self.steps[i]) for i in order),
        )

    def after(self, first: GridMap) -> GridMap:
        """Return the map that goes through `first`, then through this one."""
        axes = [first.axes[axis] for axis in self.axes]
        return GridMap(
            (axes[0], axes[1], axes[2]),
            _triple(s * first.steps[a] for s, a in zip(self.steps, self.axes, strict=True)),
            _triple(
                b + s * first.start[a] for b, s, a in zip(self.start, self.steps, self.axes, strict=True)
            ),
            _triple(
                t + abs(s) * first.tolerance[a]
                for t, s, a in zip(self.tolerance, self.steps, self.axes, strict=True)
            ),
        )  # fmt: skip

    def agrees(self, other: GridMap) -> bool:
        """Tell whether two maps say the same within their tolerances."""
        return (
            self.axes == other.axes
            and all(abs(p - q) <= 0.02 * abs(q) for p, q in zip(self.steps, other.steps, strict=True))
            and all(
                abs(p - q) <= a + b + _ROUNDING
                for p, q, a, b in zip(self.start, other.start, self.tolerance, other.tolerance, strict=True)
            )
        )


IDENTITY = GridMap((0, 1, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
"""The map of a volume to itself and to its plain copies."""


def _triple(values: Iterable[float]) -> Triple:
    z, y, x = values
    return z, y, x


class SharedPlaces:
    """Which places of several volumes are one and the same.

    Maps are followed from volume to volume without a cut at their borders, so that two tiles that both lie in a third
    are known to share what the third does not show. Where two volumes have less than `_LEAST_COMMON` voxels in common
    along an axis, only what lies in these is followed to further volumes. A volume that lies in another in more ways than
    can be followed shares all of it.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of each volume.
    links : iterable of (str, str, GridMap)
        Two volumes, and where the second lies in the first. Volumes without a link share nothing.

    Examples
    --------
    "tile" is the half of "stack" from plane 8 on:

    >>> tile = GridMap((0, 1, 2), (1.0, 1.0, 1.0), (8.0, 0.0, 0.0))
    >>> places = SharedPlaces({"stack": (16, 32, 32), "tile": (8, 32, 32)}, [("stack", "tile", tile)])
    >>> patch = Patch("stack", Box((6, 0, 0), (4, 8, 8)))
    >>> [str(box) for box in places.boxes_in("tile", [patch])]
    ['[0:2, 0:8, 0:8]']
    >>> [str(box) for box in places.boxes_in("stack", [patch])]
    ['[6:10, 0:8, 0:8]']
    """

    def __init__(self, shapes: Mapping[str, ZYX], links: Iterable[tuple[str, str, GridMap]] = ()) -> None:
        self.shapes = dict(shapes)
        self._links: dict[str, list[tuple[str, GridMap]]] = {}
        for one, other, other_in_one in links:
            self._links.setdefault(one, []).append((other, other_in_one))
            self._links.setdefault(other, []).append((one, other_in_one.inverse()))
        self._maps: dict[str, dict[str, list[_Way]]] = {}
        self._all_shared: dict[str, set[str]] = {}

    def boxes_in(self, volume_id: str, patches: Iterable[Patch], margin_zyx: Sequence[int] = (0, 0, 0)) -> list[Box]:
        """Return where patches of any volume lie in one volume.

        Parameters
        ----------
        volume_id : str
            The volume asked about.
        patches : iterable of Patch
            Boxes of any volumes.
        margin_zyx : sequence of int
            Voxels added on both sides of each axis, of the patch's volume and of the one asked about, whichever
            reach further.

        Returns
        -------
        list of Box
            In voxels of the volume asked about, in the order of the patches. A patch of that volume itself stands as it
            is; those of others are rounded outwards and cut to the volume, and left out where nothing lies inside.
        """
        maps, boxes = self._maps_to(volume_id), []
        all_of_it = Box((0, 0, 0), self.shapes[volume_id]) if volume_id in self.shapes else None
        for patch in patches:
            if all_of_it is not None and patch.volume_id in self._all_shared[volume_id]:
                boxes.append(all_of_it)
                continue
            for way in maps.get(patch.volume_id, ()):
                if patch.volume_id == volume_id and way.grid == IDENTITY:
                    boxes.append(patch.box.expand(margin_zyx))
                elif all_of_it is not None and (box := way.box(patch.box, margin_zyx)) is not None:
                    inside = box.intersection(all_of_it)
                    boxes += [] if inside is None else [inside]
        return boxes

    def related(self, volume_id: str) -> list[str]:
        """Return the volumes that may share places with a volume, itself first, the others by id."""
        return [volume_id, *sorted(set(self._maps_to(volume_id)) - {volume_id})]

    def groups(self) -> dict[str, str]:
        """Return, by volume id, one volume of those that maps connect.

        Where little is common (see `_LEAST_COMMON`), it does not tell how the rest lies, and connects nothing here.
        """
        root: dict[str, str] = {}
        for name in self.shapes:
            waiting = [] if name in root else [name]
            while waiting:
                here = waiting.pop()
                root[here] = name
                links = self._links.get(here, ())
                waiting += [v for v, grid in links if v not in root and self._thin_part(here, v, grid) is None]
        return root

    def _maps_to(self, volume_id: str) -> dict[str, list[_Way]]:
        """Return the ways from every related volume into one; the most exact come first."""
        if volume_id not in self._maps:
            found: dict[str, list[_Way]] = {}
            crowded: set[str] = set()
            count = itertools.count()
            waiting = [(0.0, next(count), volume_id, _Way(IDENTITY))]
            while waiting:
                _, _, name, way = heapq.heappop(waiting)
                known = found.setdefault(name, [])
                if any(other.covers(way) for other in known):
                    continue
                if len(known) == _MOST_MAPS:
                    if name != volume_id and self._common(volume_id, name, way.grid) is not None:
                        crowded.add(name)
                    continue
                known.append(way)
                for neighbour, next_way in self._ways_on(name, way, direct=len(known) == 1 and name == volume_id):
                    heapq.heappush(waiting, (sum(next_way.grid.tolerance), next(count), neighbour, next_way))
            self._maps[volume_id], self._all_shared[volume_id] = found, crowded
        return self._maps[volume_id]

    def _ways_on(self, name: str, way: _Way, *, direct: bool) -> Iterator[tuple[str, _Way]]:
        """Yield the neighbours of a volume with their ways; `direct` when the volume is the one that is asked about."""
        for neighbour, grid in self._links.get(name, ()):
            thin, onward = self._thin_part(name, neighbour, grid), way.onward
            if thin is not None:
                onward = thin if onward is None else thin.intersection(onward)
                if onward is None:
                    continue
            there = None if onward is None else grid.inverse().box(onward)
            yield neighbour, _Way(way.grid.after(grid), None if direct else there, there)

    def _thin_part(self, name: str, other: str, grid: GridMap) -> Box | None:
        """Return what two volumes have in common where that is thin, in voxels of the first."""
        common = self._common(name, other, grid)
        if common is None:
            return None
        whole = grid.box(Box((0, 0, 0), self.shapes[other]))
        sizes = zip(common.shape_zyx, self.shapes[name], whole.shape_zyx, strict=True)
        return common if any(n < min(_LEAST_COMMON, a, b) for n, a, b in sizes) else None

    def _common(self, name: str, other: str, grid: GridMap) -> Box | None:
        """Return what two volumes have in common, in voxels of the first."""
        whole = grid.box(Box((0, 0, 0), self.shapes[other]))
        return whole.intersection(Box((0, 0, 0), self.shapes[name]))


@dataclass(frozen=True)
class _Way:
    """How one volume lies in another, through any number of others.

    Parameters
    ----------
    grid : GridMap
        From the one to the other.
    within : Box, optional
        Part of the one for which this holds; all of it when omitted.
    onward : Box, optional
        Part of the one which may be followed to further volumes.
    """

    grid: GridMap
    within: Box | None = None
    onward: Box | None = None

    def covers(self, other: _Way) -> bool:
        """Tell whether another way says nothing beyond this one."""
        wide = self.onward is None or (other.onward is not None and self.onward.contains(other.onward))
        return wide and other.grid.agrees(self.grid)

    def box(self, box: Box, margin_zyx: Sequence[int]) -> Box | None:
        """Return where a box lies, with a margin in both volumes; None where this way does not hold."""
        inside, around = (
            b if self.within is None else b.intersection(self.within) for b in (box, box.expand(margin_zyx))
        )
        if around is None:
            return None
        return (
            self.grid.box(around)
            if inside is None
            else _hull(self.grid.box(inside).expand(margin_zyx), self.grid.box(around))
        )


def _hull(one: Box, other: Box) -> Box:
    """Return the smallest box that holds both."""
    start = [min(a, b) for a, b in zip(one.offset_zyx, other.offset_zyx, strict=True)]
    return Box.from_bounds(start, [max(a, b) for a, b in zip(one.stop_zyx, other.stop_zyx, strict=True)])
