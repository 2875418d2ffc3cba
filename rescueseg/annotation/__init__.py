"""Phase 2B: the annotation queue. Start from `open_queue`."""

from __future__ import annotations

from rescueseg.annotation.labels import check_labels, starting_labels, submit_labels, ticket_id
from rescueseg.annotation.records import (
    AcceptedAnnotation,
    AnnotationRecord,
    AuditEntry,
    GenerationRow,
    LabelReference,
    Lease,
    NewTicket,
    TicketRecord,
)
from rescueseg.annotation.store import QueueStore, open_queue

__all__ = [
    "AcceptedAnnotation",
    "AnnotationRecord",
    "AuditEntry",
    "GenerationRow",
    "LabelReference",
    "Lease",
    "NewTicket",
    "QueueStore",
    "TicketRecord",
    "check_labels",
    "open_queue",
    "starting_labels",
    "submit_labels",
    "ticket_id",
]
