"""The events of the ticket's state machine, and the instructions that it answers with for the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rescueseg.queue.records import LeaseEnd, Origin, TicketStatus, Verdict

IDLE_SECONDS = 300.0
"""Longest gap between two heartbeats that counts as work, where the campaign says nothing else."""


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
    idle_seconds: float = IDLE_SECONDS
    """Longest gap between two heartbeats that counts as work."""
    active_seconds: float = 0.0
    """Work so far."""
    seen_at: datetime | None = None
    """The last heartbeat, None before the first."""


@dataclass(frozen=True)
class Reservation:
    """An assignment that was sent back to somebody; others get it from `until` on."""

    assignment_id: int
    annotator: str
    until: datetime


@dataclass(frozen=True)
class AnnotationState:
    """One version of the labels that was handed in; what a reviewer or a consensus made has no assignment and no lease."""

    annotation_id: str
    assignment_id: int | None
    lease_id: str | None
    version: int
    annotator: str
    digest: str
    verdict: Verdict = "submitted"
    origin: Origin = "annotator"


# events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """Somebody wants to work on the ticket; `by_id` when they named it."""

    lease_id: str
    annotator: str
    now: datetime
    seconds: float
    by_id: bool = False
    idle_seconds: float = IDLE_SECONDS


@dataclass(frozen=True)
class Heartbeat:
    """The annotator is still at work, and has worked so long since the last heartbeat; 0 when the tool does not know."""

    lease_id: str
    annotator: str
    now: datetime
    active_seconds: float = 0.0


@dataclass(frozen=True)
class Submit:
    """The annotator hands in labels; `accept` when no review is wanted.

    `seconds` is the whole working time where a person stated it, `active_seconds` as in a heartbeat. `overridden` names
    the warnings that were seen and overruled.
    """

    lease_id: str
    annotator: str
    now: datetime
    digest: str
    accept: bool = False
    seconds: float | None = None
    active_seconds: float = 0.0
    overridden: tuple[str, ...] = ()


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
class Withdraw:
    """The patch may not be annotated any more; nobody works on it."""

    actor: str
    reason: str


@dataclass(frozen=True)
class Compare:
    """The two halves of a blind pair were compared."""

    annotation_ids: tuple[str, str]
    agreement: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Accept:
    """A reviewer takes a version, the latest when None."""

    actor: str
    version: int | None = None


@dataclass(frozen=True)
class Reject:
    """A reviewer sends the work back; until a time, only to who did it."""

    actor: str
    comment: str
    until: datetime | None = None


@dataclass(frozen=True)
class Fix:
    """A reviewer, or a consensus, hands in labels for a submitted ticket, and they are accepted."""

    actor: str
    digest: str
    origin: Origin
    seconds: float = 0.0


@dataclass(frozen=True)
class Prefill:
    """A first mask was made: path below the campaign, and what made it; no path takes back the one that is there."""

    path: str | None
    method: str
    classes: tuple[str, ...] = ()


Event = Claim | Heartbeat | Submit | Release | Skip | Expire | Withdraw | Compare | Accept | Reject | Fix | Prefill


# instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GrantLease:
    """Write a new lease."""

    lease: LeaseState


@dataclass(frozen=True)
class ExtendLease:
    """Move the expiry of a lease and write its working time."""

    lease_id: str
    expires_at: datetime
    active_seconds: float
    seen_at: datetime


@dataclass(frozen=True)
class EndLease:
    """End a lease and write its working time."""

    lease_id: str
    ended: LeaseEnd
    active_seconds: float


@dataclass(frozen=True)
class StoreAnnotation:
    """Write the handed-in labels as a new version, with the time they took."""

    annotation: AnnotationState
    seconds: float


@dataclass(frozen=True)
class Decide:
    """Write a reviewer's verdict."""

    annotation_id: str
    verdict: Verdict
    actor: str
    comment: str = ""


@dataclass(frozen=True)
class Reserve:
    """Keep an assignment for who did it."""

    reservation: Reservation


@dataclass(frozen=True)
class SetAgreement:
    """Write how well the halves of a blind pair agree; None when they are to be done again."""

    agreement: float | None


@dataclass(frozen=True)
class SetStatus:
    """Write the ticket's status."""

    status: TicketStatus


@dataclass(frozen=True)
class SetPrefill:
    """Write the mask that annotators start from, and the classes it holds; no path where they start from nothing."""

    path: str | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """Append one line to the audit trail."""

    event: str
    actor: str
    before: TicketStatus
    after: TicketStatus
    lease_id: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


Instruction = (
    GrantLease
    | ExtendLease
    | EndLease
    | StoreAnnotation
    | Decide
    | Reserve
    | SetAgreement
    | SetStatus
    | SetPrefill
    | Audit
)
