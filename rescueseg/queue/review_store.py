"""The reviewing half of the `QueueStore`: verdicts, a reviewer's own versions, agreement of blind pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.errors import QueueError
from rescueseg.queue.events import Accept, Compare, Event, Fix, Reject
from rescueseg.queue.execute import execute, labels_digest, load
from rescueseg.queue.records import AnnotationRecord, Origin
from rescueseg.queue.states import TicketState, transition
from rescueseg.queue.tables import annotation_table
from rescueseg.queue.views import QueueViews
from rescueseg.records import LabelReference


class ReviewStore(QueueViews):
    """What a reviewer does to tickets; each call one immediate transaction."""

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
            self._apply(connection, ticket_id, Accept(actor, version), self._clock())
            return self._accepted(connection, ticket_id)

    def reject(self, ticket_id: str, actor: str, comment: str, return_seconds: float = 0.0) -> None:
        """Send a submitted ticket back to the queue; the next annotator goes on from the rejected labels.

        For `return_seconds` it is reserved for who handed it in, each half of a pair for its own annotator. Errors as in
        `accept`.
        """
        now = self._clock()
        until = now + timedelta(seconds=return_seconds) if return_seconds > 0 else None
        with self._database.write() as connection:
            self._apply(connection, ticket_id, Reject(actor, comment, until), now)

    def fix(
        self,
        ticket_id: str,
        actor: str,
        label: LabelReference,
        tool: str,
        voxels_corrected: int,
        *,
        seconds: float = 0.0,
        instances: LabelReference | None = None,
        origin: Origin = "reviewer",
        provenance: Mapping[str, Any] | None = None,
    ) -> AnnotationRecord:
        """Add a reviewer's or a consensus' version of a submitted ticket and accept it; again is no error.

        Parameters as in `QueueStore.submit`; `provenance` says how a consensus was made. Errors as in `accept`.
        """
        check_seconds(seconds)
        digest = labels_digest(label.digest, instances.digest if instances else None)
        columns = annotation_columns(label, instances, tool, voxels_corrected) | {"provenance": provenance}
        with self._database.write() as connection:
            state = load(connection, ticket_id, lock=True)
            instructions = transition(state, Fix(actor, digest, origin, float(seconds)))
            execute(connection, instructions, self._clock(), columns)
            return self._accepted(connection, ticket_id)

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
            self._apply(connection, ticket_id, Compare(annotation_ids, agreement, details), self._clock())

    def _apply(self, connection: Connection, ticket_id: str, event: Event, now: datetime) -> TicketState:
        instructions = transition(load(connection, ticket_id, lock=True), event)
        execute(connection, instructions, now)
        return instructions.ticket

    def _accepted(self, connection: Connection, ticket_id: str) -> AnnotationRecord:
        is_it = sa.and_(annotation_table.c.ticket_id == ticket_id, annotation_table.c.verdict == "accepted")
        return self._annotation(connection, is_it)


def annotation_columns(
    label: LabelReference, instances: LabelReference | None, tool: str, corrected: int
) -> dict[str, Any]:
    """Return the columns of a version that come with its labels."""
    return {
        "labels": label.path,
        "labels_digest": label.digest,
        "instances": instances.path if instances else None,
        "instances_digest": instances.digest if instances else None,
        "tool": tool,
        "voxels_corrected": int(corrected),
    }


def check_seconds(seconds: float) -> None:
    """Make sure that a working time is a number of seconds from 0 on.

    Raises
    ------
    QueueError
        If it is not.
    """
    if not 0 <= seconds < math.inf:
        raise QueueError(f"{seconds} is no working time in seconds", todo="Give a number from 0 on")
