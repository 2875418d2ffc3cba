"""nnU-Net's batches on a CPU, keyed by their number, so that they can be prepared beside the steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from nnunetv2.training.dataloading import data_loader

from rescueseg.models.prepared_batches import PreparedBatches
from rescueseg.randomness import seed_numpy

Part = Literal["training", "validation"]
Batch = dict[str, Any]
_OPEN_CASES = 64
"""Cases whose files stay open; their voxels stay compressed on the disk."""


class BatchKey(NamedTuple):
    """Which batch: of training steps or of pseudo-validation, and its number in the whole training, from 0."""

    part: Part
    number: int


class Series:
    """The batches of one part, one after the other, as nnU-Net's loops ask for them.

    Parameters
    ----------
    part : str
        Which part.
    batches : PreparedBatches
        Of both parts.
    """

    def __init__(self, part: Part, batches: PreparedBatches[BatchKey, Batch]) -> None:
        self.part, self.batches, self.number = part, batches, 0

    def __next__(self) -> Batch:
        batch = self.batches.take(BatchKey(self.part, self.number))
        self.number += 1
        return batch


def series_of_batches(
    loaders: dict[Part, Any],
    following: Callable[[BatchKey], BatchKey | None],
    seed_of: Callable[[BatchKey], int],
    *,
    beside: bool,
) -> tuple[Series, Series]:
    """Return the batches of training and of pseudo-validation; both hold the same `batches`, to be closed once.

    nnU-Net's loaders and transforms draw from the global generators of numpy and torch: these are seeded for each batch,
    and belong to whoever prepares batches alone.

    Parameters
    ----------
    loaders : dict
        nnU-Net's own, by part.
    following : callable
        Returns the batch that is asked for after a batch.
    seed_of : callable
        Returns the seed of a batch, below 2³².
    beside : bool
        Whether a thread prepares them.
    """
    # it lists all libraries of the process for each batch, which takes longer than half of the transforms; `PreparedBatches`
    # sees to it that one thread prepares a batch
    data_loader.threadpool_limits = lambda **_: nullcontext()
    for loader in loaders.values():
        dataset = loader.data_loader._data
        dataset.load_case = lru_cache(_OPEN_CASES)(dataset.load_case)

    def prepare(key: BatchKey) -> Batch:
        seed = seed_of(key)
        seed_numpy(seed)
        torch.default_generator.manual_seed(seed)
        batch: Batch = next(loaders[key.part])
        return batch

    batches = PreparedBatches(prepare, following, beside=beside)
    return Series("training", batches), Series("validation", batches)


def following_batch(key: BatchKey, steps: int, epoch_steps: int, validation_steps: int) -> BatchKey | None:
    """Return the batch after a batch: an epoch's steps, its pseudo-validation, the next epoch; None after the last.

    Parameters
    ----------
    key : BatchKey
        A batch.
    steps : int
        Of the whole training; the last epoch may be shorter than the others.
    epoch_steps, validation_steps : int
        Of an epoch.

    Examples
    --------
    >>> key, order = BatchKey("training", 0), []
    >>> while key:
    ...     order.append(f"{key.part[0]}{key.number}")
    ...     key = following_batch(key, steps=5, epoch_steps=3, validation_steps=2)
    >>> order
    ['t0', 't1', 't2', 'v0', 'v1', 't3', 't4', 'v2', 'v3']
    """
    following = key.number + 1
    if key.part == "training":
        epoch_ends = following % epoch_steps == 0 or following == steps
        epoch = key.number // epoch_steps
        return BatchKey("validation", epoch * validation_steps) if epoch_ends else BatchKey("training", following)
    if following % validation_steps:
        return BatchKey("validation", following)
    first = following // validation_steps * epoch_steps
    return BatchKey("training", first) if first < steps else None
