"""What can be read in the queue: nothing here changes the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from rescueseg.queue.database import Database
from rescueseg.queue.execute import Clock, box_of, ticket_record
from rescueseg.queue.records import (
    STATUSES,
    AnnotationRecord,
    AuditEntry,
    Comparison,
    Effort,
    Lease,
    TicketRecord,
    TicketStatus,
)
from rescueseg.queue.rows import read_annotation, read_lease, read_ticket
from rescueseg.queue.tables import annotation_table, audit, leases, tickets
from rescueseg.records import AcceptedAnnotation, Purpose

_ANNOTATION = (
    "annotation_id",
    "version",
    "labels",
    "labels_digest",
    "annotator",
    "tool",
    "seconds",
    "voxels_corrected",
    "instances",
    "instances_digest",
)


class QueueViews:
    """What can be read in a campaign's queue; each call is one consistent view.

    Parameters
    ----------
    database : Database
        The queue's.
    clock : callable
        Returns the time in UTC.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def counts(self) -> dict[str, int]:
        """Return how many tickets are in each status; every status is named."""
        query = sa.select(tickets.c.status, sa.func.count()).group_by(tickets.c.status)
        with self._database.read() as connection:
            numbers = {str(status): int(number) for status, number in connection.execute(query).tuples()}
        return {status: numbers.get(status, 0) for status in STATUSES}

    def tickets(self, status: TicketStatus | None = None, purpose: Purpose | None = None) -> list[TicketRecord]:
        """Return tickets, by id; all, or those of a status, a purpose."""
        query = sa.select(tickets).order_by(tickets.c.ticket_id)
        for column, value in ((tickets.c.status, status), (tickets.c.purpose, purpose)):
            query = query if value is None else query.where(column == value)
        with self._database.read() as connection:
            return sorted(map(ticket_record, connection.execute(query).mappings()), key=lambda t: t.ticket_id)

    def accepted(self, purpose: Purpose | None = "pool") -> list[AcceptedAnnotation]:
        """Return the accepted labels of each ticket of a purpose (of all when None), by ticket id."""
        query = sa.select(tickets, *(annotation_table.c[name] for name in _ANNOTATION)).join(
            annotation_table, annotation_table.c.ticket_id == tickets.c.ticket_id
        )
        query = query.where(annotation_table.c.verdict == "accepted").order_by(annotation_table.c.version)
        if purpose is not None:
            query = query.where(tickets.c.purpose == purpose)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
            latest = {row["ticket_id"]: row for row in rows}
            plain = [name for name in AcceptedAnnotation.model_fields if name != "box"]
            return [
                AcceptedAnnotation(box=box_of(row), **{name: row[name] for name in plain})
                for _, row in sorted(latest.items())
            ]

    def ticket(self, ticket_id: str) -> TicketRecord:
        """Return one ticket.

        Raises
        ------
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.read() as connection:
            return read_ticket(connection, ticket_id)

    def largest_patch(self) -> int:
        """Return how many voxels the largest patch in the queue has; 0 without tickets."""
        voxels = sa.cast(tickets.c.shape_z, sa.BigInteger) * tickets.c.shape_y * tickets.c.shape_x
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(voxels))).scalar() or 0)

    def last_change(self) -> int:
        """Return the number of the latest change of any ticket; 0 before the first."""
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(audit.c.number))).scalar() or 0)

    def changes(self, after: int, until: int | None = None) -> list[AuditEntry]:
        """Return the changes of all tickets numbered above `after` and up to `until`, at most a thousand."""
        query = sa.select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(1000)
        if until is not None:
            query = query.where(audit.c.number <= until)
        with self._database.read() as connection:
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]

    def annotations(self, ticket_id: str) -> list[AnnotationRecord]:
        """Return every version that was handed in for a ticket, oldest first."""
        query = (
            sa.select(annotation_table)
            .where(annotation_table.c.ticket_id == ticket_id)
            .order_by(annotation_table.c.version)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
            return [AnnotationRecord(**{name: row[name] for name in AnnotationRecord.model_fields}) for row in rows]

    def undecided_pairs(self, threshold: float) -> list[str]:
        """Return the submitted blind pairs that were not compared yet, or agree well enough to need no reviewer."""
        query = sa.select(tickets.c.ticket_id).where(
            tickets.c.status == "submitted",
            tickets.c.annotators > 1,
            sa.or_(tickets.c.agreement.is_(None), tickets.c.agreement >= threshold),
        )
        with self._database.read() as connection:
            return sorted(connection.execute(query).scalars().all())

    def comparisons(self) -> list[Comparison]:
        """Return every comparison of two annotators, oldest first; those of work that was sent back, too."""
        query = (
            sa.select(audit.c.at, audit.c.details, tickets)
            .join(tickets, tickets.c.ticket_id == audit.c.ticket_id)
            .where(audit.c.event == "compared")
            .order_by(audit.c.number)
        )
        plain = ("ticket_id", "at", "volume_id", "generation", "stratum")
        with self._database.read() as connection:
            return [
                Comparison(box=box_of(row), **{name: row[name] for name in plain}, **row["details"])
                for row in connection.execute(query).mappings()
            ]

    def efforts(self) -> list[Effort]:
        """Return each person's effort on each ticket, by ticket and name."""
        key = (leases.c.ticket_id, leases.c.annotator)
        leased = sa.select(*key, sa.func.sum(leases.c.active_seconds).label("seconds")).group_by(*key)
        by_people = sa.select(annotation_table).where(annotation_table.c.origin != "consensus")
        with self._database.read() as connection:
            seconds = {(r.ticket_id, r.annotator): float(r.seconds) for r in connection.execute(leased)}
            versions: dict[tuple[str, str], list[RowMapping]] = defaultdict(list)
            for row in connection.execute(by_people).mappings():
                versions[row["ticket_id"], row["annotator"]].append(row)
            records = {
                row["ticket_id"]: ticket_record(row) for row in connection.execute(sa.select(tickets)).mappings()
            }
            return [
                _effort(records[name], who, seconds.get((name, who), 0.0), versions[name, who])
                for name, who in sorted({*seconds, *versions})
            ]

    def history(self, ticket_id: str) -> list[AuditEntry]:
        """Return every change of a ticket, oldest first.

        Raises
        ------
        TicketNotFoundError
            If there is none of that id.
        """
        query = sa.select(audit).where(audit.c.ticket_id == ticket_id).order_by(audit.c.number)
        with self._database.read() as connection:
            read_ticket(connection, ticket_id)
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]

    def lease(self, lease_id: str) -> Lease:
        """Return a lease, running or over.

        Raises
        ------
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.read() as connection:
            return read_lease(connection, lease_id, self._clock())

    def submission(self, lease_id: str) -> AnnotationRecord:
        """Return the version that was handed in under a lease.

        Raises
        ------
        QueueError
            If there is none.
        """
        with self._database.read() as connection:
            return read_annotation(connection, annotation_table.c.lease_id == lease_id)

    def leases(self, annotator: str | None = None) -> list[Lease]:
        """Return the running leases, of one person or of all, oldest first."""
        query = sa.select(leases.c.lease_id).where(leases.c.ended.is_(None), leases.c.expires_at > self._clock())
        if annotator is not None:
            query = query.where(leases.c.annotator == annotator)
        with self._database.read() as connection:
            ids = connection.execute(query.order_by(leases.c.granted_at, leases.c.lease_id)).scalars().all()
            return [read_lease(connection, lease_id, self._clock()) for lease_id in ids]


def _effort(ticket: TicketRecord, annotator: str, lease_seconds: float, versions: Sequence[RowMapping]) -> Effort:
    verdicts = [row["verdict"] for row in versions]
    return Effort(
        annotator=annotator,
        ticket_id=ticket.ticket_id,
        purpose=ticket.purpose,
        generation=ticket.generation,
        status=ticket.status,
        voxels=ticket.box.size,
        seconds=lease_seconds + sum(row["seconds"] for row in versions if row["lease_id"] is None),
        voxels_corrected=sum(row["voxels_corrected"] for row in versions),
        versions=len(versions),
        accepted=verdicts.count("accepted"),
        rejected=verdicts.count("rejected"),
    )
