"""The trial before a CPU computes a network in bfloat16, and its verdict; see `rescueseg.models.precision`."""

from __future__ import annotations

import math

from pydantic import field_validator

from rescueseg.geometry import ZYX
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.unet.plan import NetworkPlan
from rescueseg.records import Record

OUT_OF_MEMORY = ("bad_alloc", "can't allocate memory", "Cannot allocate memory", "MemoryError")
"""What stands in the message of an error where memory ran out."""


class Trial(Record):
    """A network over batches of windows, without what no shape depends on, such as the seed and the schedule."""

    network: NetworkPlan | NnUNetNetwork
    window: ZYX
    """Voxels along the network's own axes."""
    batches: tuple[int, ...]
    """Windows per pass; each size is tried."""
    threads: int
    backward: bool
    """Whether gradients are computed too, with every output that the training of the network supervises."""

    @field_validator("network")
    @classmethod
    def _unify_dropout(cls, network: NetworkPlan | NnUNetNetwork) -> NetworkPlan | NnUNetNetwork:
        """Return the network with one rate of dropout for all: which channels are dropped changes no shape."""
        return network.model_copy(update={"dropout": 0.25 if network.dropout else 0.0})

    @property
    def voxels(self) -> int:
        """Voxels of all batches."""
        return sum(self.batches) * math.prod(self.window)


class Verdict(Record):
    """The result of a trial."""

    holds: bool
    reason: str = ""
    """Why bfloat16 is not used, for people; empty where it is."""
    final: bool = True
    """Whether plan and processor alone decided it; if not, it is tried again by the next process."""
