"""Where the passes of one step of a delivery keep their markers, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.geometry import ZYX, Box
from rescueseg.progress import CountProgress
from rescueseg.storage import Storage, digest_json

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")


@dataclass(frozen=True)
class Step:
    """One step of a delivery: passes that have a folder for their markers, a digest and a cluster in common.

    Parameters
    ----------
    url : str
        Folder of the markers.
    digest : str
        Of all that the step is given.
    client : distributed.Client, optional
        Where blocks are computed; in this process when omitted.
    progress : callable, optional
        Called with (blocks done, blocks in all) of each pass.
    """

    url: str
    digest: str
    client: Client | None = None
    progress: CountProgress | None = None

    @property
    def storage(self) -> Storage:
        """The folder of the markers."""
        return Storage(self.url)

    def block_pass(self, name: str, shape_zyx: ZYX, block_zyx: ZYX) -> BlockPass:
        """Return one pass of the step; its name is a folder below the step's."""
        digest = digest_json([self.digest, name, list(shape_zyx), list(block_zyx)])
        return BlockPass(self.storage.url_of(name), digest, shape_zyx, block_zyx)

    def run(self, block_pass: BlockPass, function: Callable[[Job, Box], Arrays], job: Job) -> BlockPass:
        """Do the blocks of a pass that are not done yet, and return the pass; raises as `BlockPass.run`."""
        block_pass.run(function, job, self.client, self.progress)
        return block_pass
