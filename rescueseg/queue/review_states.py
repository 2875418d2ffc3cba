"""Handlers of a reviewer's events, and of those that decide a blind pair; part of `rescueseg.queue.states`."""

from __future__ import annotations

from dataclasses import replace

from rescueseg.errors import QueueError
from rescueseg.queue.events import (
    Accept,
    AnnotationState,
    Audit,
    Compare,
    Decide,
    Fix,
    Reject,
    Reservation,
    Reserve,
    SetAgreement,
    StoreAnnotation,
)
from rescueseg.queue.records import Verdict
from rescueseg.queue.ticket_state import Instructions, TicketState, annotation_id, chain, move


def _judge(ticket: TicketState, verdict: Verdict, only: str | None = None) -> TicketState:
    """Return the ticket with a verdict on its undecided annotations, or on one of them."""
    judged = tuple(
        replace(a, verdict=verdict) if a.verdict == "submitted" and only in (None, a.annotation_id) else a
        for a in ticket.annotations
    )
    return replace(ticket, annotations=judged)


def _demand_submitted(ticket: TicketState, verb: str) -> None:
    if ticket.status != "submitted":
        raise QueueError(
            f"the ticket is {ticket.status}; only a submitted one can be {verb}",
            where=f"ticket {ticket.ticket_id}",
            todo="An accepted annotation stays; add a new ticket for the same patch to replace it"
            if ticket.status == "accepted"
            else "Wait until its labels are handed in",
        )


def compare(ticket: TicketState, event: Compare) -> Instructions:
    """Write down how well the halves of a blind pair agree."""
    if ticket.status == "accepted" or ticket.agreement is not None:
        return Instructions(ticket)
    _demand_submitted(ticket, "compared")
    if set(event.annotation_ids) != {a.annotation_id for a in ticket.standing_annotations}:
        raise QueueError(
            "other labels were handed in meanwhile", where=f"ticket {ticket.ticket_id}", todo="Compare those"
        )
    audit = Audit("compared", "rescueseg", ticket.status, ticket.status, details=event.details)
    return Instructions(replace(ticket, agreement=event.agreement), (SetAgreement(event.agreement), audit))


def accept(ticket: TicketState, event: Accept) -> Instructions:
    """Accept a version."""
    accepted_versions = [a.version for a in ticket.annotations if a.verdict == "accepted"]
    if ticket.status == "accepted" and event.version in (None, *accepted_versions):
        return Instructions(ticket)
    _demand_submitted(ticket, "accepted")
    if event.version is not None and event.version not in [a.version for a in ticket.standing_annotations]:
        raise QueueError(
            f"there is no version {event.version} that was not sent back",
            where=f"ticket {ticket.ticket_id}",
            todo=f"Versions: {', '.join(str(a.version) for a in ticket.standing_annotations)}",
        )
    versions = [a for a in ticket.standing_annotations if event.version in (None, a.version)]
    latest = max(versions, key=lambda a: a.version)
    audit = Audit(
        "accepted",
        event.actor,
        ticket.status,
        "accepted",
        latest.lease_id or "",
        {"annotation_id": latest.annotation_id, "version": latest.version},
    )
    after = _judge(ticket, "accepted", latest.annotation_id)
    return move(after, "accepted", audit, Decide(latest.annotation_id, "accepted", event.actor))


def reject(ticket: TicketState, event: Reject) -> Instructions:
    """Send the work back."""
    if ticket.status == "queued" and ticket.annotations and not ticket.standing_annotations:
        return Instructions(ticket)
    _demand_submitted(ticket, "rejected")
    undecided = [a.annotation_id for a in ticket.standing_annotations]
    reservations = tuple(
        Reservation(a.assignment_id, a.annotator, event.until)
        for a in ticket.standing_annotations
        if a.assignment_id is not None and event.until is not None
    )
    details = {"comment": event.comment, "annotation_ids": undecided}
    if event.until is not None:
        details["until"] = event.until.isoformat()
    reset_agreement = () if ticket.agreement is None else (SetAgreement(None),)
    rejected = move(
        replace(_judge(ticket, "rejected"), reservations=reservations, agreement=None),
        "rejected",
        Audit("rejected", event.actor, ticket.status, "rejected", details=details),
        *(Decide(number, "rejected", event.actor, event.comment) for number in undecided),
        *map(Reserve, reservations),
        *reset_agreement,
    )
    audit = Audit("requeued", event.actor, "rejected", "queued")
    return chain(rejected, move(rejected.ticket, "queued", audit))


def fix(ticket: TicketState, event: Fix) -> Instructions:
    """Add a version that no annotator handed in, and accept it."""
    for previous in ticket.annotations:
        identity = (previous.digest, previous.annotator, previous.origin)
        if previous.verdict == "accepted" and identity == (event.digest, event.actor, event.origin):
            return Instructions(ticket)
    _demand_submitted(ticket, "fixed")
    version = 1 + max(a.version for a in ticket.annotations)
    annotation = AnnotationState(
        annotation_id(ticket.ticket_id, version, event.digest),
        None,
        None,
        version,
        event.actor,
        event.digest,
        origin=event.origin,
    )
    details = {"annotation_id": annotation.annotation_id, "version": version, "digest": event.digest}
    audit = Audit(
        "fixed" if event.origin == "reviewer" else "consensus",
        event.actor,
        "submitted",
        "submitted",
        details=details,
    )
    after = replace(ticket, annotations=(*ticket.annotations, annotation))
    addition = Instructions(after, (StoreAnnotation(annotation, event.seconds), audit))
    return chain(addition, accept(after, Accept(event.actor, version)))
