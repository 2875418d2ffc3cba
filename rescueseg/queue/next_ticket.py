"""Which ticket comes next, and which leases ran out; on PostgreSQL both lock what they return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.queue.execute import classes_text, load
from rescueseg.queue.records import Filters
from rescueseg.queue.tables import annotation_table, assignments, leases, tickets

NEARLY = 0.05
"""Scores are nearly equal within this share of the spread of the waiting ones: no score is that exact."""

_WINDOW = 64
_RUNNING = leases.c.ended.is_(None)
_STANDING = annotation_table.c.verdict != "rejected"


@dataclass(frozen=True)
class Candidate:
    """A ticket that could be next."""

    ticket_id: str
    rank: tuple[int, ...]
    """What goes before every score; lower is earlier."""
    score: float
    stratum: str
    volume_id: str
    created_at: datetime


def choose(candidates: Sequence[Candidate], strata: Mapping[str, int], volumes: Mapping[str, int]) -> Candidate:
    """Return the candidate to annotate next.

    The lowest rank goes first, then the highest score. Among scores that are nearly equal (see `NEARLY`) the stratum
    and then the volume that people have worked on least goes first, then the higher score, the older ticket, the id.

    Parameters
    ----------
    candidates : sequence of Candidate
        At least one.
    strata, volumes : mapping of str to int
        Tickets that are leased, submitted or accepted, by stratum and by volume.

    Examples
    --------
    Two scores are nearly equal; of their strata, nobody has worked on "sparse" yet:

    >>> from datetime import UTC, datetime
    >>> at = datetime(2026, 1, 1, tzinfo=UTC)
    >>> scores = {"dense": 0.91, "sparse": 0.90, "edge": 0.10}
    >>> candidates = [Candidate(name, (0,), score, name, "liver", at) for name, score in scores.items()]
    >>> choose(candidates, strata={"dense": 2}, volumes={"liver": 2}).ticket_id
    'sparse'
    """
    first = min(c.rank for c in candidates)
    tier = [c for c in candidates if c.rank == first]
    best, worst = max(c.score for c in tier), min(c.score for c in tier)
    near = [c for c in tier if c.score >= best - NEARLY * (best - worst)]
    return min(
        near,
        key=lambda c: (
            strata.get(c.stratum, 0),
            volumes.get(c.volume_id, 0),
            -c.score,
            c.created_at,
            c.ticket_id.encode(),
        ),
    )


def next_ticket(connection: Connection, annotator: str, now: datetime, filters: Filters) -> str | None:
    """Return the id of the next ticket with a part that this person may take, None when there is none.

    Tickets that another transaction holds are passed over (PostgreSQL; on SQLite there is one writer at a time).
    """
    query = _claimable(annotator, now, filters)
    strata, volumes = _worked_on(connection)
    excluded: list[str] = []
    while True:
        rows = connection.execute(query.where(tickets.c.ticket_id.not_in(excluded))).all()
        if not rows:
            return None
        window = [
            Candidate(r.ticket_id, (-r.priority, r.not_mine, r.is_pool), r.score, r.stratum, r.volume_id, r.created_at)
            for r in rows
        ]
        while window:
            candidate = choose(window, strata, volumes)
            if _lock_if_claimable(connection, candidate.ticket_id, annotator, now):
                return candidate.ticket_id
            excluded.append(candidate.ticket_id)
            window.remove(candidate)


def _lock_if_claimable(connection: Connection, ticket_id: str, annotator: str, now: datetime) -> bool:
    """Lock a ticket and check it again: it may have changed since the query that returned it."""
    lock = sa.select(tickets.c.ticket_id).where(tickets.c.ticket_id == ticket_id).with_for_update(skip_locked=True)
    if connection.execute(lock).scalar() is None:
        return False
    ticket = load(connection, ticket_id, lock=True)
    return ticket.status in ("queued", "leased") and bool(ticket.open_assignments(annotator, now))


def _worked_on(connection: Connection) -> tuple[Counter[str], Counter[str]]:
    """Count the pool tickets that are leased, submitted or accepted, by stratum and by volume."""
    query = (
        sa.select(tickets.c.stratum, tickets.c.volume_id, sa.func.count().label("number"))
        .where(tickets.c.status.in_(("leased", "submitted", "accepted")), tickets.c.purpose == "pool")
        .group_by(tickets.c.stratum, tickets.c.volume_id)
    )
    strata: Counter[str] = Counter()
    volumes: Counter[str] = Counter()
    for row in connection.execute(query):
        strata[row.stratum] += row.number
        volumes[row.volume_id] += row.number
    return strata, volumes


def _claimable(annotator: str, now: datetime, filters: Filters) -> sa.Select[Any]:
    part = assignments.c.assignment_id
    is_part = assignments.c.ticket_id == tickets.c.ticket_id
    mine = assignments.c.reserved_for == annotator
    free = sa.exists().where(
        is_part,
        sa.or_(assignments.c.reserved_until.is_(None), mine, assignments.c.reserved_until <= now),
        ~sa.exists().where(leases.c.assignment_id == part, _RUNNING),
        ~sa.exists().where(
            annotation_table.c.ticket_id == assignments.c.ticket_id,  # which is indexed, unlike the assignment
            annotation_table.c.assignment_id == part,
            _STANDING,
        ),
    )
    holds = sa.exists().where(leases.c.ticket_id == tickets.c.ticket_id, _RUNNING, leases.c.annotator == annotator)
    has_done = sa.exists().where(
        annotation_table.c.ticket_id == tickets.c.ticket_id, _STANDING, annotation_table.c.annotator == annotator
    )
    not_mine = sa.case((sa.exists().where(is_part, mine), 0), else_=1).label("not_mine")
    is_pool = sa.case((tickets.c.purpose == "pool", 1), else_=0).label("is_pool")
    query = (
        sa.select(tickets, not_mine, is_pool)
        .where(tickets.c.status.in_(("queued", "leased")), free, ~holds, ~has_done)
        .order_by(
            tickets.c.priority.desc(), not_mine, is_pool, tickets.c.score.desc(), tickets.c.created_at,
            tickets.c.ticket_id,
        )
        .limit(_WINDOW)
    )  # fmt: skip
    for name in ("volume_id", "stratum", "generation", "purpose"):
        if (value := getattr(filters, name)) is not None:
            query = query.where(tickets.c[name] == value)
    if filters.class_name is not None:
        query = query.where(tickets.c.classes.contains(classes_text([filters.class_name]), autoescape=True))
    return query


def due_tickets(connection: Connection, now: datetime) -> Sequence[str]:
    """Return the tickets with a lease that ran out; those that another transaction holds are left to it."""
    due = sa.exists().where(leases.c.ticket_id == tickets.c.ticket_id, _RUNNING, leases.c.expires_at <= now)
    query = sa.select(tickets.c.ticket_id).where(due).order_by(tickets.c.ticket_id)
    return connection.execute(query.with_for_update(skip_locked=True, of=tickets)).scalars().all()
