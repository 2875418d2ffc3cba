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

A ticket has one assignment, or the two of a blind pair, for two people. Each can be under at most one running lease,
and is done when it has an annotation that was not rejected; the ticket's status follows from its assignments until a
reviewer decides. Work that was sent back is kept for who did it for a while. A reviewer's own version, or a consensus
of a pair, belongs to no assignment.

Each lease counts its working time: what the tool reports as active, else the gaps between heartbeats, the long ones
cut. For a tool without heartbeats (a file that is handed in) the whole time counts, which the lease's length limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from rescueseg.errors import LeaseExpiredError, NotYourLeaseError, QueueError
from rescueseg.queue.events import (
    Accept,
    AnnotationState,
    Audit,
    Claim,
    Compare,
    EndLease,
    Event,
    Expire,
    ExtendLease,
    Fix,
    GrantLease,
    Heartbeat,
    LeaseState,
    Prefill,
    Reject,
    Release,
    SetPrefill,
    Skip,
    StoreAnnotation,
    Submit,
    Withdraw,
)
from rescueseg.queue.records import LeaseEnd
from rescueseg.queue.review_states import accept, compare, fix, reject
from rescueseg.queue.ticket_state import Instructions, TicketState, annotation_id, chain, move

__all__ = ["Instructions", "TicketState", "annotation_id", "transition"]


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

    Examples
    --------
    >>> from datetime import UTC, datetime
    >>> ticket = TicketState("ticket-1", "queued", assignments=(1,))
    >>> claim = Claim("lease-1", "anna", now=datetime(2026, 1, 1, tzinfo=UTC), seconds=7200)
    >>> result = transition(ticket, claim)
    >>> result.ticket.status
    'leased'
    >>> [type(step).__name__ for step in result.steps]
    ['GrantLease', 'SetStatus', 'Audit']
    >>> transition(result.ticket, Release("lease-1", "anna", claim.now)).ticket.status
    'queued'
    """
    return _HANDLERS[type(event)](ticket, event)


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
    free = ticket.open_assignments(event.annotator, event.now) if ticket.status in takeable else []
    if not free:
        holders = ", ".join(sorted(f"'{lease.annotator}'" for lease in ticket.running_leases))
        recipients = ", ".join(f"'{r.annotator}' until {r.until:%Y-%m-%d %H:%M} UTC" for r in ticket.reservations)
        raise QueueError(
            f"the ticket is {ticket.status}{f' by {holders}' if holders else ''}"
            f"{f', was sent back to {recipients}' if recipients and not holders else ''} and cannot be claimed by "
            f"'{event.annotator}'",
            where=f"ticket {ticket.ticket_id}",
            todo="Claim another one",
        )
    expires_at = event.now + timedelta(seconds=event.seconds)
    lease = LeaseState(
        event.lease_id,
        free[0],
        event.annotator,
        event.now,
        expires_at,
        event.seconds,
        idle_seconds=event.idle_seconds,
    )
    audit = Audit(
        "claimed",
        event.annotator,
        ticket.status,
        "leased",
        event.lease_id,
        {"assignment_id": free[0], "expires_at": expires_at.isoformat()},
    )
    return chain(expired, move(ticket.with_lease(lease), "leased", audit, GrantLease(lease)))


def _heartbeat(ticket: TicketState, event: Heartbeat) -> Instructions:
    lease = _running_lease(ticket, event.lease_id, event.annotator, event.now)
    expires_at = max(lease.expires_at, event.now + timedelta(seconds=lease.seconds))
    gap = _gap(lease, event.now)
    work = lease.active_seconds + min(gap, event.active_seconds or lease.idle_seconds)
    if expires_at == lease.expires_at and work == lease.active_seconds:
        return Instructions(ticket)
    seen_at = max(lease.seen_at or event.now, event.now)
    audit = Audit(
        "extended",
        event.annotator,
        ticket.status,
        ticket.status,
        lease.lease_id,
        {"expires_at": expires_at.isoformat(), "active_seconds": round(work, 1)},
    )
    extended = ticket.with_lease(replace(lease, expires_at=expires_at, active_seconds=work, seen_at=seen_at))
    return Instructions(extended, (ExtendLease(lease.lease_id, expires_at, work, seen_at), audit))


def _gap(lease: LeaseState, now: datetime) -> float:
    """Return the seconds since a lease's last heartbeat, or since it was granted."""
    return max(0.0, (now - (lease.seen_at or lease.granted_at)).total_seconds())


def _end(lease: LeaseState, ended: LeaseEnd, now: datetime, active_seconds: float = 0.0) -> LeaseState:
    """End a lease and add the working time since the last heartbeat; `active_seconds` is what the tool reports of it."""
    gap = _gap(lease, now)
    last = gap if lease.seen_at is None and not active_seconds else min(gap, active_seconds or lease.idle_seconds)
    return replace(lease, ended=ended, active_seconds=lease.active_seconds + last)


def _submit(ticket: TicketState, event: Submit) -> Instructions:
    lease = ticket.lease(event.lease_id)
    for previous in ticket.annotations:
        if (previous.lease_id, previous.digest, previous.annotator) == (lease.lease_id, event.digest, event.annotator):
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
    ended_lease = _end(lease, "submitted", event.now, event.active_seconds)
    if event.seconds is not None:
        ended_lease = replace(ended_lease, active_seconds=event.seconds)
    after = replace(ticket.with_lease(ended_lease), annotations=(*ticket.annotations, annotation))
    details: dict[str, Any] = {"annotation_id": annotation.annotation_id, "version": version, "digest": event.digest}
    if event.overridden:
        details["overridden"] = list(event.overridden)
    audit = Audit("submitted", event.annotator, ticket.status, after.next_status(), lease.lease_id, details)
    submitted = move(
        after,
        after.next_status(),
        audit,
        EndLease(lease.lease_id, "submitted", ended_lease.active_seconds),
        StoreAnnotation(annotation, ended_lease.active_seconds),
    )
    if event.accept and submitted.ticket.status == "submitted" and len(ticket.assignments) == 1:
        return chain(submitted, accept(submitted.ticket, Accept(event.annotator)))
    return submitted


def _end_without_labels(ticket: TicketState, event: Release | Skip, ended: LeaseEnd) -> Instructions:
    lease = ticket.lease(event.lease_id)
    if lease.annotator == event.annotator and lease.ended == ended:
        return Instructions(ticket)
    lease = _running_lease(ticket, event.lease_id, event.annotator, event.now)
    ended_lease = _end(lease, ended, event.now)
    after = ticket.with_lease(ended_lease)
    end = EndLease(lease.lease_id, ended, ended_lease.active_seconds)
    if isinstance(event, Skip):
        others = [other for other in after.running_leases if other.lease_id != lease.lease_id]
        if others or after.standing_annotations:
            raise QueueError(
                "somebody else works on the ticket or has handed it in",
                where=f"ticket {ticket.ticket_id}",
                todo="Release it instead of skipping it",
            )
        audit = Audit("skipped", event.annotator, ticket.status, "skipped", lease.lease_id, {"reason": event.reason})
        return move(after, "skipped", audit, end)
    audit = Audit("released", event.annotator, ticket.status, after.next_status(), lease.lease_id)
    return move(after, after.next_status(), audit, end)


def _expire(ticket: TicketState, event: Expire) -> Instructions:
    result = Instructions(ticket)
    for lease in ticket.running_leases:
        if lease.expires_at <= event.now:
            after = result.ticket.with_lease(replace(lease, ended="expired"))
            audit = Audit("expired", lease.annotator, result.ticket.status, after.next_status(), lease.lease_id)
            step = move(after, after.next_status(), audit, EndLease(lease.lease_id, "expired", lease.active_seconds))
            result = chain(result, step)
    return result


def _withdraw(ticket: TicketState, event: Withdraw) -> Instructions:
    if ticket.status == "skipped":
        return Instructions(ticket)
    if ticket.status != "queued" or ticket.standing_annotations:
        raise QueueError(
            f"the ticket is {ticket.status}; only one that nobody works on can be withdrawn",
            where=f"ticket {ticket.ticket_id}",
            todo="Reject it first, or leave it to its annotator",
        )
    audit = Audit("skipped", event.actor, ticket.status, "skipped", details={"reason": event.reason})
    return move(ticket, "skipped", audit)


def _prefill(ticket: TicketState, event: Prefill) -> Instructions:
    """Give a waiting ticket its first mask; what somebody works on, or has worked on, stays as it is."""
    if ticket.purpose != "pool":
        raise QueueError(
            f"a {ticket.purpose} ticket is annotated without a first mask, which could bias it",
            where=f"ticket {ticket.ticket_id}",
            todo="Prefill pool tickets only",
        )
    if ticket.status != "queued" or ticket.standing_annotations:
        raise QueueError(
            f"the ticket is {'half done' if ticket.standing_annotations else ticket.status}; only a queued one can be given a "
            "first mask",
            where=f"ticket {ticket.ticket_id}",
            todo="Leave it to its annotator",
        )
    if ticket.prefill == event.path:
        return Instructions(ticket)
    details = {"method": event.method, "prefill": event.path or "none"}
    audit = Audit("prefilled", "rescueseg", "queued", "queued", details=details)
    return Instructions(replace(ticket, prefill=event.path), (SetPrefill(event.path, event.classes), audit))


_HANDLERS: dict[type, Callable[[TicketState, Any], Instructions]] = {
    Claim: _claim,
    Heartbeat: _heartbeat,
    Submit: _submit,
    Release: lambda ticket, event: _end_without_labels(ticket, event, "released"),
    Skip: lambda ticket, event: _end_without_labels(ticket, event, "skipped"),
    Expire: _expire,
    Withdraw: _withdraw,
    Compare: compare,
    Accept: accept,
    Reject: reject,
    Fix: fix,
    Prefill: _prefill,
}
