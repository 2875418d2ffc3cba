"""Verdicts of reviewers, their own versions, and the agreement of blind pairs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.queue.database import Database
from rescueseg.queue.events import Accept, Compare, Fix, Reject
from rescueseg.queue.execute import Clock, apply
from rescueseg.queue.records import AnnotationRecord, Origin
from rescueseg.queue.rows import read_annotation
from rescueseg.queue.submission import StoredLabels, Work, annotation_columns
from rescueseg.queue.tables import annotation_table


class Reviews:
    """What a reviewer does to tickets; each call is one immediate transaction.

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

    def accept(self, ticket_id: str, actor: str, version: int | None = None) -> AnnotationRecord:
        """Accept a version of a submitted ticket, the latest when None; again is no error.

        Raises
        ------
        QueueError
            If the ticket is not submitted, or has no such version.
        TicketNotFoundError
            If there is none of that id.
        """
        with self._database.write() as connection:
            apply(connection, ticket_id, Accept(actor, version), self._clock())
            return _accepted(connection, ticket_id)

    def reject(self, ticket_id: str, actor: str, comment: str, return_seconds: float = 0.0) -> None:
        """Send a submitted ticket back to the queue; the next annotator goes on from the rejected labels.

        For `return_seconds` it is reserved for who handed it in, each half of a pair for its own annotator. Errors as in
        `accept`.
        """
        now = self._clock()
        until = now + timedelta(seconds=return_seconds) if return_seconds > 0 else None
        with self._database.write() as connection:
            apply(connection, ticket_id, Reject(actor, comment, until), now)

    def fix(
        self,
        ticket_id: str,
        actor: str,
        labels: StoredLabels,
        work: Work,
        *,
        origin: Origin = "reviewer",
        provenance: Mapping[str, Any] | None = None,
    ) -> AnnotationRecord:
        """Add a reviewer's or a consensus' version of a submitted ticket and accept it; again is no error.

        Parameters
        ----------
        ticket_id, actor : str
            The ticket, and who made the labels.
        labels : StoredLabels
            The labels.
        work : Work
            Its tool, and its time as stated; there is no lease under which it could be counted.
        origin : {"reviewer", "consensus"}
            What made them.
        provenance : mapping, optional
            How a consensus was made.

        Raises
        ------
        QueueError, TicketNotFoundError
            As `accept`.
        """
        columns = annotation_columns(labels, work.tool) | {"provenance": provenance}
        event = Fix(actor, labels.digest, origin, float(work.seconds or 0.0))
        with self._database.write() as connection:
            apply(connection, ticket_id, event, self._clock(), columns)
            return _accepted(connection, ticket_id)

    def record_agreement(
        self, ticket_id: str, annotation_ids: tuple[str, str], agreement: float, details: Mapping[str, Any]
    ) -> None:
        """Write down how well the halves of a submitted blind pair agree; again is no error.

        Raises
        ------
        QueueError
            If the ticket is not submitted, or other labels wait there.
        """
        with self._database.write() as connection:
            apply(connection, ticket_id, Compare(annotation_ids, agreement, details), self._clock())


def _accepted(connection: Connection, ticket_id: str) -> AnnotationRecord:
    is_it = sa.and_(annotation_table.c.ticket_id == ticket_id, annotation_table.c.verdict == "accepted")
    return read_annotation(connection, is_it)
