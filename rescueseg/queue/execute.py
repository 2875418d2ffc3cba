"""Between rows and the state machine: loads a ticket's state, executes instructions in the open transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import singledispatch
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from rescueseg.errors import TicketNotFoundError
from rescueseg.geometry import Box
from rescueseg.queue.events import (
    AnnotationState,
    Audit,
    Decide,
    EndLease,
    Event,
    ExtendLease,
    GrantLease,
    Instruction,
    LeaseState,
    Reservation,
    Reserve,
    SetAgreement,
    SetPrefill,
    SetStatus,
    StoreAnnotation,
)
from rescueseg.queue.records import TicketRecord
from rescueseg.queue.states import Instructions, TicketState, transition
from rescueseg.queue.tables import annotation_table, assignments, audit, leases, tickets
from rescueseg.storage import digest_json

Clock = Callable[[], datetime]


class Scope(NamedTuple):
    """Where instructions are executed: connection, ticket, time, and the columns of the labels that are handed in."""

    connection: Connection
    ticket_id: str
    now: datetime
    label_columns: Mapping[str, Any]


def load(connection: Connection, ticket_id: str, *, lock: bool) -> TicketState:
    """Return a ticket's state; with `lock`, nobody else changes it until the transaction ends.

    Raises
    ------
    TicketNotFoundError
        If there is no such ticket.
    """
    names = ("status", "purpose", "prefill", "agreement")
    query = sa.select(*(tickets.c[name] for name in names)).where(tickets.c.ticket_id == ticket_id)
    ticket = connection.execute(query.with_for_update() if lock else query).first()
    if ticket is None:
        raise TicketNotFoundError(
            "there is no such ticket",
            where=ticket_id,
            todo="See 'rescueseg queue status CAMPAIGN' for what is in the queue",
        )
    parts = connection.execute(
        sa.select(assignments).where(assignments.c.ticket_id == ticket_id).order_by(assignments.c.number)
    ).all()
    lease_rows = connection.execute(
        sa.select(*(leases.c[name] for name in LeaseState.__dataclass_fields__))
        .where(leases.c.ticket_id == ticket_id)
        .order_by(leases.c.granted_at, leases.c.lease_id)
    ).mappings()
    annotation_rows = connection.execute(
        sa.select(annotation_table)
        .where(annotation_table.c.ticket_id == ticket_id)
        .order_by(annotation_table.c.version)
    ).mappings()
    return TicketState(
        ticket_id,
        ticket.status,
        tuple(part.assignment_id for part in parts),
        tuple(LeaseState(**row) for row in lease_rows),
        tuple(annotation_state(row) for row in annotation_rows),
        ticket.purpose,
        ticket.prefill,
        tuple(Reservation(p.assignment_id, p.reserved_for, p.reserved_until) for p in parts if p.reserved_until),
        ticket.agreement,
    )


def annotation_state(row: RowMapping) -> AnnotationState:
    """Return a row of the annotations table as the state machine sees it."""
    return AnnotationState(
        row["annotation_id"],
        row["assignment_id"],
        row["lease_id"],
        row["version"],
        row["annotator"],
        labels_digest(row["labels_digest"], row["instances_digest"]),
        row["verdict"],
        row["origin"],
    )


def labels_digest(classes: str, instances: str | None) -> str:
    """Return the digest of a version's labels from that of its classes and that of its objects."""
    return classes if instances is None else digest_json([classes, instances])


def execute(
    connection: Connection, instructions: Instructions, now: datetime, label_columns: Mapping[str, Any] | None = None
) -> None:
    """Carry out instructions in the open transaction."""
    scope = Scope(connection, instructions.ticket.ticket_id, now, label_columns or {})
    for step in instructions.steps:
        _carry_out(step, scope)


def apply(
    connection: Connection,
    ticket_id: str,
    event: Event,
    now: datetime,
    label_columns: Mapping[str, Any] | None = None,
) -> None:
    """Let an event happen to a ticket in the open transaction. Raises as `load` and `transition` do."""
    execute(connection, transition(load(connection, ticket_id, lock=True), event), now, label_columns)


@singledispatch
def _carry_out(step: Instruction, scope: Scope) -> None:
    raise TypeError(f"unknown instruction {step} for ticket {scope.ticket_id}")


@_carry_out.register
def _(step: GrantLease, scope: Scope) -> None:
    scope.connection.execute(sa.insert(leases).values(ticket_id=scope.ticket_id, **asdict(step.lease)))


@_carry_out.register
def _(step: ExtendLease, scope: Scope) -> None:
    scope.connection.execute(sa.update(leases).where(leases.c.lease_id == step.lease_id).values(**_changes(step)))


@_carry_out.register
def _(step: EndLease, scope: Scope) -> None:
    scope.connection.execute(sa.update(leases).where(leases.c.lease_id == step.lease_id).values(**_changes(step)))


def _changes(step: ExtendLease | EndLease) -> dict[str, Any]:
    values = asdict(step)
    del values["lease_id"]
    return values


@_carry_out.register
def _(step: StoreAnnotation, scope: Scope) -> None:
    columns = asdict(step.annotation)
    del columns["digest"]
    scope.connection.execute(
        sa.insert(annotation_table).values(
            ticket_id=scope.ticket_id,
            seconds=step.seconds,
            created_at=scope.now,
            comment="",
            **columns,
            **scope.label_columns,
        )
    )


@_carry_out.register
def _(step: Decide, scope: Scope) -> None:
    scope.connection.execute(
        sa.update(annotation_table)
        .where(annotation_table.c.annotation_id == step.annotation_id)
        .values(verdict=step.verdict, decided_by=step.actor, decided_at=scope.now, comment=step.comment)
    )


@_carry_out.register
def _(step: Reserve, scope: Scope) -> None:
    reservation = step.reservation
    scope.connection.execute(
        sa.update(assignments)
        .where(assignments.c.assignment_id == reservation.assignment_id)
        .values(reserved_for=reservation.annotator, reserved_until=reservation.until)
    )


@_carry_out.register
def _(step: SetAgreement, scope: Scope) -> None:
    scope.connection.execute(
        sa.update(tickets).where(tickets.c.ticket_id == scope.ticket_id).values(agreement=step.agreement)
    )


@_carry_out.register
def _(step: SetStatus, scope: Scope) -> None:
    scope.connection.execute(
        sa.update(tickets)
        .where(tickets.c.ticket_id == scope.ticket_id)
        .values(status=step.status, updated_at=scope.now)
    )


@_carry_out.register
def _(step: SetPrefill, scope: Scope) -> None:
    scope.connection.execute(
        sa.update(tickets)
        .where(tickets.c.ticket_id == scope.ticket_id)
        .values(prefill=step.path, classes=classes_text(step.classes), updated_at=scope.now)
    )


@_carry_out.register
def _(step: Audit, scope: Scope) -> None:
    values = asdict(step) | {"details": dict(step.details)}
    scope.connection.execute(sa.insert(audit).values(at=scope.now, ticket_id=scope.ticket_id, **values))


def box_columns(box: Box) -> dict[str, int]:
    """Return a box as the columns of a ticket.

    Examples
    --------
    >>> columns = box_columns(Box((2, 0, 0), (4, 8, 8)))
    >>> columns["offset_z"], columns["shape_x"]
    (2, 8)
    """
    parts = {"offset": box.offset_zyx, "shape": box.shape_zyx}
    return {
        f"{part}_{axis}": value for part, values in parts.items() for axis, value in zip("zyx", values, strict=True)
    }


def box_of(row: RowMapping) -> Box:
    """Return the box in a ticket's columns."""
    return Box((row["offset_z"], row["offset_y"], row["offset_x"]), (row["shape_z"], row["shape_y"], row["shape_x"]))


def classes_text(names: Sequence[str]) -> str:
    """Return class names as a ticket's column: each between line breaks, so that one name can be searched for."""
    return "".join(f"\n{name}\n" for name in names)


def ticket_record(row: RowMapping) -> TicketRecord:
    """Return a row of the tickets table as a record."""
    plain = {name: row[name] for name in TicketRecord.model_fields if name not in ("box", "classes")}
    return TicketRecord(box=box_of(row), classes=tuple(filter(None, row["classes"].split("\n"))), **plain)
