"""Blocks on a cluster: all of them, some at a time, and errors that reach the caller."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from distributed import Client, Future, LocalCluster

from rescueseg.errors import InferenceError, ServiceError
from rescueseg.services import dask_blocks
from rescueseg.services.dask_blocks import each_block


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        yield client


def square(offset: int, index: int) -> int:
    return offset + index * index


def fails_at_seven(index: int) -> int:
    if index == 7:
        raise InferenceError("the seventh block")
    return index


def waits(index: int) -> int:
    time.sleep(0.05)
    return index


@pytest.mark.parametrize("count", [0, 1, 200])
def test_every_block_is_done_once(client: Client, count: int) -> None:
    expected = {n: 5 + n * n for n in range(count)}
    pairs = list(each_block(client, square, (5,), range(count)))
    assert len(pairs) == count
    assert dict(pairs) == expected == dict(each_block(None, square, (5,), range(count)))


def test_no_more_blocks_are_with_the_cluster_than_its_threads_need(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_blocks, "_WAITING", 3)
    with_cluster = [len(client.futures) for _ in each_block(client, waits, (), range(60))]
    assert len(with_cluster) == 60
    assert max(with_cluster) <= 3 + 2 * 2 + 1  # the last one is that of the block that was just given
    assert min(with_cluster[:40]) >= 3


def test_an_error_of_a_block_reaches_the_caller_and_the_rest_is_left(client: Client) -> None:
    with pytest.raises(InferenceError, match="the seventh block"):
        list(each_block(client, fails_at_seven, (), range(500)))
    for _ in range(100):
        if not client.processing(None) or not any(client.processing(None).values()):  # type: ignore[no-untyped-call]
            break
        time.sleep(0.05)
    assert not any(client.processing(None).values())  # type: ignore[no-untyped-call]


def test_blocks_that_somebody_cancels_are_no_results(client: Client) -> None:
    blocks = each_block(client, waits, (), range(60))
    next(blocks)
    client.cancel([Future(key, client) for key in client.futures])  # type: ignore[no-untyped-call]
    with pytest.raises(ServiceError, match="went away"):
        list(blocks)
