"""A pass over the blocks of a volume, in bounded memory, that goes on where it was killed.

A block's function reads what it needs by URL, may write voxels of its own block into arrays, and returns a few small arrays.
These are the block's completion marker: they are written last, and hold the digest of what the pass was given. Blocks do not
share a shard, so none waits for another, and doing one twice does no harm.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from rescueseg.geometry import ZYX, Box, partition
from rescueseg.progress import CountProgress
from rescueseg.services.dask_blocks import each_block
from rescueseg.storage import Storage

if TYPE_CHECKING:
    from distributed import Client

Arrays = Mapping[str, npt.NDArray[Any]]
"""What a block returns: small arrays by name."""
Job = TypeVar("Job")
_DIGEST = "digest of the pass"


@dataclass(frozen=True)
class BlockPass:
    """One pass over the blocks of a volume.

    Parameters
    ----------
    url : str
        Folder of its markers.
    digest : str
        Of everything that its results depend on, the blocks and all passes before it included: markers with another digest
        count as none.
    shape_zyx, block_zyx : tuple of int
        Of the volume, and of a block.
    """

    url: str
    digest: str
    shape_zyx: ZYX
    block_zyx: ZYX

    @cached_property
    def blocks(self) -> list[Box]:
        """The blocks in z, y, x order."""
        return partition(self.shape_zyx, self.block_zyx)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the blocks out: with each block a worker gets this, and with 512 of them the list is most of what is sent."""
        return {key: value for key, value in self.__dict__.items() if key != "blocks"}

    def run(
        self,
        function: Callable[[Job, Box], Arrays],
        job: Job,
        client: Client | None = None,
        progress: CountProgress | None = None,
    ) -> None:
        """Do the blocks that are not done yet.

        Parameters
        ----------
        function : callable
            Given (job, block), returns small arrays. Workers import it.
        job : object
            References, no arrays; it can be pickled.
        client : distributed.Client, optional
            Where blocks are computed; in this process when omitted.
        progress : callable, optional
            Called with (blocks done, blocks in all).

        Raises
        ------
        InferenceError
            If a block kills every worker it is given to.
        ServiceError
            If the Dask cluster goes away.
        StorageError
            If the disk is full.
        """
        todo = [index for index in range(len(self.blocks)) if self.result(index) is None]
        finished, total = len(self.blocks) - len(todo), len(self.blocks)
        report = progress or _silent
        report(finished, total)
        for _ in each_block(client, _do_block, (self, function, job), todo):
            finished += 1
            report(finished, total)

    def result(self, index: int) -> dict[str, npt.NDArray[Any]] | None:
        """Return the arrays of a block, None where it is not done."""
        storage = Storage(self.url)
        name = _name(index)
        if not storage.exists(name):
            return None
        try:
            with np.load(io.BytesIO(storage.read_bytes(name)), allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, KeyError, EOFError, BadZipFile):  # cut off: the block is done again
            return None
        digest = arrays.pop(_DIGEST, None)
        return arrays if digest is not None and str(digest) == self.digest else None

    def finished(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of a block that must be done."""
        arrays = self.result(index)
        if arrays is None:
            raise RuntimeError(f"block {index} of {self.url} is not done")
        return arrays

    def results(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield the arrays of all blocks in their order; all must be done."""
        for index in range(len(self.blocks)):
            yield self.finished(index)


def _do_block(block_pass: BlockPass, function: Callable[[Job, Box], Arrays], job: Job, index: int) -> None:
    arrays = function(job, block_pass.blocks[index])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{**arrays, _DIGEST: np.asarray(block_pass.digest)})
    Storage(block_pass.url).write_bytes(_name(index), buffer.getvalue())


def _name(index: int) -> str:
    return f"{index:06d}.npz"


def _silent(_done: int, _total: int) -> None:
    """Report nothing."""
