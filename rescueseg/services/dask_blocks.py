"""One function over the blocks of a volume: on a Dask cluster or in this process, whichever block is done first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import KilledWorker, as_completed

from rescueseg.errors import InferenceError, ServiceError

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")
_WAITING = 32
"""How many blocks are handed to a cluster beyond two for each of its threads: what waits takes memory in this process."""


def call(client: Client | None, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function on a worker, so that this process need load no model; here when `client` is None."""
    if client is None:
        return function(*args)
    with cluster_errors():
        result: Result = client.submit(function, *args, pure=False).result()
    return result


def each_block(
    client: Client | None, function: Callable[..., Result], args: Sequence[Any], indices: Sequence[int]
) -> Iterator[tuple[int, Result]]:
    """Yield (index, ``function(*args, index)``) as blocks finish, in any order.

    Parameters
    ----------
    client : distributed.Client or None
        Where they are computed; one after the other in this process when None.
    function : callable
        One that workers can import. What it is given goes to the worker, so it takes references, not arrays.
    args : sequence
        What every call gets before its index.
    indices : sequence of int
        The blocks to be done.

    Raises
    ------
    InferenceError
        If a block killed every worker that it was given to.
    ServiceError
        If the cluster went away.
    """
    if client is None:
        for index in indices:
            yield index, function(*args, index)
        return
    waiting, index_of = iter(indices), dict[Any, int]()
    running = as_completed(loop=client.loop, with_results=True)  # type: ignore[no-untyped-call]
    try:
        with cluster_errors():
            while True:
                for index in itertools.islice(waiting, max(0, _room(client) - len(index_of))):
                    future = client.submit(function, *args, index, pure=False)
                    index_of[future.key] = index
                    running.add(future)  # type: ignore[no-untyped-call]
                if not index_of:
                    return
                future, result = next(running)
                if future.cancelled():
                    raise CancelledError
                yield index_of.pop(future.key), result
    finally:
        client.cancel(list(running.futures))  # type: ignore[no-untyped-call]


def _room(client: Client) -> int:
    """Return how many blocks may be with the cluster at a time."""
    return _WAITING + 2 * sum(client.nthreads().values())  # type: ignore[no-untyped-call]


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Turn Dask's own errors into ours; those raised by a block pass through."""
    try:
        yield
    except KilledWorker as error:
        raise InferenceError(
            "a block killed every worker it was given to, most likely for want of memory",
            where=str(error.task),
            todo="Lower inference.block_voxels or raise cluster.memory, then run again: finished blocks are kept",
        ) from error
    except CancelledError as error:
        raise ServiceError(
            "the Dask cluster went away", todo="Start it again and rerun: finished blocks are kept"
        ) from error
