"""Tickets, leases, annotations and what else the queue knows, as frozen records that go to JSON and back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from rescueseg.geometry import Patch
from rescueseg.records import BoxField, LabelReference, Purpose, Record

TicketStatus = Literal["queued", "leased", "submitted", "accepted", "rejected", "skipped"]
Verdict = Literal["submitted", "accepted", "rejected"]
Origin = Literal["annotator", "reviewer", "consensus"]
LeaseEnd = Literal["submitted", "released", "skipped", "expired"]

STATUSES: tuple[TicketStatus, ...] = ("queued", "leased", "submitted", "accepted", "rejected", "skipped")


class NewTicket(Record):
    """A patch to be annotated."""

    ticket_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    volume_id: str
    box: BoxField
    purpose: Purpose = "pool"
    generation: int = 0
    """Generation whose snapshot the annotation is meant for."""
    stratum: str = ""
    reason: str = ""
    """Why this patch was chosen, for the annotator."""
    score: float = 0.0
    """The higher goes first."""
    prefill: str | None = None
    """Path below the campaign of the mask to start from (npz, uint8 zyx; uint32 where it holds numbers of objects)."""
    priority: int = 0
    """Set by a person; goes before everything else."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the mask to start from holds."""
    annotators: Annotated[int, Field(ge=1, le=2)] = 1
    """How many people annotate it; two do so blind."""

    @property
    def patch(self) -> Patch:
        """The box with its volume."""
        return Patch(self.volume_id, self.box)


class TicketRecord(NewTicket):
    """A ticket as the queue holds it."""

    status: TicketStatus
    created_at: datetime
    updated_at: datetime
    agreement: float | None = None
    """Of the two annotators, where they were compared; see `rescueseg.annotation.agreement`."""


class Filters(Record):
    """Which tickets a person wants; None for any."""

    volume_id: str | None = None
    class_name: str | None = None
    """Patches whose mask to start from holds this class."""
    stratum: str | None = None
    generation: int | None = None
    purpose: Purpose | None = None


class Lease(Record):
    """One annotator's time-limited claim on one assignment of a ticket."""

    lease_id: str
    assignment_id: int
    annotator: str
    granted_at: datetime
    expires_at: datetime
    ticket: TicketRecord
    previous: LabelReference | None = None
    """Labels handed in before and sent back by a reviewer: the mask to go on from."""
    previous_instances: LabelReference | None = None
    """Their objects, in campaigns that annotate instances."""
    comment: str = ""
    """The reviewer's comment on them."""
    active_seconds: float = 0.0
    """Work under this lease so far, idle time cut out."""
    ended: LeaseEnd | None = None
    """How it ended; None while it runs."""

    @property
    def ticket_id(self) -> str:
        """The ticket this lease is on."""
        return self.ticket.ticket_id

    @property
    def start(self) -> str | None:
        """Path below the campaign of the mask to start from, None for an empty one."""
        return self.previous.path if self.previous else self.ticket.prefill


class AnnotationRecord(Record):
    """One handed-in version of a ticket's labels; immutable but for the reviewer's verdict."""

    annotation_id: str
    ticket_id: str
    version: int
    """1 for the first version handed in for the ticket."""
    annotator: str
    tool: str
    labels: str
    """Path of the label array below the campaign."""
    labels_digest: str
    seconds: float
    voxels_corrected: int
    """Voxels that differ from the mask the annotator started from."""
    verdict: Verdict
    created_at: datetime
    instances: str | None = None
    """Path of the objects' array below the campaign, in campaigns that annotate instances."""
    instances_digest: str | None = None
    origin: Origin = "annotator"
    """Who made it: an annotator under a lease, a reviewer who fixed it, or a consensus of annotators."""
    provenance: dict[str, Any] | None = None
    """How a consensus was made."""
    comment: str = ""
    """The reviewer's."""


class Comparison(Record):
    """The two halves of a blind pair, compared."""

    ticket_id: str
    at: datetime
    volume_id: str
    box: BoxField
    generation: int
    stratum: str
    versions: tuple[int, int]
    annotators: tuple[str, str]
    agreement: float
    dice: dict[str, float]
    """By class name, the classes that either drew."""
    objects: float | None = None
    """F1 of the objects, in campaigns that annotate instances."""


class Effort(Record):
    """Working time and versions of one person on one ticket."""

    annotator: str
    ticket_id: str
    purpose: Purpose
    generation: int
    status: TicketStatus
    voxels: int
    """Of the patch."""
    seconds: float
    """Under all leases, idle time cut out, and in reviewing."""
    voxels_corrected: int
    """Over all versions handed in."""
    versions: int
    accepted: int
    """Versions that were accepted."""
    rejected: int


class AuditEntry(Record):
    """One change of a ticket, as it was made."""

    number: int
    at: datetime
    ticket_id: str
    event: str
    actor: str
    before: str
    """Status before, empty when the ticket was made."""
    after: str
    lease_id: str
    details: dict[str, Any]


class GenerationRow(Record):
    """One generation in the ledger."""

    generation: int
    accepted_count: int
    """Accepted pool patches that its snapshot counted."""
    begun_at: datetime
    finished_at: datetime | None = None
