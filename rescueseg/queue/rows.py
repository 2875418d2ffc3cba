"""Rows of the queue's tables as records, read in an open transaction."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.errors import QueueError, TicketNotFoundError
from rescueseg.queue.execute import ticket_record
from rescueseg.queue.records import AnnotationRecord, Lease, TicketRecord
from rescueseg.queue.tables import annotation_table, leases, tickets
from rescueseg.records import LabelReference


def read_ticket(connection: Connection, ticket_id: str) -> TicketRecord:
    """Return one ticket.

    Raises
    ------
    TicketNotFoundError
        If there is none of that id.
    """
    row = connection.execute(sa.select(tickets).where(tickets.c.ticket_id == ticket_id)).mappings().first()
    if row is None:
        raise TicketNotFoundError(
            "there is no such ticket", where=ticket_id, todo="See 'rescueseg queue status CAMPAIGN'"
        )
    return ticket_record(row)


def read_annotation(connection: Connection, which: sa.ColumnElement[bool]) -> AnnotationRecord:
    """Return the latest version for which a condition holds.

    Raises
    ------
    QueueError
        If there is none.
    """
    query = sa.select(annotation_table).where(which).order_by(annotation_table.c.version.desc())
    row = connection.execute(query).mappings().first()
    if row is None:
        raise QueueError("the annotation is missing from the database", todo="Restore the database from its backup")
    return AnnotationRecord(**{name: row[name] for name in AnnotationRecord.model_fields})


def read_lease(connection: Connection, lease_id: str, now: datetime) -> Lease:
    """Return a lease, running or over.

    Raises
    ------
    TicketNotFoundError
        If there is none of that id.
    """
    row = connection.execute(sa.select(leases).where(leases.c.lease_id == lease_id)).mappings().first()
    if row is None:
        raise TicketNotFoundError("there is no such lease", where=lease_id, todo="Claim a ticket first")
    latest = (
        connection.execute(
            sa.select(annotation_table)
            .where(
                annotation_table.c.assignment_id == row["assignment_id"],
                annotation_table.c.verdict == "rejected",
            )
            .order_by(annotation_table.c.version.desc())
        )
        .mappings()
        .first()
    )
    return Lease(
        lease_id=lease_id,
        assignment_id=row["assignment_id"],
        annotator=row["annotator"],
        granted_at=row["granted_at"],
        expires_at=row["expires_at"],
        ticket=read_ticket(connection, row["ticket_id"]),
        previous=LabelReference(path=latest["labels"], digest=latest["labels_digest"]) if latest else None,
        previous_instances=LabelReference(path=latest["instances"], digest=latest["instances_digest"])
        if latest and latest["instances"]
        else None,
        comment=latest["comment"] if latest else "",
        active_seconds=row["active_seconds"],
        ended=row["ended"] or ("expired" if row["expires_at"] <= now else None),
    )
