"""Which ticket comes next, and which leases ran out; on PostgreSQL both lock what they return."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.annotation.execute import load
from rescueseg.annotation.tables import annotation_table, assignments, leases, tickets
from rescueseg.records import Purpose

_RUNNING = leases.c.ended.is_(None)
_STANDING = annotation_table.c.verdict != "rejected"


def next_ticket(connection: Connection, annotator: str, purpose: Purpose | None) -> str | None:
    """Return the id of the next ticket with a part that this person may take, None when there is none.

    Tickets that another transaction holds are passed over (PostgreSQL; on SQLite there is one writer at a time).
    """
    query = _claimable(annotator)
    if purpose is not None:
        query = query.where(tickets.c.purpose == purpose)
    passed: list[str] = []
    while True:
        chosen = connection.execute(
            query.where(tickets.c.ticket_id.not_in(passed)).with_for_update(skip_locked=True, of=tickets)
        ).scalar()
        # PostgreSQL may hand over a row that changed between its snapshot and the lock: look again
        if chosen is None:
            return None
        if load(connection, str(chosen), lock=True).open_assignments(annotator):
            return str(chosen)
        passed.append(str(chosen))


def _claimable(annotator: str) -> sa.Select[Any]:
    part = assignments.c.assignment_id
    free = sa.exists().where(
        assignments.c.ticket_id == tickets.c.ticket_id,
        ~sa.exists().where(leases.c.assignment_id == part, _RUNNING),
        ~sa.exists().where(annotation_table.c.assignment_id == part, _STANDING),
    )
    holds = sa.exists().where(leases.c.ticket_id == tickets.c.ticket_id, _RUNNING, leases.c.annotator == annotator)
    has_done = sa.exists().where(
        annotation_table.c.ticket_id == tickets.c.ticket_id, _STANDING, annotation_table.c.annotator == annotator
    )
    return (
        sa.select(tickets.c.ticket_id)
        .where(tickets.c.status.in_(("queued", "leased")), free, ~holds, ~has_done)
        .order_by(
            tickets.c.priority.desc(),
            sa.case((tickets.c.purpose == "pool", 1), else_=0),
            tickets.c.score.desc(),
            tickets.c.ticket_id,
        )
        .limit(1)
    )


def due_tickets(connection: Connection, now: datetime) -> Sequence[str]:
    """Return the tickets with a lease that ran out; those that another transaction holds are its to sweep."""
    due = sa.exists().where(leases.c.ticket_id == tickets.c.ticket_id, _RUNNING, leases.c.expires_at <= now)
    query = sa.select(tickets.c.ticket_id).where(due).order_by(tickets.c.ticket_id)
    return connection.execute(query.with_for_update(skip_locked=True, of=tickets)).scalars().all()
