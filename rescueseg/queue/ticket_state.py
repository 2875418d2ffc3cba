"""A ticket's state, on which the state machine works, and functions that its handlers of events share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from rescueseg.errors import TicketNotFoundError
from rescueseg.queue.events import AnnotationState, Audit, Instruction, LeaseState, Reservation, SetStatus
from rescueseg.queue.records import TicketStatus
from rescueseg.records import Purpose
from rescueseg.storage import digest_json


@dataclass(frozen=True)
class TicketState:
    """All that decides what may happen to a ticket."""

    ticket_id: str
    status: TicketStatus
    assignments: tuple[int, ...]
    leases: tuple[LeaseState, ...] = ()
    annotations: tuple[AnnotationState, ...] = ()
    purpose: Purpose = "pool"
    prefill: str | None = None
    reservations: tuple[Reservation, ...] = ()
    agreement: float | None = None

    def lease(self, lease_id: str) -> LeaseState:
        """Return a lease of this ticket.

        Raises
        ------
        TicketNotFoundError
            If there is none of that id.
        """
        for lease in self.leases:
            if lease.lease_id == lease_id:
                return lease
        raise TicketNotFoundError("there is no such lease", where=lease_id, todo="Claim a ticket first")

    @property
    def running_leases(self) -> tuple[LeaseState, ...]:
        """Leases that have not ended."""
        return tuple(lease for lease in self.leases if lease.ended is None)

    @property
    def standing_annotations(self) -> tuple[AnnotationState, ...]:
        """Annotations that were not rejected."""
        return tuple(a for a in self.annotations if a.verdict != "rejected")

    def open_assignments(self, annotator: str, now: datetime) -> list[int]:
        """Return the assignments that this person may take.

        These are neither leased nor done nor reserved for somebody else. Nobody gets both halves of a blind pair: not
        beside another part of theirs, nor after they made or saw the labels of the other half, which was sent back.

        Examples
        --------
        >>> from datetime import UTC, datetime, timedelta
        >>> now = datetime(2026, 1, 1, tzinfo=UTC)
        >>> lease = LeaseState("lease-1", 1, "anna", now, now + timedelta(hours=2), seconds=7200)
        >>> pair = TicketState("ticket-1", "leased", assignments=(1, 2), leases=(lease,))
        >>> pair.open_assignments("anna", now), pair.open_assignments("bob", now)
        ([], [2])
        """
        parts = [(lease.assignment_id, lease.annotator) for lease in self.running_leases]
        parts += [(a.assignment_id, a.annotator) for a in self.standing_annotations if a.assignment_id is not None]
        if annotator in [who for _, who in parts]:
            return []
        closed = {number for number, _ in parts} | {
            r.assignment_id for r in self.reservations if r.annotator != annotator and r.until > now
        }
        own = self._own_assignments(annotator)
        return [n for n in self.assignments if n not in closed and (n in own or not own)]

    def _own_assignments(self, annotator: str) -> set[int]:
        """Return the assignments whose labels this person made, or went on from."""
        submissions = {
            (a.assignment_id, self.lease(a.lease_id).granted_at) for a in self.annotations if a.lease_id is not None
        }
        return {
            lease.assignment_id
            for lease in self.leases
            if lease.annotator == annotator
            and any(number == lease.assignment_id and at <= lease.granted_at for number, at in submissions)
        }

    def with_lease(self, lease: LeaseState) -> TicketState:
        """Return the ticket with one lease added or replaced."""
        others = tuple(other for other in self.leases if other.lease_id != lease.lease_id)
        return replace(self, leases=(*others, lease))

    def next_status(self) -> TicketStatus:
        """Return the status that follows from leases and annotations.

        Examples
        --------
        A blind pair of which one half is handed in waits for the other:

        >>> half = AnnotationState("annotation-1", 1, "lease-1", 1, "anna", "digest")
        >>> TicketState("ticket-1", "leased", assignments=(1, 2), annotations=(half,)).next_status()
        'queued'
        >>> TicketState("ticket-2", "leased", assignments=(1,), annotations=(half,)).next_status()
        'submitted'
        """
        if self.running_leases:
            return "leased"
        return (
            "submitted" if {a.assignment_id for a in self.standing_annotations} >= set(self.assignments) else "queued"
        )


@dataclass(frozen=True)
class Instructions:
    """The ticket after an event, and what brings the database there, in order."""

    ticket: TicketState
    steps: tuple[Instruction, ...] = ()


def annotation_id(ticket_id: str, version: int, digest: str) -> str:
    """Return the id of a version: the same work gets the same id in every run of a campaign.

    Examples
    --------
    >>> annotation_id("ticket-1", 1, "digest")
    '4e13dcda4fcf42ed93e0add73966dbab'
    """
    return digest_json([ticket_id, version, digest])[:32]


def move(ticket: TicketState, after: TicketStatus, audit: Audit, *steps: Instruction) -> Instructions:
    """Return instructions that end in a status, with their line in the audit trail."""
    moved = replace(ticket, status=after)
    return Instructions(moved, (*steps, SetStatus(after), audit))


def chain(first: Instructions, second: Instructions) -> Instructions:
    """Return the instructions of two steps, the second of which starts where the first ends."""
    return Instructions(second.ticket, (*first.steps, *second.steps))
