"""What trainings of several networks share: seeds, the model to start from, and a fixed way of computing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from rescueseg.models.files import model_errors, read_warm_start
from rescueseg.models.threads import set_threads
from rescueseg.models.trainer import WEIGHTS_FILE
from rescueseg.models.weights import split_members
from rescueseg.randomness import keyed_generator


class StoredPlan(Protocol):
    """What the plan of every model is that is made of networks: a record in its description."""

    @property
    def members(self) -> int:
        """Networks of the ensemble."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Return the plan that was stored."""


Plan = TypeVar("Plan", bound=StoredPlan)


def member_seed(seed: int, member: int) -> int:
    """Return the seed of one network of an ensemble; the first has the request's own."""
    return int(keyed_generator(seed, "member", member).integers(2**31)) if member else seed


def earlier_plan(folder: Path | None, kind: type[Plan]) -> tuple[Plan, str] | None:
    """Return the plan and the digest of the model to start from, None where no folder is named.

    Raises
    ------
    TrainingError
        If there is no finished model, its description is damaged, or it is of another family.
    """
    model = read_warm_start(folder)
    if model is None:
        return None
    with model_errors(str(folder)):
        return kind.model_validate(model.description["plan"]), model.digest


def earlier_weights(folder: Path | None, member: int) -> dict[str, Tensor] | None:
    """Return the weights to start from; networks beyond the earlier model's begin again with its first."""
    model = read_warm_start(folder)
    if folder is None or model is None:
        return None
    with model_errors(str(folder)):
        members = int(model.description["plan"].get("members", 1))
        return split_members(safetensors.torch.load_file(folder / WEIGHTS_FILE), members)[member % members]


@contextmanager
def fixed_execution(threads: int) -> Iterator[None]:
    """Fix the number of threads and cuDNN's choice of algorithms, then restore both."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    set_threads(threads)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.deterministic = deterministic
