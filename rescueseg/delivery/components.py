"""Connected components of a whole volume, in bounded memory; numbered as if it had been labelled in one piece.

A first pass labels every block alone and keeps the numbers on its faces, a second one compares the faces of neighbours, a
union-find joins what touches, and the components are numbered by their first voxels: blocks and workers do not show.

::

    pieces/000012.npz    components of a block alone, and the numbers on its faces
    seams/000012.npz     which of them touch which of the blocks that follow
    lookup/000012.npz    number in the volume of each component of the block
    components.npz       all components: written last
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.label_readers import LabelReader
from rescueseg.geometry import ZYX, Box, zyx
from rescueseg.progress import CountProgress
from rescueseg.storage import Storage, digest_json
from rescueseg.voxels.components import Connectivity, Numbers, label_components

if TYPE_CHECKING:
    from distributed import Client

Int64 = npt.NDArray[np.int64]
_RESULT = "components.npz"
_TOGETHER = 1 << 22
"""Voxels that are counted at a time."""
_STEPS: dict[Connectivity, int] = {6: 1, 18: 2, 26: 3}
"""Along how many axes neighbours may differ."""


@dataclass(frozen=True)
class Lookup:
    """Which numbers the components of a block have in the volume; it can be pickled and is small, so blocks get it.

    Parameters
    ----------
    url : str
        Folder of the passes.
    digest : str
        Of what the components were made of.
    shape_zyx, block_zyx : tuple of int
        Of the volume, and of a block.
    connectivity : {6, 18, 26}
        Which voxels are neighbours.
    """

    url: str
    digest: str
    shape_zyx: ZYX
    block_zyx: ZYX
    connectivity: Connectivity

    @property
    def pieces(self) -> BlockPass:
        """The pass that labels every block alone."""
        return self._pass("pieces")

    @property
    def seams(self) -> BlockPass:
        """The pass that compares the faces of neighbours."""
        return self._pass("seams")

    def _pass(self, name: str) -> BlockPass:
        return BlockPass(Storage(self.url).url_of(name), self.digest, self.shape_zyx, self.block_zyx)

    def of_block(self, index: int) -> Int64:
        """Return the number of each local component 0…m of a block, as `label_components` numbers them there."""
        arrays = _load(Storage(self.url), f"lookup/{index:06d}.npz", self.digest)
        if arrays is None:
            raise RuntimeError(f"block {index} of {self.url} has no numbers")
        return arrays["numbers"].astype(np.int64)

    def read(self, reader: LabelReader, box: Box) -> Int64:
        """Return the number of every voxel of a block, zyx; 0 outside of all components.

        Parameters
        ----------
        reader : LabelReader
            The one that the components were made of.
        box : Box
            A block.
        """
        labels, _ = label_components(reader.read(box), self.connectivity)
        return self.of_block(block_index(box, self.shape_zyx, self.block_zyx))[labels]


@dataclass(frozen=True)
class Components:
    """The components of a volume, 1…n by their first voxels in z, y, x order; entry 0 of each array is the background.

    Parameters
    ----------
    lookup : Lookup
        Their numbers in each block.
    sizes : ndarray of int64, (n + 1,)
        Voxels.
    first : ndarray of int64, (n + 1,)
        Place of the first voxel in the flattened volume; -1 for the background.
    border : ndarray of bool, (n + 1,)
        Whether it touches a face of the volume.
    value : ndarray of integers, (n + 1,)
        The label that it has.
    """

    lookup: Lookup
    sizes: Int64
    first: Int64
    border: npt.NDArray[np.bool_]
    value: npt.NDArray[np.integer[Any]]

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return len(self.sizes) - 1

    def of_block(self, index: int) -> Int64:
        """Return the number of each local component 0…m of a block, as `label_components` numbers them there."""
        return self.lookup.of_block(index)


def find_components(
    block_pass_url: str,
    digest: str,
    reader: LabelReader,
    shape_zyx: ZYX,
    block_zyx: ZYX,
    connectivity: Connectivity,
    client: Client | None = None,
    progress: CountProgress | None = None,
) -> Components:
    """Find the connected components of a volume, or of each of its labels; labels that touch stay apart.

    Parameters
    ----------
    block_pass_url : str
        Folder of the passes; a rerun goes on where it was killed.
    digest : str
        Of what the reader reads.
    reader : LabelReader
        The labels.
    shape_zyx, block_zyx : tuple of int
        Of the volume, and of a block.
    connectivity : {6, 18, 26}
        Which voxels are neighbours.
    client : distributed.Client, optional
        Where blocks are computed; in this process when omitted.
    progress : callable, optional
        Called with (blocks done, blocks in all) of the pass that reads the volume.

    Returns
    -------
    Components
        As `label_components` numbers them in the whole volume. Memory grows with their number, not with the voxels.

    References
    ----------
    Wu, Otoo & Suzuki 2005, https://www.osti.gov/servlets/purl/929013.
    """
    key = digest_json([digest, shape_zyx, block_zyx, connectivity])
    lookup = Lookup(block_pass_url, key, shape_zyx, block_zyx, connectivity)
    storage = Storage(block_pass_url)
    arrays = _load(storage, _RESULT, key)
    if arrays is None:
        lookup.pieces.run(_label_block, (lookup, reader), client, progress)
        lookup.seams.run(_compare_faces, lookup, client)
        arrays, numbers = _join(lookup)
        for index, of_block in enumerate(numbers):
            _save(storage, f"lookup/{index:06d}.npz", key, {"numbers": of_block})
        _save(storage, _RESULT, key, arrays)
    return Components(lookup, **arrays)


def block_index(box: Box, shape_zyx: ZYX, block_zyx: ZYX) -> int:
    """Return which block of a volume a box is, counted in z, y, x order.

    Examples
    --------
    >>> block_index(Box((0, 16, 0), (8, 4, 16)), shape_zyx=(8, 20, 16), block_zyx=(8, 16, 16))
    1
    """
    place = zyx(o // b for o, b in zip(box.offset_zyx, block_zyx, strict=True))
    return int(np.ravel_multi_index(place, _grid(shape_zyx, block_zyx)))


def _grid(shape_zyx: ZYX, block_zyx: ZYX) -> ZYX:
    return zyx(-(-n // b) for n, b in zip(shape_zyx, block_zyx, strict=True))


# passes ---------------------------------------------------------------------------------------------------------------


def _label_block(job: tuple[Lookup, LabelReader], box: Box) -> Arrays:
    """Label a block alone; keep what its components are, and their numbers on its faces."""
    lookup, reader = job
    values = reader.read(box)
    labels, count = label_components(values, lookup.connectivity)
    at = _first_voxels(labels, count)
    place = np.stack(np.unravel_index(at, box.shape_zyx)) + np.asarray(box.offset_zyx)[:, np.newaxis]
    border = np.zeros(count + 1, np.bool_)
    for axis, side in itertools.product(range(3), (0, 1)):
        if (box.offset_zyx[axis], box.stop_zyx[axis])[side] == (0, lookup.shape_zyx[axis])[side]:
            border[labels.take(-side, axis)] = True
    dtype = np.min_scalar_type(count)
    return {
        "sizes": _sizes(labels, count)[1:],
        "first": np.ravel_multi_index(tuple(place), lookup.shape_zyx).astype(np.int64),
        "border": border[1:],
        "value": values.reshape(-1)[at],
        **{_face(a, side): labels.take(-side, a).astype(dtype) for a in range(3) for side in (0, 1)},
    }


def _face(axis: int, side: int) -> str:
    """Return the name of a face: side 0 comes first along the axis, 1 last."""
    return f"face_{'zyx'[axis]}{side}"


def _sizes(labels: Numbers, count: int) -> Int64:
    flat, sizes = labels.reshape(-1), np.zeros(count + 1, np.int64)
    step = max(_TOGETHER, count)
    for start in range(0, flat.size, step):
        sizes += np.bincount(flat[start : start + step], minlength=count + 1)
    return sizes


def _first_voxels(labels: Numbers, count: int) -> Int64:
    """Return the place of the first voxel of components 1…n, which are numbered in that order."""
    flat, places, highest = labels.reshape(-1), np.zeros(count, np.int64), 0
    for start in range(0, flat.size, _TOGETHER):
        part = np.maximum.accumulate(flat[start : start + _TOGETHER])
        rises = np.flatnonzero(np.diff(part, prepend=highest) > 0)
        rises = rises[part[rises] > highest]
        places[part[rises] - 1] = rises + start
        highest = max(highest, int(part[-1]))
    return places


def _compare_faces(lookup: Lookup, box: Box) -> Arrays:
    """Return which components of a block touch which ones of the blocks that follow it: (neighbour, ours, theirs)."""
    pieces = lookup.pieces
    ours = pieces.result(block_index(box, lookup.shape_zyx, lookup.block_zyx))
    grid = _grid(lookup.shape_zyx, lookup.block_zyx)
    here = zyx(o // b for o, b in zip(box.offset_zyx, lookup.block_zyx, strict=True))
    rows = [np.zeros((0, 3), np.int64)]
    for direction in _directions(lookup.connectivity):
        there = zyx(a + d for a, d in zip(here, direction, strict=True))
        if all(0 <= t < n for t, n in zip(there, grid, strict=True)):
            neighbour = int(np.ravel_multi_index(there, grid))
            theirs = pieces.result(neighbour)
            if ours is None or theirs is None:
                raise RuntimeError(f"block {neighbour} of {pieces.url} or the one before it is not done")
            pairs = _touching(ours, theirs, direction, lookup.connectivity)
            rows.append(np.column_stack([np.full(len(pairs), neighbour, np.int64), pairs]))
    return {"touching": np.concatenate(rows)}


def _directions(connectivity: Connectivity) -> Iterator[ZYX]:
    """Yield the steps to neighbours that follow in z, y, x order."""
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0) and sum(map(abs, step)) <= _STEPS[connectivity]:
            yield zyx(step)


def _touching(ours: Arrays, theirs: Arrays, direction: ZYX, connectivity: Connectivity) -> Int64:
    """Return the pairs of equal labels that touch across the seam in a direction, (pairs, 2)."""
    across = next(axis for axis in range(3) if direction[axis])
    rest = [axis for axis in range(3) if axis != across]
    pairs = []
    along = [[0] if direction[axis] else [-1, 0, 1] for axis in rest]
    face_a, face_b = ours[_face(across, 1)], theirs[_face(across, 0)]
    for shift in itertools.product(*along):
        if sum(map(abs, direction)) + sum(map(abs, shift)) > _STEPS[connectivity]:
            continue
        cuts = [_cut(direction[axis], move) for axis, move in zip(rest, shift, strict=True)]
        a, b = face_a[tuple(c[0] for c in cuts)].reshape(-1), face_b[tuple(c[1] for c in cuts)].reshape(-1)
        both = np.flatnonzero((a > 0) & (b > 0))
        a, b = a[both].astype(np.int64), b[both].astype(np.int64)
        new = np.ones(len(a), np.bool_)
        new[1:] = (np.diff(a) != 0) | (np.diff(b) != 0)  # what repeats along a row need not be sorted
        same = new & (ours["value"][a - 1] == theirs["value"][b - 1])
        pairs.append(np.column_stack([a[same], b[same]]))
    return np.unique(np.concatenate(pairs), axis=0)


def _cut(direction: int, move: int) -> tuple[slice, slice]:
    """Return the parts of our and of their face, along one axis, that lie at each other when theirs is moved."""
    if direction:
        return (slice(-1, None), slice(0, 1)) if direction > 0 else (slice(0, 1), slice(-1, None))
    return slice(max(0, -move), -move if move > 0 else None), slice(max(0, move), move if move < 0 else None)


# joining --------------------------------------------------------------------------------------------------------------


def _join(lookup: Lookup) -> tuple[dict[str, npt.NDArray[Any]], list[Int64]]:
    """Join what touches; return the arrays of `Components`, and the numbers of each block."""
    parts: dict[str, list[npt.NDArray[Any]]] = {"sizes": [], "first": [], "border": [], "value": []}
    for arrays in lookup.pieces.results():
        for name, of_blocks in parts.items():
            of_blocks.append(arrays[name])
    starts = np.concatenate([[0], np.cumsum([len(s) for s in parts["sizes"]])]).astype(np.int64)
    local = {name: np.concatenate(of_blocks) for name, of_blocks in parts.items()}
    edges = [np.zeros((0, 2), np.int64)]
    for start, arrays in zip(starts, lookup.seams.results(), strict=False):
        neighbour, ours, theirs = arrays["touching"].T
        edges.append(np.column_stack([start + ours - 1, starts[neighbour] + theirs - 1]))
    numbers, arrays = _number(np.concatenate(edges), local)
    background = np.zeros(1, np.int64)
    return arrays, [np.concatenate([background, numbers[a:b]]) for a, b in itertools.pairwise(starts)]


def _number(edges: Int64, local: Arrays) -> tuple[Int64, dict[str, npt.NDArray[Any]]]:
    """Return the number in the volume of each piece of a block, and the arrays of `Components`."""
    n_pieces = len(local["sizes"])
    graph = coo_array((np.ones(len(edges), np.bool_), (edges[:, 0], edges[:, 1])), shape=(n_pieces, n_pieces))
    count, group = connected_components(graph, directed=False) if n_pieces else (0, np.zeros(0, np.int64))
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, group, local["first"])
    rank = np.empty(count, np.int64)
    rank[np.argsort(first)] = np.arange(1, count + 1)
    numbers = rank[group].astype(np.int64)
    arrays = {name: np.zeros(count + 1, local[name].dtype) for name in ("sizes", "first", "border", "value")}
    np.add.at(arrays["sizes"], numbers, local["sizes"])
    np.logical_or.at(arrays["border"], numbers, local["border"])
    arrays["value"][numbers] = local["value"]
    arrays["first"][0] = -1
    arrays["first"][1:] = np.sort(first)
    return numbers, arrays


def _save(storage: Storage, name: str, digest: str, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, digest=np.asarray(digest))
    storage.write_bytes(name, buffer.getvalue())


def _load(storage: Storage, name: str, digest: str) -> dict[str, npt.NDArray[Any]] | None:
    """Return what `_save` wrote, None where it did not or of something else."""
    if not storage.exists(name):
        return None
    with np.load(io.BytesIO(storage.read_bytes(name)), allow_pickle=False) as file:
        arrays = dict(file)
    return arrays if str(arrays.pop("digest")) == digest else None
