"""What a campaign does to its tickets: they are queued, given a first mask, withdrawn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.errors import QueueError
from rescueseg.queue.database import Database
from rescueseg.queue.events import Prefill, Withdraw
from rescueseg.queue.execute import Clock, apply, box_columns, classes_text
from rescueseg.queue.records import NewTicket
from rescueseg.queue.rows import read_ticket
from rescueseg.queue.tables import assignments, audit, tickets


class Tickets:
    """What a campaign does to tickets that nobody works on; each call is one immediate transaction.

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

    def add(self, new: Sequence[NewTicket]) -> int:
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
                added += self._add(connection, ticket, now)
        return added

    def _add(self, connection: Connection, ticket: NewTicket, now: datetime) -> bool:
        plain = ticket.model_dump(exclude={"box"}) | {"classes": classes_text(ticket.classes)}
        values = plain | box_columns(ticket.box) | {"status": "queued", "created_at": now, "updated_at": now}
        insert = self._database.insert_if_new(tickets).values(values)
        if connection.execute(insert).rowcount == 0:
            existing = read_ticket(connection, ticket.ticket_id)
            if (existing.patch, existing.purpose) != (ticket.patch, ticket.purpose):
                raise QueueError(
                    f"there is a ticket of that id for {existing.purpose} patch {existing.box} of '{existing.volume_id}'",
                    where=f"ticket {ticket.ticket_id}",
                    todo="Give the new ticket another id",
                )
            return False
        parts = [{"ticket_id": ticket.ticket_id, "number": n + 1} for n in range(ticket.annotators)]
        connection.execute(sa.insert(assignments), parts)
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

    def prefill(self, ticket_id: str, path: str | None, method: str, classes: Sequence[str] = ()) -> None:
        """Give a queued pool ticket the mask that its annotator starts from; the same one again changes nothing.

        Parameters
        ----------
        ticket_id : str
            The ticket.
        path : str, optional
            Path of the mask below the campaign (npz, uint8 zyx); without one the ticket starts empty again.
        method : str
            What made it, for the audit trail.
        classes : sequence of str
            Names of the classes it holds.

        Raises
        ------
        QueueError
            If the ticket is not queued, or is one of the holdout.
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.write() as connection:
            apply(connection, ticket_id, Prefill(path, method, tuple(classes)), self._clock())

    def withdraw(self, ticket_id: str, actor: str, reason: str) -> None:
        """Take a ticket that nobody works on out of the queue; again is no error.

        Raises
        ------
        QueueError
            If somebody works on it or has handed it in.
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.write() as connection:
            apply(connection, ticket_id, Withdraw(actor, reason), self._clock())
