"""Many processes at one queue, some of them killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.errors import QueueError
from rescueseg.geometry import Box
from rescueseg.queue import leases as leases_module
from rescueseg.queue.leases import Leases
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import StoredLabels, Work
from rescueseg.records import LabelReference

FORK = multiprocessing.get_context("fork")
WORKERS, TICKETS = 5, 40


def tickets(count: int) -> list[NewTicket]:
    return [NewTicket(ticket_id=f"t{i:03d}", volume_id="v", box=Box((i, 0, 0), (1, 2, 2))) for i in range(count)]


def in_processes(target: Callable[..., None], *arguments: tuple[Any, ...]) -> list[int | None]:
    processes = [FORK.Process(target=target, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _work(url: str, name: str, start: Any, found: Any) -> None:
    """Claim until nothing is left; hand in every second ticket, give back or drop none."""
    store = QueueStore(url)
    start.wait()
    while (lease := store.leases.claim(name, 600)) is not None:
        found.put((lease.ticket_id, lease.lease_id))
        label = LabelReference(path="p", digest=f"{name}{lease.ticket_id}")
        store.leases.submit(lease.lease_id, name, StoredLabels(label, 0), Work("test", 1.0), accept=True)
    store.close()


def test_no_ticket_is_given_twice(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    store.tickets.add(tickets(TICKETS))
    store.close()
    found, start = FORK.SimpleQueue(), FORK.Event()
    start.set()
    codes = in_processes(_work, *((database_url, f"person {i}", start, found) for i in range(WORKERS)))
    assert codes == [0] * WORKERS
    given = Counter()
    while not found.empty():
        given[found.get()[0]] += 1
    assert given == Counter(t.ticket_id for t in tickets(TICKETS))
    assert len(store.views.accepted()) == TICKETS
    for ticket in store.views.tickets():
        assert [e.event for e in store.views.history(ticket.ticket_id)] == [
            "created",
            "claimed",
            "submitted",
            "accepted",
        ]
    store.close()


def _claim_one(url: str, name: str, start: Any, found: Any) -> None:
    store = QueueStore(url)
    start.wait()
    lease = store.leases.claim(name, 600)
    found.put(lease.annotator if lease else "")
    store.close()


def test_one_ticket_goes_to_one_of_many(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    store.tickets.add(tickets(1))
    store.close()
    found, start = FORK.SimpleQueue(), FORK.Event()
    processes = [FORK.Process(target=_claim_one, args=(database_url, f"p{i}", start, found)) for i in range(WORKERS)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    answers = [found.get() for _ in range(WORKERS)]
    assert answers.count("") == WORKERS - 1
    assert [lease.annotator for lease in store.views.leases()] == [a for a in answers if a]
    store.close()


def _add(url: str, start: Any) -> None:
    store = QueueStore(url)
    start.wait()
    store.tickets.add(tickets(20))
    store.close()


def test_the_same_tickets_added_at_once_are_there_once(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    store.close()
    start = FORK.Event()
    start.set()
    assert in_processes(_add, *((database_url, start) for _ in range(4))) == [0] * 4
    assert len(store.views.tickets()) == 20
    assert all([e.event for e in store.views.history(t.ticket_id)] == ["created"] for t in store.views.tickets())
    store.close()


# kills ---------------------------------------------------------------------------------------------------------------


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _submit_and_die(url: str, lease_id: str, where: str) -> None:
    campaign = Campaign.open(url)
    store = open_queue(campaign)
    if where == "before the row":
        Leases.submit = _die  # type: ignore[method-assign]
    elif where == "before the commit":
        apply = leases_module.apply

        def apply_and_die(*arguments: Any) -> None:
            apply(*arguments)
            _die()

        leases_module.apply = apply_and_die
    elif where == "before the file":
        type(campaign.storage).write_bytes = _die  # type: ignore[method-assign]
    _hand_in(campaign, store, lease_id)
    _die()


def _hand_in(campaign: Campaign, store: QueueStore, lease_id: str) -> Any:
    return submit_labels(
        campaign, store, store.views.lease(lease_id), "anna", np.ones((1, 2, 2), np.uint8), Work("test", 1.0)
    )


@pytest.mark.parametrize("where", ["before the file", "before the row", "before the commit", "after the commit"])
def test_killed_in_the_middle_of_a_submit_it_is_simply_repeated(campaign: Campaign, where: str) -> None:
    store = open_queue(campaign)
    store.tickets.add(tickets(1))
    lease = store.leases.claim("anna", 600)
    assert lease is not None
    assert in_processes(_submit_and_die, (campaign.url, lease.lease_id, where)) == [-signal.SIGKILL]
    stored = list(Path(campaign.url, "annotations").rglob("*.npz"))
    assert len(stored) == (where != "before the file")
    assert store.views.counts()["accepted"] == (where == "after the commit")
    record = _hand_in(campaign, store, lease.lease_id)
    assert store.views.counts()["accepted"] == 1
    assert campaign.storage.read_array(record.labels).tolist() == np.ones((1, 2, 2)).tolist()
    assert len(list(Path(campaign.url, "annotations").rglob("*.npz"))) == 1
    assert [e.event for e in store.views.history("t000")] == ["created", "claimed", "submitted", "accepted"]


def _hold(url: str, ready: Any) -> None:
    with QueueStore(url).ledger.lock("campaign", "victim", 3600):
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free_at_once(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    store.close()
    ready = FORK.Event()
    process = FORK.Process(target=_hold, args=(database_url, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(QueueError, match="'victim'"), store.ledger.lock("campaign", "heir", 60):
        pytest.fail("two holders")
    process.kill()
    process.join()
    with store.ledger.lock("campaign", "heir", 60) as held:
        held.check()
    store.close()
