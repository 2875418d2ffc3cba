"""The words of the ticket's state machine: what happens to a ticket, and what the store is told to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rescueseg.annotation.records import LeaseEnd, TicketStatus, Verdict


@dataclass(frozen=True)
class LeaseState:
    """One lease; `ended` is None while it runs."""

    lease_id: str
    assignment_id: int
    annotator: str
    granted_at: datetime
    expires_at: datetime
    seconds: float
    """How far a heartbeat moves the expiry."""
    ended: LeaseEnd | None = None


@dataclass(frozen=True)
class AnnotationState:
    """One version of the labels that was handed in."""

    annotation_id: str
    assignment_id: int
    lease_id: str
    version: int
    annotator: str
    digest: str
    verdict: Verdict = "submitted"


# events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """Somebody wants to work on the ticket; `by_id` when they named it."""

    lease_id: str
    annotator: str
    now: datetime
    seconds: float
    by_id: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """The annotator is still at it."""

    lease_id: str
    annotator: str
    now: datetime


@dataclass(frozen=True)
class Submit:
    """The annotator hands in labels; `accept` when no review is wanted."""

    lease_id: str
    annotator: str
    now: datetime
    digest: str
    accept: bool = False


@dataclass(frozen=True)
class Release:
    """The annotator gives the ticket back untouched."""

    lease_id: str
    annotator: str
    now: datetime


@dataclass(frozen=True)
class Skip:
    """The annotator says that the patch cannot be annotated."""

    lease_id: str
    annotator: str
    now: datetime
    reason: str


@dataclass(frozen=True)
class Expire:
    """Time has passed."""

    now: datetime


@dataclass(frozen=True)
class Accept:
    """A reviewer takes the latest version."""

    actor: str


@dataclass(frozen=True)
class Reject:
    """A reviewer sends the work back."""

    actor: str
    comment: str


@dataclass(frozen=True)
class Prefill:
    """A first mask was made: path below the campaign, and what made it."""

    path: str
    method: str


Event = Claim | Heartbeat | Submit | Release | Skip | Expire | Accept | Reject | Prefill


# instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GrantLease:
    """Write a new lease."""

    lease: LeaseState


@dataclass(frozen=True)
class ExtendLease:
    """Move the expiry of a lease."""

    lease_id: str
    expires_at: datetime


@dataclass(frozen=True)
class EndLease:
    """Close a lease."""

    lease_id: str
    ended: LeaseEnd


@dataclass(frozen=True)
class StoreAnnotation:
    """Write the handed-in labels as a new version."""

    annotation: AnnotationState


@dataclass(frozen=True)
class Decide:
    """Write a reviewer's verdict."""

    annotation_id: str
    verdict: Verdict
    actor: str
    comment: str = ""


@dataclass(frozen=True)
class SetStatus:
    """Write the ticket's status."""

    status: TicketStatus


@dataclass(frozen=True)
class SetPrefill:
    """Write the mask that annotators start from."""

    path: str


@dataclass(frozen=True)
class Audit:
    """Append one line to the audit trail."""

    event: str
    actor: str
    before: TicketStatus
    after: TicketStatus
    lease_id: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


Instruction = GrantLease | ExtendLease | EndLease | StoreAnnotation | Decide | SetStatus | SetPrefill | Audit
