"""The annotation queue: a thin store over the state machine, one immediate transaction per call."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.annotation.database import Database
from rescueseg.annotation.events import (
    Accept,
    Claim,
    Event,
    Expire,
    Heartbeat,
    Reject,
    Release,
    Skip,
    Submit,
)
from rescueseg.annotation.execute import Clock, box_columns, box_of, execute, load, ticket_record
from rescueseg.annotation.ledger import Ledger
from rescueseg.annotation.records import (
    STATUSES,
    AcceptedAnnotation,
    AnnotationRecord,
    AuditEntry,
    LabelReference,
    Lease,
    NewTicket,
    TicketRecord,
    TicketStatus,
)
from rescueseg.annotation.states import TicketState, transition
from rescueseg.annotation.tables import annotations, assignments, audit, leases, owner, tickets
from rescueseg.errors import QueueError, TicketNotFoundError
from rescueseg.records import Purpose

if TYPE_CHECKING:
    from rescueseg.campaign import Campaign


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def open_queue(campaign: Campaign) -> QueueStore:
    """Open a campaign's queue, its database made or brought up to date.

    Raises
    ------
    QueueError
        If the database belongs to another campaign, or lies on a network file system.
    StorageError
        If the database cannot be reached.
    """
    store = QueueStore(campaign.database_url)
    store.migrate()
    store.belong_to(campaign.config.name)
    return store


class QueueStore(Ledger):
    """The queue of one campaign. Safe to use from many processes and threads at once.

    Parameters
    ----------
    database_url : str
        SQLAlchemy URL. SQLite (one file on a local disk, WAL) or PostgreSQL; one database or schema per campaign.
    clock : callable, optional
        Returns the time in UTC; for tests.

    Raises
    ------
    ConfigError
        If the URL cannot be used.
    QueueError
        If it names a SQLite file on a network file system.
    """

    def __init__(self, database_url: str, *, clock: Clock = utc_now) -> None:
        super().__init__(Database(database_url), clock)

    def migrate(self) -> None:
        """Make the tables or bring them up to date; several processes may do so at once."""
        self._database.migrate()

    def belong_to(self, campaign: str) -> None:
        """Write down whose queue this is, once.

        Raises
        ------
        QueueError
            If it is another campaign's.
        """
        with self._database.read() as connection:
            name = connection.execute(sa.select(owner.c.campaign)).scalar()
        if name is None:
            with self._database.write() as connection:
                if not self._database.is_sqlite:
                    connection.execute(sa.text("LOCK TABLE owner IN EXCLUSIVE MODE"))
                name = connection.execute(sa.select(owner.c.campaign)).scalar()
                if name is None:
                    connection.execute(sa.insert(owner).values(number=1, campaign=campaign))
                    return
        if name != campaign:
            raise QueueError(
                f"the database holds the queue of campaign '{name}', not of '{campaign}'",
                where=self._database.where,
                todo="Give each campaign a database (or PostgreSQL schema) of its own: database_url in campaign.toml",
            )

    # tickets ------------------------------------------------------------------------------------------------------

    def add_tickets(self, new: Sequence[NewTicket]) -> int:
        """Put patches in the queue; a ticket already there (by id) stays as it is.

        Returns
        -------
        int
            How many were new.

        Raises
        ------
        QueueError
            If a ticket of that id is there for another patch or purpose.
        """
        added = 0
        now = self._clock()
        with self._database.write() as connection:
            for ticket in sorted(new, key=lambda t: t.ticket_id):
                added += self._add_ticket(connection, ticket, now)
        return added

    def _add_ticket(self, connection: Connection, ticket: NewTicket, now: datetime) -> bool:
        plain = ticket.model_dump(exclude={"box"})
        values = plain | box_columns(ticket.box) | {"status": "queued", "created_at": now, "updated_at": now}
        insert = self._insert_if_new(tickets).values(values)
        if connection.execute(insert).rowcount == 0:
            there = self._ticket(connection, ticket.ticket_id)
            if (there.patch, there.purpose) != (ticket.patch, ticket.purpose):
                raise QueueError(
                    f"there is a ticket of that id for {there.purpose} patch {there.box} of '{there.volume_id}'",
                    where=f"ticket {ticket.ticket_id}",
                    todo="Give the new ticket another id",
                )
            return False
        connection.execute(sa.insert(assignments).values(ticket_id=ticket.ticket_id, number=1))
        connection.execute(
            sa.insert(audit).values(
                at=now,
                ticket_id=ticket.ticket_id,
                event="created",
                actor="rescueseg",
                before="",
                after="queued",
                lease_id="",
                details={"generation": ticket.generation, "reason": ticket.reason},
            )
        )
        return True

    def _ticket(self, connection: Connection, ticket_id: str) -> TicketRecord:
        row = connection.execute(sa.select(tickets).where(tickets.c.ticket_id == ticket_id)).mappings().first()
        if row is None:
            raise TicketNotFoundError("there is no such ticket", where=ticket_id, todo="See 'rescueseg queue status'")
        return ticket_record(row)

    # leases -------------------------------------------------------------------------------------------------------

    def claim(
        self,
        annotator: str,
        lease_seconds: float,
        *,
        purpose: Purpose | None = None,
        ticket_id: str | None = None,
        resume: bool = False,
    ) -> Lease | None:
        """Lease the next ticket to somebody, in one transaction.

        Higher priority goes first, then holdout tickets, then the higher score, then the ticket id. Leases that ran
        out are ended on the way.

        Parameters
        ----------
        annotator : str
            Who will work on it.
        lease_seconds : float
            How long the ticket is theirs without a heartbeat.
        purpose : {"pool", "validation", "test"}, optional
            Only tickets of this purpose.
        ticket_id : str, optional
            This ticket and no other; a skipped one is taken up again.
        resume : bool
            Return the oldest lease that this person already holds, if any, before granting a new one.

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
        with self._database.write() as connection:
            self._sweep(connection, now)
            if resume:
                held = self._held(connection, annotator, purpose, ticket_id)
                if held:
                    return self._lease(connection, held)
            claim = Claim(uuid.uuid4().hex, annotator, now, float(lease_seconds), by_id=ticket_id is not None)
            chosen = ticket_id or self._next_ticket(connection, annotator, purpose)
            if chosen is None:
                return None
            self._apply(connection, chosen, claim, now)
            return self._lease(connection, claim.lease_id)

    def _next_ticket(self, connection: Connection, annotator: str, purpose: Purpose | None) -> str | None:
        """Choose, and on PostgreSQL lock, the next ticket with a part that this person may take."""
        running, standing = leases.c.ended.is_(None), annotations.c.verdict != "rejected"
        mine = (
            sa.exists().where(leases.c.ticket_id == tickets.c.ticket_id, running, leases.c.annotator == annotator),
            sa.exists().where(
                annotations.c.ticket_id == tickets.c.ticket_id, standing, annotations.c.annotator == annotator
            ),
        )
        free = sa.exists().where(
            assignments.c.ticket_id == tickets.c.ticket_id,
            ~sa.exists().where(leases.c.assignment_id == assignments.c.assignment_id, running),
            ~sa.exists().where(annotations.c.assignment_id == assignments.c.assignment_id, standing),
        )
        query = (
            sa.select(tickets.c.ticket_id)
            .where(tickets.c.status.in_(("queued", "leased")), free, ~mine[0], ~mine[1])
            .order_by(
                tickets.c.priority.desc(),
                sa.case((tickets.c.purpose == "pool", 1), else_=0),
                tickets.c.score.desc(),
                tickets.c.ticket_id,
            )
            .limit(1)
        )
        if purpose is not None:
            query = query.where(tickets.c.purpose == purpose)
        passed: list[str] = []
        while True:
            chosen = connection.execute(
                query.where(tickets.c.ticket_id.not_in(passed)).with_for_update(skip_locked=True, of=tickets)
            ).scalar()
            # PostgreSQL may hand over a row that changed between its snapshot and the lock: look again
            if chosen is None or load(connection, chosen, lock=True).open_assignments(annotator):
                return chosen
            passed.append(chosen)

    def _sweep(self, connection: Connection, now: datetime) -> int:
        """End leases that ran out; tickets locked by others are theirs to sweep."""
        due = sa.exists().where(
            leases.c.ticket_id == tickets.c.ticket_id, leases.c.ended.is_(None), leases.c.expires_at <= now
        )
        query = sa.select(tickets.c.ticket_id).where(due).order_by(tickets.c.ticket_id)
        found = connection.execute(query.with_for_update(skip_locked=True, of=tickets)).scalars().all()
        for ticket_id in found:
            self._apply(connection, ticket_id, Expire(now), now)
        return len(found)

    def _held(
        self, connection: Connection, annotator: str, purpose: Purpose | None = None, ticket_id: str | None = None
    ) -> str | None:
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
        found = connection.execute(query).scalars().first()
        return None if found is None else str(found)

    def _lease(self, connection: Connection, lease_id: str) -> Lease:
        row = connection.execute(sa.select(leases).where(leases.c.lease_id == lease_id)).mappings().first()
        if row is None:
            raise TicketNotFoundError("there is no such lease", where=lease_id, todo="Claim a ticket first")
        latest = (
            connection.execute(
                sa.select(annotations)
                .where(annotations.c.ticket_id == row["ticket_id"], annotations.c.verdict == "rejected")
                .order_by(annotations.c.version.desc())
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
            ticket=self._ticket(connection, row["ticket_id"]),
            previous=LabelReference(path=latest["labels"], digest=latest["labels_digest"]) if latest else None,
            comment=latest["comment"] if latest else "",
        )

    def lease(self, lease_id: str) -> Lease:
        """Return a lease, running or over.

        Raises
        ------
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.read() as connection:
            return self._lease(connection, lease_id)

    def leases(self, annotator: str | None = None) -> list[Lease]:
        """Return the running leases, of one person or of all, oldest first."""
        query = sa.select(leases.c.lease_id).where(leases.c.ended.is_(None), leases.c.expires_at > self._clock())
        if annotator is not None:
            query = query.where(leases.c.annotator == annotator)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(leases.c.granted_at, leases.c.lease_id)).scalars().all()
            return [self._lease(connection, lease_id) for lease_id in found]

    def heartbeat(self, lease_id: str, annotator: str) -> Lease:
        """Move a lease's expiry to its full length from now.

        Raises
        ------
        LeaseExpiredError, NotYourLeaseError, TicketNotFoundError
            If the lease ran out, is somebody else's, or does not exist.
        """
        return self._on_lease(Heartbeat(lease_id, annotator, self._clock()))

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
            return self._sweep(connection, moment)

    # labels -------------------------------------------------------------------------------------------------------

    def check_submit(self, lease_id: str, annotator: str, digest: str) -> None:
        """Raise what `submit` would raise, and change nothing."""
        with self._database.read() as connection:
            ticket_id = self._ticket_of(connection, lease_id)
            transition(load(connection, ticket_id, lock=False), Submit(lease_id, annotator, self._clock(), digest))

    def submit(
        self,
        lease_id: str,
        annotator: str,
        label: LabelReference,
        tool: str,
        seconds: float,
        voxels_corrected: int,
        *,
        accept: bool = False,
    ) -> AnnotationRecord:
        """Hand in labels. The same lease and digest again return the same record and change nothing.

        Parameters
        ----------
        lease_id, annotator : str
            The lease and its holder.
        label : LabelReference
            Where the labels were stored, and their digest.
        tool : str
            What they were made with.
        seconds : float
            Time the annotator took.
        voxels_corrected : int
            Voxels that differ from the mask they started from.
        accept : bool
            Accept in the same transaction, when no review is wanted.

        Raises
        ------
        LeaseExpiredError, NotYourLeaseError, TicketNotFoundError
            If the lease ran out, is somebody else's, or does not exist.
        QueueError
            If the lease ended otherwise, or was handed in with other labels.
        """
        now = self._clock()
        submitted = {
            "labels": label.path,
            "tool": tool,
            "seconds": float(seconds),
            "voxels_corrected": int(voxels_corrected),
        }
        with self._database.write() as connection:
            ticket_id = self._ticket_of(connection, lease_id)
            instructions = transition(
                load(connection, ticket_id, lock=True), Submit(lease_id, annotator, now, label.digest, accept)
            )
            execute(connection, instructions, now, submitted)
            return self._annotation(connection, annotations.c.lease_id == lease_id)

    def accept(self, ticket_id: str, actor: str) -> AnnotationRecord:
        """Accept the latest version of a submitted ticket; again is no error.

        Raises
        ------
        QueueError
            If the ticket is not submitted.
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.write() as connection:
            self._apply(connection, ticket_id, Accept(actor), self._clock())
            is_it = sa.and_(annotations.c.ticket_id == ticket_id, annotations.c.verdict == "accepted")
            return self._annotation(connection, is_it)

    def reject(self, ticket_id: str, actor: str, comment: str) -> None:
        """Send a submitted ticket back to the queue; the next annotator goes on from the rejected labels.

        Errors as in `accept`.
        """
        with self._database.write() as connection:
            self._apply(connection, ticket_id, Reject(actor, comment), self._clock())

    # what is there ------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many tickets are in each status; every status is named."""
        query = sa.select(tickets.c.status, sa.func.count()).group_by(tickets.c.status)
        with self._database.read() as connection:
            found = {str(status): int(number) for status, number in connection.execute(query).tuples()}
        return {status: found.get(status, 0) for status in STATUSES}

    def tickets(
        self, state: TicketStatus | None = None, purpose: Purpose | None = None, generation: int | None = None
    ) -> list[TicketRecord]:
        """Return tickets, by id; all, or those of a status, a purpose, a generation."""
        query = sa.select(tickets).order_by(tickets.c.ticket_id)
        for column, value in ((tickets.c.status, state), (tickets.c.purpose, purpose)):
            query = query if value is None else query.where(column == value)
        if generation is not None:
            query = query.where(tickets.c.generation == generation)
        with self._database.read() as connection:
            return sorted(map(ticket_record, connection.execute(query).mappings()), key=lambda t: t.ticket_id)

    def accepted(self, purpose: Purpose | None = "pool") -> list[AcceptedAnnotation]:
        """Return the accepted labels of each ticket of a purpose (of all when None), by ticket id."""
        query = sa.select(tickets, *(annotations.c[name] for name in _ANNOTATION)).join(
            annotations, annotations.c.ticket_id == tickets.c.ticket_id
        )
        query = query.where(annotations.c.verdict == "accepted").order_by(annotations.c.version)
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

    def annotations(self, ticket_id: str) -> list[AnnotationRecord]:
        """Return every version that was handed in for a ticket, oldest first."""
        query = sa.select(annotations).where(annotations.c.ticket_id == ticket_id).order_by(annotations.c.version)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [AnnotationRecord(**{name: row[name] for name in AnnotationRecord.model_fields}) for row in rows]

    def history(self, ticket_id: str) -> list[AuditEntry]:
        """Return every change of a ticket, oldest first.

        Raises
        ------
        TicketNotFoundError
            If there is none of that id.
        """
        query = sa.select(audit).where(audit.c.ticket_id == ticket_id).order_by(audit.c.number)
        with self._database.read() as connection:
            self._ticket(connection, ticket_id)
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]

    # common -------------------------------------------------------------------------------------------------------

    def _apply(self, connection: Connection, ticket_id: str, event: Event, now: datetime) -> TicketState:
        instructions = transition(load(connection, ticket_id, lock=True), event)
        execute(connection, instructions, now)
        return instructions.ticket

    def _on_lease(self, event: Heartbeat | Release | Skip) -> Lease:
        with self._database.write() as connection:
            self._apply(connection, self._ticket_of(connection, event.lease_id), event, event.now)
            return self._lease(connection, event.lease_id)

    def _ticket_of(self, connection: Connection, lease_id: str) -> str:
        return self._lease(connection, lease_id).ticket_id

    def _annotation(self, connection: Connection, which: sa.ColumnElement[bool]) -> AnnotationRecord:
        query = sa.select(annotations).where(which).order_by(annotations.c.version.desc())
        row = connection.execute(query).mappings().first()
        if row is None:
            raise QueueError("the annotation is missing from the database", todo="Restore the database from its backup")
        return AnnotationRecord(**{name: row[name] for name in AnnotationRecord.model_fields})


_ANNOTATION = (
    "annotation_id",
    "version",
    "labels",
    "labels_digest",
    "annotator",
    "tool",
    "seconds",
    "voxels_corrected",
)
