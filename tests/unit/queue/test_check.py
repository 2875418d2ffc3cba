"""Every kind of damage to a queue is found, and a healthy one is called healthy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import tifffile
from sqlalchemy.engine import Connection

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.annotation.label_files import ticket_id
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import QueueError, StorageError
from rescueseg.geometry import Box, Patch
from rescueseg.queue.check import check_queue
from rescueseg.queue.database import Database
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.queue.tables import metadata
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.stages.snapshot import make_snapshot
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

SHAPE = (2, 4, 4)
WORK = Work("test", 1.0)


def hand_in(campaign: Campaign, store: QueueStore, who: str) -> str:
    lease = store.leases.claim(who, 60)
    assert lease is not None
    submit_labels(campaign, store, lease, who, np.full(SHAPE, len(who) % 2, np.uint8), WORK)
    return lease.ticket.ticket_id


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Campaign:
    """A campaign with tickets in every state and a generation trained on the accepted ones."""
    settings = {"name": "liver", "classes": ["o"], "database_url": database_url, "annotation": {"review": True}}
    campaign = Campaign.create(str(tmp_path / "liver"), check_config(settings))
    store = open_queue(campaign)
    tifffile.imwrite(tmp_path / "v.tif", np.random.default_rng(0).integers(0, 999, (8, 32, 64)).astype(np.uint16))
    import_volume(campaign, VolumeImport(str(tmp_path / "v.tif"), volume_id="v", spacing=(1, 1, 1)))
    held = HoldoutBox(volume_id="v", box=Box((4, 16, 0), (4, 8, 8)), part="test", stratum="dense")
    campaign.freeze_holdout(Holdout(boxes=(held,), guard_zyx=(1, 2, 2)))
    patches = [Patch("v", Box((0, 0, 8 * number), SHAPE)) for number in range(6)]
    names = [ticket_id("liver", 0, patch, "pool") for patch in patches]
    store.tickets.add(
        [
            NewTicket(ticket_id=name, volume_id="v", box=patch.box, score=-number)
            for number, (name, patch) in enumerate(zip(names, patches, strict=True))
        ]
    )
    for who in ("anna", "bob"):
        store.reviews.accept(hand_in(campaign, store, who), "eva")
    store.reviews.reject(hand_in(campaign, store, "anna"), "eva", "again", 1e6)
    hand_in(campaign, store, "bob")
    assert store.leases.claim("cleo", 1e6) is not None
    store.tickets.withdraw(names[5], "eva", "no use")
    store.ledger.begin_generation(0, 1)
    make_snapshot(campaign, 0, store)
    store.ledger.finish_generation(0)
    counts = {"queued": 1, "leased": 1, "submitted": 1, "accepted": 2, "rejected": 0, "skipped": 1}
    assert store.views.counts() == counts
    store.close()
    return campaign


def found(campaign: Campaign) -> str:
    errors = check_queue(campaign)
    assert all(isinstance(error, StorageError) and error.where for error in errors)
    return "; ".join(error.what for error in errors)


@contextmanager
def unguarded(campaign: Campaign) -> Iterator[Connection]:
    """Open a transaction in which nobody looks at the references between rows."""
    database = Database(campaign.database_url)
    with database.engine.begin() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET session_replication_role = replica")
        else:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("BEGIN")
        yield connection
    database.engine.dispose()


def change(campaign: Campaign, statement: str) -> None:
    """Alter rows as no program of ours would."""
    with unguarded(campaign) as connection:
        assert connection.execute(sa.text(statement)).rowcount > 0


def test_a_healthy_queue_is_called_healthy(filled: Campaign) -> None:
    seen: list[tuple[int, int]] = []
    assert check_queue(filled, lambda *counts: seen.append(counts)) == []
    assert seen == [(number, 4) for number in (1, 2, 3, 4)]


def test_a_campaign_without_a_queue_yet_has_nothing_damaged(tmp_path: Path, database_url: str) -> None:
    config = check_config({"name": "liver", "classes": ["o"], "database_url": database_url})
    campaign = Campaign.create(str(tmp_path / "liver"), config)
    assert check_queue(campaign) == []
    assert not campaign.storage.exists("identity.json")
    assert Database(database_url).version() is None


ONE = "(SELECT MIN(annotation_id) FROM annotations WHERE verdict = 'accepted')"
ALTERATIONS = {
    "UPDATE tickets SET status = 'queued' WHERE status = 'accepted'": "by its leases and versions accepted",
    "UPDATE tickets SET status = 'accepted' WHERE status = 'submitted'": "by its history submitted",
    "UPDATE tickets SET status = 'queuec' WHERE status = 'queued'": "its status is 'queuec'",
    "UPDATE tickets SET offset_x = offset_x + 1 WHERE status = 'accepted'": "not that of its volume, box and purpose",
    "UPDATE tickets SET volume_id = 'w' WHERE status = 'queued'": "not that of its volume, box and purpose",
    "UPDATE tickets SET purpose = 'test' WHERE status = 'queued'": "not that of its volume, box and purpose",
    "UPDATE tickets SET generation = 1 WHERE status = 'queued'": "not that of its volume, box and purpose",
    "UPDATE tickets SET annotators = 2 WHERE status = 'queued'": "1 assignments for 2 annotators",
    "UPDATE annotations SET verdict = 'rejected' WHERE verdict = 'accepted'": "by its leases and versions queued",
    "UPDATE annotations SET verdict = 'acceptee' WHERE verdict = 'accepted'": "is 'acceptee'",
    "UPDATE annotations SET version = 3 WHERE verdict = 'accepted'": "its versions are 3",
    "UPDATE annotations SET labels_digest = 'd' WHERE verdict = 'accepted'": "not that of its labels",
    f"UPDATE annotations SET annotation_id = 'x' WHERE annotation_id = {ONE}": "not that of its labels",
    f"DELETE FROM annotations WHERE annotation_id = {ONE}": "by its leases and versions queued",
    "UPDATE annotations SET annotator = 'bub' WHERE annotator = 'bob'": "differ in who worked how long",
    "UPDATE annotations SET seconds = seconds + 1": "differ in who worked how long",
    "UPDATE leases SET ended = 'released' WHERE ended IS NULL": "it is leased, and by its leases and versions queued",
    "UPDATE leases SET assignment_id = 99 WHERE ended IS NULL": "rows of leases name assignments that are not there",
    "UPDATE leases SET assignment_id = 1 WHERE ended IS NULL": "assignment of another ticket",
    "DELETE FROM leases WHERE ended = 'submitted'": "rows of annotations name leases that are not there",
    "DELETE FROM assignments": "name assignments that are not there",
    "DELETE FROM tickets WHERE status = 'accepted'": "name tickets that are not there",
    "DELETE FROM audit": "by its history was never made",
    "DELETE FROM audit WHERE event = 'accepted'": "by its history submitted",
    "UPDATE generations SET accepted_count = 3": "counted 2 accepted patches, not 3",
    "UPDATE generations SET generation = 1": "the generations are 1",
    "DELETE FROM generations": "generation 0 is not in it",
    "UPDATE annotations SET labels = 'annotations/x/y.npz' WHERE verdict = 'submitted'": "the file is missing",
}


def rows_of(campaign: Campaign) -> dict[str, list[dict[str, object]]]:
    with Database(campaign.database_url).engine.connect() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in metadata.sorted_tables
        }


def put_back(campaign: Campaign, rows: dict[str, list[dict[str, object]]]) -> None:
    with unguarded(campaign) as connection:
        for table in metadata.sorted_tables:
            connection.execute(sa.delete(table))
            if rows[table.name]:
                connection.execute(sa.insert(table), rows[table.name])


def test_every_altered_row_is_found(filled: Campaign) -> None:
    rows, missed = rows_of(filled), {}
    for statement, expected in ALTERATIONS.items():
        change(filled, statement)
        if expected not in (what := found(filled)):
            missed[statement] = what
        put_back(filled, rows)
    assert missed == {}
    assert check_queue(filled) == []


def test_an_older_database_is_found_by_the_snapshot(filled: Campaign) -> None:
    """As after a restore of the database alone: the ticket waits again, and what was trained on is unknown."""
    change(
        filled, "DELETE FROM annotations WHERE ticket_id IN (SELECT ticket_id FROM tickets WHERE status = 'accepted')"
    )
    change(filled, "DELETE FROM audit WHERE event IN ('submitted', 'accepted', 'claimed')")
    change(filled, "DELETE FROM leases")
    change(filled, "UPDATE tickets SET status = 'queued' WHERE status = 'accepted'")
    change(filled, "DELETE FROM annotations")
    change(filled, "UPDATE tickets SET status = 'queued' WHERE status IN ('submitted', 'leased')")
    change(filled, "UPDATE audit SET after = 'queued' WHERE event = 'created'")
    assert "2 versions are not in it that generations/0000/snapshot.json names" in found(filled)


def test_every_damaged_label_array_is_found(filled: Campaign) -> None:
    with Database(filled.database_url).read() as connection:
        paths = connection.execute(sa.text("SELECT labels FROM annotations ORDER BY verdict")).scalars().all()
    assert len(paths) == 4, "two accepted, a rejected and a submitted one"
    for path, how in itertools.product(paths, ("missing", "empty", "cut", "other labels")):
        content = filled.storage.read_bytes(path)
        filled.storage.remove(path)
        if how == "other labels":
            filled.storage.write_array(path, np.full(SHAPE, 2, np.uint8))
        elif how != "missing":
            filled.storage.write_bytes(path, content[: 0 if how == "empty" else len(content) // 2])
        [error] = check_queue(filled)
        assert error.where == filled.storage.path(path), how
        filled.storage.write_bytes(path, content)
    assert check_queue(filled) == []


def test_a_lost_queue_is_said_so(filled: Campaign) -> None:
    database = Database(filled.database_url)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rescueseg_schema SET version_num = '0002'")
    with pytest.raises(QueueError, match="rescueseg upgrade"):
        check_queue(filled)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE rescueseg_schema")
    with pytest.raises(StorageError, match="missing or empty"):
        check_queue(filled)


def test_labels_that_were_never_handed_in_are_only_mentioned(filled: Campaign) -> None:
    filled.storage.write_array("annotations/t/0.npz", np.zeros(SHAPE, np.uint8))
    assert check_queue(filled) == []
