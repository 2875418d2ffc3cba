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

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rescueseg.delivery.array_file import read_arrays, write_arrays
from rescueseg.delivery.block_faces import block_index, faces, following, neighbours_across
from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.delivery.label_readers import LabelReader
from rescueseg.geometry import ZYX, Box
from rescueseg.progress import CountProgress
from rescueseg.storage import Storage, digest_json
from rescueseg.voxels.components import Connectivity, Numbers, label_components

if TYPE_CHECKING:
    from distributed import Client

Int64 = npt.NDArray[np.int64]
_RESULT = "components.npz"
_TOGETHER = 1 << 22
"""Voxels that are counted at a time, run by run along x."""


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
        arrays = read_arrays(Storage(self.url), f"lookup/{index:06d}.npz", self.digest)
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
    arrays = read_arrays(storage, _RESULT, key)
    if arrays is None:
        lookup.pieces.run(_label_block, (lookup, reader), client, progress)
        lookup.seams.run(_compare_faces, lookup, client)
        arrays, numbers = _join(lookup)
        storage.remove(_RESULT)  # it may be of other numbers, which are now replaced block by block
        for index, of_block in enumerate(numbers):
            write_arrays(storage, f"lookup/{index:06d}.npz", key, {"numbers": of_block})
        write_arrays(storage, _RESULT, key, arrays)
    return Components(lookup, **arrays)


# passes ---------------------------------------------------------------------------------------------------------------


def _label_block(job: tuple[Lookup, LabelReader], box: Box) -> Arrays:
    """Label a block alone; keep what its components are, and their numbers on its faces."""
    lookup, reader = job
    values = reader.read(box)
    labels, count = label_components(values, lookup.connectivity)
    sizes, at = _sizes_and_first(labels, count)
    place = np.stack(np.unravel_index(at, box.shape_zyx)) + np.asarray(box.offset_zyx)[:, np.newaxis]
    border = np.zeros(count + 1, np.bool_)
    for axis, side in itertools.product(range(3), (0, 1)):
        if (box.offset_zyx[axis], box.stop_zyx[axis])[side] == (0, lookup.shape_zyx[axis])[side]:
            border[labels.take(-side, axis)] = True
    dtype = np.min_scalar_type(count)
    return {
        "sizes": sizes,
        "first": np.ravel_multi_index(tuple(place), lookup.shape_zyx).astype(np.int64),
        "border": border[1:],
        "value": values.reshape(-1)[at],
        **faces("face", labels.astype(dtype)),
    }


def _sizes_and_first(labels: Numbers, count: int) -> tuple[Int64, Int64]:
    """Return the voxels of components 1…n and the place of the first one of each; they are numbered in that order."""
    flat, sizes, first, highest = labels.reshape(-1), np.zeros(count + 1, np.int64), np.zeros(count, np.int64), 0
    step = max(_TOGETHER, count)
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        runs = np.concatenate([[0], np.flatnonzero(part[1:] != part[:-1]) + 1])
        values = part[runs]
        sizes += np.bincount(values, np.diff(runs, append=part.size), count + 1).astype(np.int64)
        tops = np.maximum.accumulate(np.concatenate([[highest], values]))
        new = np.flatnonzero(np.diff(tops) > 0)
        first[values[new] - 1] = runs[new] + start
        highest = int(tops[-1])
    return sizes[1:], first


def _compare_faces(lookup: Lookup, box: Box) -> Arrays:
    """Return which components of a block touch which ones of the blocks that follow it: (neighbour, ours, theirs)."""
    shape, block = lookup.shape_zyx, lookup.block_zyx
    ours = lookup.pieces.finished(block_index(box, shape, block))
    rows = [np.zeros((0, 3), np.int64)]
    for neighbour, direction in following(box, shape, block, lookup.connectivity):
        pairs = _touching(ours, lookup.pieces.finished(neighbour), direction, lookup.connectivity)
        rows.append(np.column_stack([np.full(len(pairs), neighbour, np.int64), pairs]))
    return {"touching": np.concatenate(rows)}


def _touching(ours: Arrays, theirs: Arrays, direction: ZYX, connectivity: Connectivity) -> Int64:
    """Return the pairs of equal labels that touch across the seam in a direction, (pairs, 2)."""
    pairs = []
    for a, b in neighbours_across(ours, theirs, "face", direction, connectivity):
        both = np.flatnonzero((a > 0) & (b > 0))
        a, b = a[both].astype(np.int64), b[both].astype(np.int64)
        new = np.ones(len(a), np.bool_)
        new[1:] = (np.diff(a) != 0) | (np.diff(b) != 0)  # what repeats along a row need not be sorted
        same = new & (ours["value"][a - 1] == theirs["value"][b - 1])
        pairs.append(np.column_stack([a[same], b[same]]))
    return np.unique(np.concatenate(pairs), axis=0)


# joining --------------------------------------------------------------------------------------------------------------


def _join(lookup: Lookup) -> tuple[dict[str, npt.NDArray[Any]], list[Int64]]:
    """Join what touches; return the arrays of `Components`, and the numbers of each block."""
    parts: dict[str, list[npt.NDArray[Any]]] = {"sizes": [], "first": [], "border": [], "value": []}
    for arrays in lookup.pieces.results():
        for name, of_blocks in parts.items():
            of_blocks.append(arrays[name])
    starts = np.concatenate([[0], np.cumsum([len(s) for s in parts["sizes"]])]).astype(np.int64)
    local = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
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
