"""The store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from rescueseg.campaign import Campaign
from rescueseg.errors import (
    ConfigError,
    LeaseExpiredError,
    NotYourLeaseError,
    QueueError,
    StorageError,
    TicketNotFoundError,
)
from rescueseg.geometry import Box
from rescueseg.queue import database as database_module
from rescueseg.queue.records import Filters, Lease, NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import StoredLabels, Work
from rescueseg.records import LabelReference, Purpose

LABEL = LabelReference(path="annotations/t/d.npz", digest="d" * 64)
BOX = Box((1, 2, 3), (4, 5, 6))


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[QueueStore]:
    opened = QueueStore(database_url, clock=clock)
    opened.migrate()
    yield opened
    opened.close()


def ticket(name: str, score: float = 0.0, purpose: Purpose = "pool", **more: object) -> NewTicket:
    return NewTicket.model_validate(
        {"ticket_id": name, "volume_id": "v", "box": BOX, "score": score, "purpose": purpose, **more}
    )


def claim(store: QueueStore, who: str = "anna", **options: object) -> Lease:
    lease = store.leases.claim(who, 60, **options)  # type: ignore[arg-type]
    assert lease is not None
    return lease


def submit(store: QueueStore, lease: Lease, **options: bool) -> None:
    store.leases.submit(lease.lease_id, lease.annotator, StoredLabels(LABEL, 3), Work("test", 1.5), **options)


def test_adding_is_idempotent_by_id(store: QueueStore) -> None:
    assert store.tickets.add([ticket("a"), ticket("b")]) == 2
    assert store.tickets.add([ticket("b", score=9.0), ticket("c")]) == 1
    assert [(t.ticket_id, t.score, t.box) for t in store.views.tickets()] == [
        ("a", 0.0, BOX),
        ("b", 0.0, BOX),
        ("c", 0.0, BOX),
    ]
    assert store.views.counts()["queued"] == 3


def test_an_id_for_another_patch_is_refused_and_nothing_is_added(store: QueueStore) -> None:
    store.tickets.add([ticket("b")])
    with pytest.raises(QueueError, match="another id"):
        store.tickets.add([ticket("a"), ticket("b", volume_id="w")])
    assert [t.ticket_id for t in store.views.tickets()] == ["b"]


def test_order_of_claims(store: QueueStore) -> None:
    store.tickets.add(
        [
            ticket("pool-low", 1.0), ticket("pool-high", 2.0), ticket("pool-b", 2.0), ticket("test", 0.0, "test"),
            ticket("validation", 0.5, "validation"), ticket("poolA", 2.0), ticket("urgent", -1.0, priority=1),
        ]
    )  # fmt: skip
    order = [claim(store, f"p{i}").ticket_id for i in range(7)]
    assert order == ["urgent", "validation", "test", "pool-b", "pool-high", "poolA", "pool-low"]
    assert store.leases.claim("late", 60) is None


def test_claims_by_purpose_and_by_id(store: QueueStore) -> None:
    store.tickets.add([ticket("a", 5.0), ticket("b"), ticket("t", purpose="test")])
    assert claim(store, filters=Filters(purpose="pool")).ticket_id == "a"
    assert claim(store, ticket_id="b").ticket_id == "b"
    with pytest.raises(QueueError, match="leased by 'anna'"):
        store.leases.claim("bob", 60, ticket_id="b")
    with pytest.raises(TicketNotFoundError):
        store.leases.claim("bob", 60, ticket_id="nope")
    assert store.views.counts() == {
        "queued": 1, "leased": 2, "submitted": 0, "accepted": 0, "rejected": 0, "skipped": 0
    }  # fmt: skip


def test_resume_returns_the_lease_that_is_held(store: QueueStore, clock: Clock) -> None:
    store.tickets.add([ticket("a"), ticket("b")])
    first = claim(store)
    clock.advance(1)
    assert claim(store, resume=True) == first
    assert claim(store).ticket_id == "b"
    assert claim(store, resume=True, ticket_id="b").ticket_id == "b"
    assert [lease.ticket_id for lease in store.views.leases("anna")] == ["a", "b"]
    assert store.views.leases("bob") == []


def test_an_expired_lease_goes_to_the_next_and_its_holder_is_told(store: QueueStore, clock: Clock) -> None:
    store.tickets.add([ticket("a")])
    lease = claim(store)
    clock.advance(59)
    assert store.leases.claim("bob", 60) is None
    clock.advance(1)
    with pytest.raises(LeaseExpiredError):
        submit(store, lease)
    assert store.views.annotations("a") == []
    assert claim(store, "bob").ticket_id == "a"
    with pytest.raises(LeaseExpiredError):
        store.leases.heartbeat(lease.lease_id, "anna")
    assert [e.event for e in store.views.history("a")] == ["created", "claimed", "expired", "claimed"]


def test_heartbeat_keeps_a_lease(store: QueueStore, clock: Clock) -> None:
    store.tickets.add([ticket("a")])
    lease = claim(store)
    for _ in range(3):
        clock.advance(40)
        assert store.leases.heartbeat(lease.lease_id, "anna").expires_at == clock.now + timedelta(seconds=60)
    assert store.leases.expire() == 0
    assert store.leases.expire(clock.now + timedelta(seconds=60)) == 1
    assert store.views.counts()["queued"] == 1


def test_submit_accept_and_what_a_snapshot_gets(store: QueueStore) -> None:
    store.tickets.add([ticket("b", stratum="dense", generation=2), ticket("a"), ticket("v", purpose="validation")])
    for _ in range(3):
        submit(store, claim(store))
    assert store.views.accepted() == []
    for name in "bav":
        first = store.reviews.accept(name, "lead")
        assert store.reviews.accept(name, "lead") == first
    found = store.views.accepted()
    assert [a.ticket_id for a in found] == ["a", "b"]
    assert (found[1].stratum, found[1].generation, found[1].box, found[1].label) == ("dense", 2, BOX, LABEL)
    assert (found[1].annotator, found[1].seconds, found[1].voxels_corrected, found[1].version) == ("anna", 1.5, 3, 1)
    assert [a.ticket_id for a in store.views.accepted("validation")] == ["v"]
    assert len(store.views.accepted(None)) == 3


def test_submit_twice_is_one_annotation(store: QueueStore, clock: Clock) -> None:
    store.tickets.add([ticket("a")])
    lease = claim(store)
    first = store.leases.submit(lease.lease_id, "anna", StoredLabels(LABEL, 3), Work("test", 1.0), accept=True)
    trail = store.views.history("a")
    clock.advance(1000)
    assert store.leases.submit(lease.lease_id, "anna", StoredLabels(LABEL, 3), Work("test", 9.0), accept=True) == first
    assert store.views.history("a") == trail
    assert [e.event for e in trail] == ["created", "claimed", "submitted", "accepted"]
    other = StoredLabels(LABEL.model_copy(update={"digest": "e" * 64}), 3)
    with pytest.raises(QueueError):
        store.leases.submit(lease.lease_id, "anna", other, Work("test", 1.0))
    with pytest.raises(QueueError):
        store.reviews.reject("a", "lead", "too late")
    assert store.views.annotations("a") == [first]


def test_a_rejected_mask_is_where_the_next_annotator_starts(store: QueueStore) -> None:
    store.tickets.add([ticket("a", prefill="generations/0000/prefills/a.npz")])
    lease = claim(store)
    assert lease.start == "generations/0000/prefills/a.npz"
    submit(store, lease)
    store.reviews.reject("a", "lead", "misses one")
    store.reviews.reject("a", "lead", "misses one")
    again = claim(store, "bob")
    assert (again.start, again.previous, again.comment) == (LABEL.path, LABEL, "misses one")
    submit(store, again, accept=True)
    assert [(a.version, a.verdict, a.annotator) for a in store.views.annotations("a")] == [
        (1, "rejected", "anna"),
        (2, "accepted", "bob"),
    ]
    assert [a.version for a in store.views.accepted()] == [2]


def test_skip_and_release(store: QueueStore) -> None:
    store.tickets.add([ticket("a"), ticket("b")])
    skipped, released = claim(store), claim(store)
    with pytest.raises(QueueError, match="reason"):
        store.leases.skip(skipped.lease_id, "anna", "  ")
    with pytest.raises(NotYourLeaseError):
        store.leases.release(released.lease_id, "bob")
    for _ in range(2):
        store.leases.skip(skipped.lease_id, "anna", "blurred")
        store.leases.release(released.lease_id, "anna")
    assert claim(store, "bob").ticket_id == "b"
    assert store.leases.claim("carl", 60) is None
    assert store.views.history("a")[-1].details == {"reason": "blurred"}
    assert claim(store, "carl", ticket_id="a").ticket_id == "a"


def test_filters(store: QueueStore) -> None:
    store.tickets.add([ticket("a", generation=1), ticket("b", generation=2), ticket("c", purpose="test", generation=1)])
    claim(store, ticket_id="a")
    assert [t.ticket_id for t in store.views.tickets(status="queued")] == ["b", "c"]
    assert [t.ticket_id for t in store.views.tickets(purpose="pool")] == ["a", "b"]
    with pytest.raises(TicketNotFoundError):
        store.views.history("nope")
    with pytest.raises(TicketNotFoundError):
        store.views.lease("nope")


@pytest.mark.parametrize(("who", "seconds"), [("", 60), ("x" * 200, 60), ("anna", 0), ("anna", float("nan"))])
def test_nonsense_claims_are_refused(store: QueueStore, who: str, seconds: float) -> None:
    with pytest.raises(QueueError):
        store.leases.claim(who, seconds)


def test_ledger_of_generations(store: QueueStore) -> None:
    assert store.ledger.last_generation() is None
    store.tickets.add([ticket("a"), ticket("b"), ticket("c"), ticket("d"), ticket("v", purpose="validation")])
    for _ in range(3):
        submit(store, claim(store), accept=True)
    assert store.ledger.accepted_since_last_generation() == 2, "holdout patches do not count"
    with pytest.raises(QueueError, match="0 is next"):
        store.ledger.begin_generation(1, 2)
    first = store.ledger.begin_generation(0, 2)
    assert store.ledger.begin_generation(0, 99) == first, "the first count stays"
    assert store.ledger.accepted_since_last_generation() == 0
    with pytest.raises(QueueError, match="generation 0 has not finished"):
        store.ledger.begin_generation(1, 2)
    finished = store.ledger.finish_generation(0)
    assert store.ledger.finish_generation(0) == finished
    assert finished.finished_at is not None
    submit(store, claim(store), accept=True)
    assert store.ledger.accepted_since_last_generation() == 1
    store.ledger.begin_generation(1, 3)
    submit(store, claim(store), accept=True)
    assert store.ledger.accepted_since_last_generation() == 1
    store.ledger.count_accepted(1, 4)
    assert store.ledger.accepted_since_last_generation() == 0, "the snapshot was made after it"
    assert store.ledger.last_generation() == store.ledger.begin_generation(1, 3)
    with pytest.raises(QueueError, match="has not begun"):
        store.ledger.finish_generation(2)


def test_a_lock_is_held_by_one(store: QueueStore, clock: Clock) -> None:
    with store.ledger.lock("campaign", "first", 30) as held:
        with pytest.raises(QueueError, match="'first'"), store.ledger.lock("campaign", "second", 30):
            pytest.fail("two holders")
        with store.ledger.lock("other", "second", 30):
            held.check()
    with store.ledger.lock("campaign", "second", 30):
        clock.advance(31)
        with store.ledger.lock("campaign", "third", 30):
            pass


def test_a_lock_that_was_taken_over_says_so(store: QueueStore, clock: Clock) -> None:
    with store.ledger.lock("campaign", "first", 0.2) as held:
        clock.advance(10)
        with store.ledger.lock("campaign", "second", 30):
            assert held.lost.wait(5)
            with pytest.raises(QueueError, match="lost"):
                held.check()


def test_a_lock_is_kept_up(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    with store.ledger.lock("campaign", "first", 0.6) as held:
        assert not held.lost.wait(1.5)
        with pytest.raises(QueueError), store.ledger.lock("campaign", "second", 1):
            pytest.fail("two holders")
    assert threading.active_count() >= 1
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lock_that_nobody_keeps_up_says_so(store: QueueStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.ledger.lock("generation", "one", ttl_seconds=0.4) as held:
        with monkeypatch.context() as broken:

            def fail() -> None:
                raise RuntimeError("nobody thought of this")

            broken.setattr(store.database, "write", fail)
            assert held.lost.wait(10)
        with pytest.raises(QueueError, match="lost"):
            held.check()


def test_readers_do_not_wait_for_a_writer(store: QueueStore) -> None:
    store.tickets.add([ticket("a")])
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE tickets SET priority = 3")
        assert store.views.tickets()[0].priority == 0
    assert store.views.tickets()[0].priority == 3


def test_open_queue_survives_a_moved_campaign(campaign: Campaign, tmp_path: Path) -> None:
    open_queue(campaign).tickets.add([ticket("a")])
    moved = tmp_path / "moved by 20%20 + ü # ?x=y"
    Path(campaign.url).rename(moved)
    assert [t.ticket_id for t in open_queue(Campaign.open(str(moved))).views.tickets()] == ["a"]


# where a queue cannot live -------------------------------------------------------------------------------------------


def test_a_missing_or_empty_database_is_not_made_by_looking_at_it(database_url: str) -> None:
    store = QueueStore(database_url)
    with pytest.raises(StorageError, match=r"missing.*Restore it from a backup"):
        store.views.counts()
    with pytest.raises(StorageError, match=r"missing.*Restore it from a backup"):
        store.tickets.add([ticket("a")])
    if store.database.file is None:
        return
    assert not store.database.file.exists()
    store.database.file.touch()
    with pytest.raises(StorageError, match=r"missing.*Restore it from a backup"):
        store.views.counts()
    assert store.database.version() is None


@pytest.mark.parametrize("url", ["nonsense", "nosuchdb://x/y"])
def test_an_unusable_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="database_url"):
        QueueStore(url)


def test_memory_is_no_place_for_a_queue() -> None:
    with pytest.raises(QueueError, match="lost"):
        QueueStore("sqlite://")


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")]
    monkeypatch.setattr(database_module.psutil, "disk_partitions", lambda all: mounts)
    with pytest.raises(QueueError, match=r"network file system \(nfs4\).*PostgreSQL"):
        QueueStore(f"sqlite:///{tmp_path}/deep/queue.db")
    QueueStore(f"sqlite:///{tmp_path.parent}/queue.db")


def test_a_database_out_of_reach_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open"):
        QueueStore(f"sqlite:///{tmp_path}/missing/queue.db").migrate()
    pytest.importorskip("psycopg2")
    with pytest.raises(StorageError, match="reachable"):
        QueueStore(f"postgresql+psycopg2://x@/y?host={tmp_path}").migrate()


def test_a_full_disk_is_a_storage_error_and_changes_nothing(tmp_path: Path) -> None:
    store = QueueStore(f"sqlite:///{tmp_path}/queue.db")
    store.migrate()
    store.tickets.add([ticket("a")])

    def fill(connection: sqlite3.Connection, _record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    database_module.sa.event.listen(store.database.engine, "connect", fill)
    with pytest.raises(StorageError, match=r"full.*nothing was changed"):
        store.tickets.add([ticket(f"t{i:04d}", reason="x" * 500) for i in range(400)])
    assert [t.ticket_id for t in QueueStore(f"sqlite:///{tmp_path}/queue.db").views.tickets()] == ["a"]


def test_a_damaged_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="damaged"):
        QueueStore(f"sqlite:///{tmp_path}/queue.db").migrate()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE tickets SET updated_at = '2026-01-01 10\x1a13'", "Invalid isoformat"),
        ("UPDATE tickets SET status = 'queuee'", "status is 'queuee'"),
        ("UPDATE tickets SET reason = CAST(x'ef62' AS TEXT)", "UTF-8"),
    ],
)
def test_a_value_that_nobody_stored_is_damage(tmp_path: Path, statement: str, said: str) -> None:
    """As after a flipped bit in a row, which SQLite does not notice."""
    store = QueueStore(f"sqlite:///{tmp_path}/queue.db")
    store.migrate()
    store.tickets.add([ticket("a")])
    with store.database.write() as connection:
        connection.exec_driver_sql(statement)
    for look in (store.views.tickets, lambda: store.views.ticket("a")):
        with pytest.raises(StorageError, match=f"{said}.*Restore it from a backup") as caught:
            look()
        assert caught.value.where == str(tmp_path / "queue.db")
        assert "\n" not in caught.value.what


@pytest.mark.parametrize("kind", ["OperationalError", "InterfaceError"])
def test_a_driver_that_says_nothing_is_a_storage_error(store: QueueStore, kind: str) -> None:
    class SilentError(Exception):
        pass

    with pytest.raises(StorageError, match="Silent"), store.database.errors():
        raise getattr(sa.exc, kind)("SELECT 1", {}, SilentError())
