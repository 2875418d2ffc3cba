"""Reads a campaign's whole queue and says what is not what was stored: rows, label arrays, and what other records know."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.label_arrays import read_label_array
from rescueseg.campaign.layout import GENERATION
from rescueseg.campaign.stage_results import EFFORT, SNAPSHOT
from rescueseg.errors import StorageError
from rescueseg.progress import CountProgress
from rescueseg.queue.database import Database, damage
from rescueseg.queue.events import LeaseState
from rescueseg.queue.execute import annotation_state, box_of
from rescueseg.queue.owner import check_owner
from rescueseg.queue.records import STATUSES, Verdict
from rescueseg.queue.store import is_new, require_this_version
from rescueseg.queue.tables import annotation_table, assignments, audit, generations, leases, metadata, owner, tickets
from rescueseg.queue.ticket_state import TicketState, annotation_id
from rescueseg.records import LabelReference, Snapshot
from rescueseg.storage import Storage, digest_json

_MESSAGES = 20
"""Of SQLite, at most."""
_OWN_ID = re.compile(r"(pool|validation|test)-\d{4}-[0-9a-f]{16}")
"""A ticket's id that was made from its patch, see `rescueseg.annotation.label_files.ticket_id`."""


def check_queue(campaign: Campaign, progress: CountProgress | None = None) -> list[StorageError]:
    """Return what is lost or altered in a campaign's queue, label arrays included.

    The database's pages, whose queue it is, the references between its tables, each ticket's status against its leases,
    versions and history, ids that were made from what they name, each version's label arrays against their digests, and
    the generations against their folders and snapshots.

    Parameters
    ----------
    campaign : Campaign
        The campaign; nothing is written but its place, where it was moved.
    progress : callable, optional
        Called with how many versions' labels were read, and how many there are.

    Raises
    ------
    QueueError, StorageError
        If the queue cannot be opened at all: it is lost, another campaign's, or of another version.
    """
    database = Database(campaign.database_url)
    if is_new(campaign.storage) and database.version() is None:
        return []
    require_this_version(database, campaign.url)
    check_owner(database, campaign.storage, campaign.config.name)
    counted, errors = _counted_generations(campaign.generations())
    with database.read() as connection:
        errors += [damage(database.where, what) for what in _rows(connection, is_sqlite=database.is_sqlite)]
        if errors:
            return errors
        errors += [damage(database.where, what) for what in _ledger(connection, counted)]
        versions = connection.execute(sa.select(annotation_table)).mappings().all()
    for number, version in enumerate(versions):
        errors += _labels(campaign.storage, version)
        if progress is not None:
            progress(number + 1, len(versions))
    return errors


# rows ----------------------------------------------------------------------------------------------------------------


def check_rows(database: Database) -> list[StorageError]:
    """Return what does not fit together in the database itself; no file is read."""
    with database.read() as connection:
        return [damage(database.where, what) for what in _rows(connection, is_sqlite=database.is_sqlite)]


def _rows(connection: Connection, *, is_sqlite: bool) -> Iterator[str]:
    if is_sqlite:
        answers = connection.exec_driver_sql(f"PRAGMA integrity_check({_MESSAGES})").scalars().all()
        if answers != ["ok"]:
            yield from (f"the database is damaged: {answer}" for answer in answers)
            return
    yield from _references(connection)
    name = connection.execute(sa.select(owner.c.campaign)).scalar()
    for ticket in _tickets(connection):
        yield from (f"ticket {ticket.state.ticket_id}: {what}" for what in _ticket(ticket, str(name)))


def _references(connection: Connection) -> Iterator[str]:
    """Yield rows that name a row of another table which is not there."""
    for table in metadata.sorted_tables:
        for key in table.foreign_keys:
            parent = key.column.table.alias()
            other = parent.c[key.column.name]
            query = (
                sa.select(sa.func.count())
                .select_from(table.outerjoin(parent, key.parent == other))
                .where(key.parent.is_not(None), other.is_(None))
            )
            if lost := connection.execute(query).scalar():
                yield f"{lost} rows of {table.name} name {key.column.table.name} that are not there"


@dataclass(frozen=True)
class _Ticket:
    row: RowMapping
    state: TicketState
    versions: Sequence[RowMapping]
    last: str | None
    """The status after the latest entry of its history."""


def _tickets(connection: Connection) -> Iterator[_Ticket]:
    parts = _by_ticket(connection, assignments, assignments.c.number)
    given = _by_ticket(connection, leases, leases.c.granted_at)
    versions = _by_ticket(connection, annotation_table, annotation_table.c.version)
    history = connection.execute(sa.select(audit.c.ticket_id, audit.c.after).order_by(audit.c.number)).tuples()
    last = {str(ticket_id): str(after) for ticket_id, after in history}
    for row in connection.execute(sa.select(tickets).order_by(tickets.c.ticket_id)).mappings():
        name = row["ticket_id"]
        state = TicketState(
            name,
            row["status"],
            tuple(part["assignment_id"] for part in parts[name]),
            tuple(LeaseState(**{key: lease[key] for key in LeaseState.__dataclass_fields__}) for lease in given[name]),
            tuple(map(annotation_state, versions[name])),
        )
        yield _Ticket(row, state, versions[name], last.get(name))


def _by_ticket(connection: Connection, table: sa.Table, order: sa.Column[Any]) -> Mapping[str, list[RowMapping]]:
    rows: dict[str, list[RowMapping]] = defaultdict(list)
    for row in connection.execute(sa.select(table).order_by(order)).mappings():
        rows[row["ticket_id"]].append(row)
    return rows


def _ticket(ticket: _Ticket, campaign: str) -> Iterator[str]:
    """Yield what is wrong with one ticket."""
    row, state = ticket.row, ticket.state
    if state.status not in STATUSES:
        yield f"its status is '{state.status}'"
        return
    if _OWN_ID.fullmatch(state.ticket_id) and state.ticket_id != _id_of(row, campaign):
        yield "its id is not that of its volume, box and purpose"
    if len(state.assignments) != row["annotators"]:
        yield f"it has {len(state.assignments)} assignments for {row['annotators']} annotators"
    if ticket.last != state.status:
        yield f"it is {state.status}, and by its history {ticket.last or 'was never made'}"
    if (expected := _status(state)) != state.status:
        yield f"it is {state.status}, and by its leases and versions {expected}"
    parts = {*state.assignments, None}
    if not {lease.assignment_id for lease in state.leases} | {a.assignment_id for a in state.annotations} <= parts:
        yield "a lease or a version belongs to an assignment of another ticket"
    if [a.version for a in state.annotations] != list(range(1, len(state.annotations) + 1)):
        yield f"its versions are {', '.join(str(a.version) for a in state.annotations)}"
    yield from _versions(ticket)


def _versions(ticket: _Ticket) -> Iterator[str]:
    state, given = ticket.state, {lease.lease_id: lease for lease in ticket.state.leases}
    for row in ticket.versions:
        lease = given.get(row["lease_id"])
        if lease is not None and (row["annotator"], row["seconds"]) != (lease.annotator, lease.active_seconds):
            yield f"version {row['version']} and its lease differ in who worked how long"
    for version in state.annotations:
        if version.verdict not in get_args(Verdict):
            yield f"the verdict on version {version.version} is '{version.verdict}'"
        if version.annotation_id != annotation_id(state.ticket_id, version.version, version.digest):
            yield f"the id of version {version.version} is not that of its labels"


def _id_of(row: RowMapping, campaign: str) -> str:
    """Return the id that a ticket was given; the formula is that of `rescueseg.annotation.label_files.ticket_id`."""
    content = [campaign, row["generation"], row["volume_id"], box_of(row).to_dict(), row["purpose"]]
    return f"{row['purpose']}-{row['generation']:04d}-{digest_json(content)[:16]}"


def _status(state: TicketState) -> str:
    """Return the status that follows from leases and versions."""
    if any(a.verdict == "accepted" for a in state.annotations):
        return "accepted"
    if state.status == "skipped" and not state.running_leases and not state.standing_annotations:
        return "skipped"
    return state.next_status()


# generations ---------------------------------------------------------------------------------------------------------


def _counted_generations(
    generations: Sequence[GenerationFolder],
) -> tuple[dict[int, tuple[Snapshot | None, int | None]], list[StorageError]]:
    """Return each generation's snapshot and how many accepted patches it counted, as its folder says; read before the ledger."""
    counted: dict[int, tuple[Snapshot | None, int | None]] = {}
    errors: list[StorageError] = []
    for folder in generations:
        counted[folder.number] = None, None
        try:
            snapshot, effort = folder.snapshot(), folder.read(EFFORT)
        except StorageError as error:
            errors.append(error)
            continue
        accepted = len(snapshot.items) + len(effort.left_out) if snapshot and effort else None
        counted[folder.number] = snapshot, accepted
    return counted, errors


def _ledger(connection: Connection, counted: Mapping[int, tuple[Snapshot | None, int | None]]) -> Iterator[str]:
    rows = {row["generation"]: row for row in connection.execute(sa.select(generations)).mappings()}
    numbers = sorted(rows)
    if numbers != list(range(len(numbers))):
        yield f"the generations are {', '.join(map(str, numbers))}"
    for number, later in pairwise(numbers):
        if rows[number]["finished_at"] is None:
            yield f"generation {number} has not finished, and generation {later} has begun"
    known = set(connection.execute(sa.select(annotation_table.c.annotation_id)).scalars())
    for number, (snapshot, accepted) in sorted(counted.items()):
        if number not in rows:
            yield f"generation {number} is not in it, but its folder {GENERATION.path(generation=number)} is there"
        elif accepted is not None and rows[number]["finished_at"] and rows[number]["accepted_count"] != accepted:
            yield f"generation {number} counted {accepted} accepted patches, not {rows[number]['accepted_count']}"
        lost = {item.annotation_id for item in snapshot.items} - known if snapshot else set()
        if lost:
            yield f"{len(lost)} versions are not in it that {SNAPSHOT.path(GENERATION.path(generation=number))} names"


# labels --------------------------------------------------------------------------------------------------------------


def _labels(storage: Storage, version: RowMapping) -> Iterator[StorageError]:
    for kind in ("labels", "instances"):
        if version[kind] is None:
            continue
        try:
            read_label_array(storage, LabelReference(path=version[kind], digest=version[f"{kind}_digest"] or ""))
        except StorageError as error:
            yield error
