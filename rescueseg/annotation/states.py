"""The ticket's state machine: events in, instructions out, no input or output of its own.

::

    queued ──Claim──► leased ──Submit──► submitted ──Accept──► accepted
      ▲                 │                    │
      │◄─Release,Expire─┤                    └──Reject──► rejected ──► queued
      └── (claimed by its id again) ◄─ skipped ◄──Skip─┘ (from leased)

`transition` looks at one ticket and one event and returns the ticket as it will be, with the instructions that
bring the database there, the audit entries among them; a replayed event returns no instructions. The store
executes them in one transaction. The pattern is that of the Dask worker's state machine
(https://distributed.dask.org/en/stable/worker-state.html).

A ticket has one or more assignments. Each can be under at most one running lease, and is done when it has an
annotation that was not rejected; the ticket's status follows from its assignments until a reviewer decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from rescueseg.annotation.events import (
    Accept,
    AnnotationState,
    Audit,
    Claim,
    Decide,
    EndLease,
    Event,
    Expire,
    ExtendLease,
    GrantLease,
    Heartbeat,
    Instruction,
    LeaseState,
    Prefill,
    Reject,
    Release,
    SetPrefill,
    SetStatus,
    Skip,
    StoreAnnotation,
    Submit,
)
from rescueseg.annotation.records import LeaseEnd, TicketStatus, Verdict
from rescueseg.errors import LeaseExpiredError, NotYourLeaseError, QueueError, TicketNotFoundError
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
    def running(self) -> tuple[LeaseState, ...]:
        """Leases that have not ended."""
        return tuple(lease for lease in self.leases if lease.ended is None)

    @property
    def standing(self) -> tuple[AnnotationState, ...]:
        """Annotations that were not rejected."""
        return tuple(a for a in self.annotations if a.verdict != "rejected")

    def open_assignments(self, annotator: str) -> list[int]:
        """Return the assignments that this person may take: neither leased nor done, and no other part is theirs."""
        parts: tuple[LeaseState | AnnotationState, ...] = (*self.running, *self.standing)
        if any(part.annotator == annotator for part in parts):
            return []
        taken = {part.assignment_id for part in parts}
        return [number for number in self.assignments if number not in taken]

    def with_lease(self, lease: LeaseState) -> TicketState:
        """Return the ticket with one lease added or replaced."""
        others = tuple(other for other in self.leases if other.lease_id != lease.lease_id)
        return replace(self, leases=(*others, lease))

    def following(self) -> TicketStatus:
        """Return the status that follows from the assignments."""
        if self.running:
            return "leased"
        return "submitted" if {a.assignment_id for a in self.standing} >= set(self.assignments) else "queued"


@dataclass(frozen=True)
class Instructions:
    """The ticket after an event, and what brings the database there, in order."""

    ticket: TicketState
    steps: tuple[Instruction, ...] = ()


def annotation_id(ticket_id: str, version: int, digest: str) -> str:
    """Return the id of a version: the same work gets the same id in every run of a campaign."""
    return digest_json([ticket_id, version, digest])[:32]


def transition(ticket: TicketState, event: Event) -> Instructions:
    """Return what an event does to a ticket.

    Parameters
    ----------
    ticket : TicketState
        As the database holds it.
    event : Event
        What happened.

    Returns
    -------
    Instructions
        No steps when the event changes nothing: a replay, or an expiry that is not due.

    Raises
    ------
    LeaseExpiredError
        If the lease ran out before the event.
    NotYourLeaseError
        If the lease belongs to somebody else.
    TicketNotFoundError
        If the ticket has no such lease.
    QueueError
        If the ticket's status does not allow the event.
    """
    return _HANDLERS[type(event)](ticket, event)


def _move(ticket: TicketState, after: TicketStatus, audit: Audit, *steps: Instruction) -> Instructions:
    """Return instructions that end in a status, with their line in the audit trail."""
    moved = replace(ticket, status=after)
    return Instructions(moved, (*steps, SetStatus(after), audit))


def _chain(first: Instructions, second: Instructions) -> Instructions:
    return Instructions(second.ticket, (*first.steps, *second.steps))


def _running_lease(ticket: TicketState, lease_id: str, annotator: str, now: datetime) -> LeaseState:
    """Return a lease that this person holds now."""
    lease = ticket.lease(lease_id)
    if lease.annotator != annotator:
        raise NotYourLeaseError(
            f"the lease belongs to '{lease.annotator}', not to '{annotator}'",
            where=f"ticket {ticket.ticket_id}",
            todo="Claim a ticket under your own name",
        )
    if lease.ended == "expired" or (lease.ended is None and lease.expires_at <= now):
        raise LeaseExpiredError(
            f"the lease ended at {lease.expires_at:%Y-%m-%d %H:%M:%S} UTC",
            where=f"ticket {ticket.ticket_id}",
            todo="Nothing was changed; claim the ticket again by its id, then hand in the same labels",
        )
    if lease.ended is not None:
        raise QueueError(
            f"the lease is over: it was {lease.ended}",
            where=f"ticket {ticket.ticket_id}",
            todo="Claim the ticket again to go on with it",
        )
    return lease


def _claim(ticket: TicketState, event: Claim) -> Instructions:
    expired = _expire(ticket, Expire(event.now))
    ticket = expired.ticket
    takeable = ("queued", "leased", "skipped") if event.by_id else ("queued", "leased")
    free = ticket.open_assignments(event.annotator) if ticket.status in takeable else []
    if not free:
        holders = ", ".join(sorted(f"'{lease.annotator}'" for lease in ticket.running))
        raise QueueError(
            f"the ticket is {ticket.status}{f' by {holders}' if holders else ''} and cannot be claimed by "
            f"'{event.annotator}'",
            where=f"ticket {ticket.ticket_id}",
            todo="Claim another one",
        )
    expires_at = event.now + timedelta(seconds=event.seconds)
    lease = LeaseState(event.lease_id, free[0], event.annotator, event.now, expires_at, event.seconds)
    audit = Audit(
        "claimed",
        event.annotator,
        ticket.status,
        "leased",
        event.lease_id,
        {"assignment_id": free[0], "expires_at": expires_at.isoformat()},
    )
    return _chain(expired, _move(ticket.with_lease(lease), "leased", audit, GrantLease(lease)))


def _heartbeat(ticket: TicketState, event: Heartbeat) -> Instructions:
    lease = _running_lease(ticket, event.lease_id, event.annotator, event.now)
    expires_at = max(lease.expires_at, event.now + timedelta(seconds=lease.seconds))
    if expires_at == lease.expires_at:
        return Instructions(ticket)
    audit = Audit(
        "extended",
        event.annotator,
        ticket.status,
        ticket.status,
        lease.lease_id,
        {"expires_at": expires_at.isoformat()},
    )
    extended = ticket.with_lease(replace(lease, expires_at=expires_at))
    return Instructions(extended, (ExtendLease(lease.lease_id, expires_at), audit))


def _submit(ticket: TicketState, event: Submit) -> Instructions:
    lease = ticket.lease(event.lease_id)
    for done in ticket.annotations:
        if (done.lease_id, done.digest, done.annotator) == (lease.lease_id, event.digest, event.annotator):
            return Instructions(ticket)
    lease = _running_lease(ticket, event.lease_id, event.annotator, event.now)
    version = 1 + max((a.version for a in ticket.annotations), default=0)
    annotation = AnnotationState(
        annotation_id(ticket.ticket_id, version, event.digest),
        lease.assignment_id,
        lease.lease_id,
        version,
        event.annotator,
        event.digest,
    )
    done_ticket = replace(
        ticket.with_lease(replace(lease, ended="submitted")), annotations=(*ticket.annotations, annotation)
    )
    details = {"annotation_id": annotation.annotation_id, "version": version, "digest": event.digest}
    audit = Audit("submitted", event.annotator, ticket.status, done_ticket.following(), lease.lease_id, details)
    submitted = _move(
        done_ticket, done_ticket.following(), audit, EndLease(lease.lease_id, "submitted"), StoreAnnotation(annotation)
    )
    if event.accept and submitted.ticket.status == "submitted":
        return _chain(submitted, _accept(submitted.ticket, Accept(event.annotator)))
    return submitted


def _give_back(ticket: TicketState, event: Release | Skip, ended: LeaseEnd) -> Instructions:
    """End a lease without labels."""
    held = ticket.lease(event.lease_id)
    if held.annotator == event.annotator and held.ended == ended:
        return Instructions(ticket)
    lease = _running_lease(ticket, event.lease_id, event.annotator, event.now)
    given = ticket.with_lease(replace(lease, ended=ended))
    if isinstance(event, Skip):
        others = [other for other in given.running if other.lease_id != lease.lease_id]
        if others or given.standing:
            raise QueueError(
                "somebody else works on the ticket or has handed it in",
                where=f"ticket {ticket.ticket_id}",
                todo="Release it instead of skipping it",
            )
        audit = Audit("skipped", event.annotator, ticket.status, "skipped", lease.lease_id, {"reason": event.reason})
        return _move(given, "skipped", audit, EndLease(lease.lease_id, ended))
    audit = Audit("released", event.annotator, ticket.status, given.following(), lease.lease_id)
    return _move(given, given.following(), audit, EndLease(lease.lease_id, ended))


def _expire(ticket: TicketState, event: Expire) -> Instructions:
    result = Instructions(ticket)
    for lease in ticket.running:
        if lease.expires_at <= event.now:
            after = result.ticket.with_lease(replace(lease, ended="expired"))
            audit = Audit("expired", lease.annotator, result.ticket.status, after.following(), lease.lease_id)
            step = _move(after, after.following(), audit, EndLease(lease.lease_id, "expired"))
            result = _chain(result, step)
    return result


def _judge(ticket: TicketState, verdict: Verdict, only: str | None = None) -> TicketState:
    """Return the ticket with a verdict on its undecided annotations, or on one of them."""
    judged = tuple(
        replace(a, verdict=verdict) if a.verdict == "submitted" and only in (None, a.annotation_id) else a
        for a in ticket.annotations
    )
    return replace(ticket, annotations=judged)


def _accept(ticket: TicketState, event: Accept) -> Instructions:
    if ticket.status == "accepted":
        return Instructions(ticket)
    if ticket.status != "submitted":
        raise QueueError(
            f"the ticket is {ticket.status}; only a submitted one can be accepted",
            where=f"ticket {ticket.ticket_id}",
            todo="Wait until its labels are handed in",
        )
    latest = max(ticket.standing, key=lambda a: a.version)
    audit = Audit(
        "accepted",
        event.actor,
        ticket.status,
        "accepted",
        latest.lease_id,
        {"annotation_id": latest.annotation_id, "version": latest.version},
    )
    judged = _judge(ticket, "accepted", latest.annotation_id)
    return _move(judged, "accepted", audit, Decide(latest.annotation_id, "accepted", event.actor))


def _reject(ticket: TicketState, event: Reject) -> Instructions:
    if ticket.status == "queued" and ticket.annotations and not ticket.standing:
        return Instructions(ticket)
    if ticket.status != "submitted":
        raise QueueError(
            f"the ticket is {ticket.status}; only a submitted one can be rejected",
            where=f"ticket {ticket.ticket_id}",
            todo="An accepted annotation stays; add a new ticket for the same patch to replace it"
            if ticket.status == "accepted"
            else "Wait until its labels are handed in",
        )
    undecided = [a.annotation_id for a in ticket.standing]
    details = {"comment": event.comment, "annotation_ids": undecided}
    rejected = _move(
        _judge(ticket, "rejected"),
        "rejected",
        Audit("rejected", event.actor, ticket.status, "rejected", details=details),
        *(Decide(number, "rejected", event.actor, event.comment) for number in undecided),
    )
    audit = Audit("requeued", event.actor, "rejected", "queued")
    return _chain(rejected, _move(rejected.ticket, "queued", audit))


def _prefill(ticket: TicketState, event: Prefill) -> Instructions:
    """Give a waiting ticket its first mask; what somebody works on, or has worked on, stays as it is."""
    if ticket.purpose != "pool":
        raise QueueError(
            f"a {ticket.purpose} ticket is annotated without a first mask, which could bias it",
            where=f"ticket {ticket.ticket_id}",
            todo="Prefill pool tickets only",
        )
    if ticket.status != "queued":
        raise QueueError(
            f"the ticket is {ticket.status}; only a queued one can be given a first mask",
            where=f"ticket {ticket.ticket_id}",
            todo="Leave it to its annotator",
        )
    if ticket.prefill == event.path:
        return Instructions(ticket)
    audit = Audit("prefilled", "rescueseg", "queued", "queued", details={"method": event.method, "prefill": event.path})
    return Instructions(replace(ticket, prefill=event.path), (SetPrefill(event.path), audit))


_HANDLERS: dict[type, Callable[[TicketState, Any], Instructions]] = {
    Claim: _claim,
    Heartbeat: _heartbeat,
    Submit: _submit,
    Release: lambda ticket, event: _give_back(ticket, event, "released"),
    Skip: lambda ticket, event: _give_back(ticket, event, "skipped"),
    Expire: _expire,
    Accept: _accept,
    Reject: _reject,
    Prefill: _prefill,
}
