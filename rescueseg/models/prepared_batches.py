"""Batches of a training that are prepared beside its steps: the next one is read and augmented while a step computes.

A batch is a function of its key alone, so it is the same whether it is prepared beside the steps or between them, by
one thread of the processor either way: with several, sums over many voxels would round differently. A process of its own
would gain little: numpy, torch and the decompression let go of Python's lock for most of the time that a batch takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

Key = TypeVar("Key")
Batch = TypeVar("Batch")


def leaves_core_idle(device: torch.device) -> bool:
    """Tell whether a batch can be prepared beside a step: a GPU computes that, or its threads leave a core idle.

    Where all cores are at work already, one thread more would wait for the others, and they for it.
    """
    return device.type != "cpu" or torch.get_num_threads() < _cores()


def _cores() -> int:
    """Return the cores that this process may use; where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PreparedBatches(Generic[Key, Batch]):
    """The batches of a training in their order, one ahead of the step that computes.

    What preparing a batch raises is raised where the batch is asked for. Leaving the context ends the thread; it ends
    with its process too, however that ends.

    Parameters
    ----------
    prepare : callable
        Returns the batch of a key. No generator that it draws from is drawn from by a step.
    following : callable
        Returns the key that is asked for after a key, None after the last.
    beside : bool
        Whether a thread prepares them; if not, each is prepared when it is asked for.

    Examples
    --------
    >>> with PreparedBatches(lambda step: step**2, lambda step: step + 1 if step < 3 else None, beside=True) as batches:
    ...     [batches.take(step) for step in (1, 2, 3)]
    [1, 4, 9]
    """

    def __init__(
        self, prepare: Callable[[Key], Batch], following: Callable[[Key], Key | None], *, beside: bool
    ) -> None:
        self._prepare, self._following = prepare, following
        self._thread = (
            ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,)) if beside else None
        )
        self._next: tuple[Key, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the batch that nobody asked for, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def take(self, key: Key) -> Batch:
        """Return the batch of a key, and begin the following one; any other order costs time alone."""
        if self._thread is None:
            with _one_thread():
                return self._prepare(key)
        if self._next is None or self._next[0] != key:
            self._next = key, self._thread.submit(self._prepare, key)
        batch = self._next[1].result()
        following = self._following(key)
        self._next = None if following is None else (following, self._thread.submit(self._prepare, following))
        return batch


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
