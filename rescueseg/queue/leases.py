"""Leases: who works on which ticket, and the labels handed in under a lease."""

from __future__ import annotations

import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.errors import QueueError, TicketNotFoundError
from rescueseg.queue.database import Database
from rescueseg.queue.events import IDLE_SECONDS, Claim, Expire, Heartbeat, Release, Skip, Submit
from rescueseg.queue.execute import Clock, apply, load
from rescueseg.queue.next_ticket import due_tickets, next_ticket
from rescueseg.queue.records import AnnotationRecord, Filters, Lease
from rescueseg.queue.rows import read_annotation, read_lease
from rescueseg.queue.states import transition
from rescueseg.queue.submission import StoredLabels, Work, annotation_columns, check_seconds
from rescueseg.queue.tables import annotation_table, leases, tickets
from rescueseg.records import Purpose


class Leases:
    """What annotators do to tickets; each call is one immediate transaction.

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

    def claim(
        self,
        annotator: str,
        lease_seconds: float,
        *,
        ticket_id: str | None = None,
        resume: bool = False,
        filters: Filters | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> Lease | None:
        """Lease the next ticket to somebody, in one transaction.

        Higher priority goes first, then what was sent back to this person, then holdout tickets, then the higher
        score; see `rescueseg.queue.next_ticket.choose`. Leases that ran out are ended on the way.

        Parameters
        ----------
        annotator : str
            Who will work on it.
        lease_seconds : float
            How long the ticket is theirs without a heartbeat.
        ticket_id : str, optional
            This ticket and no other; a skipped one is taken up again.
        resume : bool
            Return the oldest lease that this person already holds, if any, before granting a new one.
        filters : Filters, optional
            Only such tickets.
        idle_seconds : float
            Longest gap between two heartbeats that counts as work.

        Returns
        -------
        Lease or None
            None when there is nothing to do.

        Raises
        ------
        QueueError
            If the named ticket cannot be claimed, or a name or duration is not valid.
        TicketNotFoundError
            If there is no ticket of that id.
        """
        if not annotator or len(annotator) > 128 or not lease_seconds > 0:
            raise QueueError("a claim needs a name of up to 128 letters and a lease of more than 0 seconds")
        now = self._clock()
        filters = filters or Filters()
        with self._database.write() as connection:
            _expire(connection, now)
            if resume:
                lease_id = _oldest_lease(connection, annotator, filters.purpose, ticket_id)
                if lease_id:
                    return read_lease(connection, lease_id, self._clock())
            by_id = ticket_id is not None
            claim = Claim(uuid.uuid4().hex, annotator, now, float(lease_seconds), by_id, float(idle_seconds))
            ticket_id = ticket_id or next_ticket(connection, annotator, now, filters)
            if ticket_id is None:
                return None
            apply(connection, ticket_id, claim, now)
            return read_lease(connection, claim.lease_id, self._clock())

    def heartbeat(self, lease_id: str, annotator: str, active_seconds: float = 0.0) -> Lease:
        """Move a lease's expiry to its full length from now, and add to its working time.

        Parameters
        ----------
        lease_id, annotator : str
            The lease and its holder.
        active_seconds : float
            Working time since the last heartbeat, at most the time since then; 0 when the tool does not know: then
            the time since then counts, at most the lease's `idle_seconds`.

        Raises
        ------
        LeaseExpiredError, NotYourLeaseError, TicketNotFoundError
            If the lease ran out, is somebody else's, or does not exist.
        QueueError
            If the time is negative or no number.
        """
        check_seconds(active_seconds)
        return self._on_lease(Heartbeat(lease_id, annotator, self._clock(), float(active_seconds)))

    def release(self, lease_id: str, annotator: str) -> None:
        """Give a ticket back untouched; again is no error. Errors as in `heartbeat`."""
        self._on_lease(Release(lease_id, annotator, self._clock()))

    def skip(self, lease_id: str, annotator: str, reason: str) -> None:
        """Take a ticket out of the queue because it cannot be annotated; again is no error.

        Raises
        ------
        QueueError
            If no reason is given, or others work on the ticket; otherwise as in `heartbeat`.
        """
        if not reason.strip():
            raise QueueError("a skip needs a reason", where=lease_id, todo="Say in a few words what is wrong")
        self._on_lease(Skip(lease_id, annotator, self._clock(), reason))

    def expire(self, now: datetime | None = None) -> int:
        """End the leases that ran out; return how many tickets that touched."""
        moment = now or self._clock()
        with self._database.write() as connection:
            return _expire(connection, moment)

    # labels -------------------------------------------------------------------------------------------------------

    def check_submit(self, lease_id: str, annotator: str, digest: str) -> None:
        """Raise what `submit` would raise, and change nothing."""
        with self._database.read() as connection:
            ticket_id = _ticket_of(connection, lease_id)
            transition(load(connection, ticket_id, lock=False), Submit(lease_id, annotator, self._clock(), digest))

    def submit(
        self, lease_id: str, annotator: str, labels: StoredLabels, work: Work, *, accept: bool = False
    ) -> AnnotationRecord:
        """Hand in labels. The same lease and labels again return the same record and change nothing.

        Parameters
        ----------
        lease_id, annotator : str
            The lease and its holder.
        labels : StoredLabels
            The labels.
        work : Work
            How they were made.
        accept : bool
            Accept in the same transaction, when no review is wanted; the halves of a blind pair never are.

        Raises
        ------
        LeaseExpiredError, NotYourLeaseError, TicketNotFoundError
            If the lease ran out, is somebody else's, or does not exist.
        QueueError
            If the lease ended otherwise, or was handed in with other labels.
        """
        event = Submit(
            lease_id,
            annotator,
            self._clock(),
            labels.digest,
            accept,
            None if work.seconds is None else float(work.seconds),
            float(work.active_seconds),
            tuple(work.overridden),
        )
        with self._database.write() as connection:
            columns = annotation_columns(labels, work.tool)
            apply(connection, _ticket_of(connection, lease_id), event, event.now, columns)
            return read_annotation(connection, annotation_table.c.lease_id == lease_id)

    # common -------------------------------------------------------------------------------------------------------

    def _on_lease(self, event: Heartbeat | Release | Skip) -> Lease:
        with self._database.write() as connection:
            apply(connection, _ticket_of(connection, event.lease_id), event, event.now)
            return read_lease(connection, event.lease_id, self._clock())


def _expire(connection: Connection, now: datetime) -> int:
    """End leases that ran out; tickets that another transaction holds are left to it."""
    ticket_ids = due_tickets(connection, now)
    for ticket_id in ticket_ids:
        apply(connection, ticket_id, Expire(now), now)
    return len(ticket_ids)


def _oldest_lease(
    connection: Connection, annotator: str, purpose: Purpose | None = None, ticket_id: str | None = None
) -> str | None:
    """Return the oldest running lease of a person."""
    query = (
        sa.select(leases.c.lease_id)
        .join(tickets)
        .where(leases.c.annotator == annotator, leases.c.ended.is_(None))
        .order_by(leases.c.granted_at, leases.c.lease_id)
    )
    if purpose is not None:
        query = query.where(tickets.c.purpose == purpose)
    if ticket_id is not None:
        query = query.where(tickets.c.ticket_id == ticket_id)
    lease_id = connection.execute(query).scalars().first()
    return None if lease_id is None else str(lease_id)


def _ticket_of(connection: Connection, lease_id: str) -> str:
    ticket_id = connection.execute(sa.select(leases.c.ticket_id).where(leases.c.lease_id == lease_id)).scalar()
    if ticket_id is None:
        raise TicketNotFoundError("there is no such lease", where=lease_id, todo="Claim a ticket first")
    return str(ticket_id)
