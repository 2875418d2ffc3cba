"""The queue's tables. A change here needs a migration; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

VERSION_TABLE = "rescueseg_schema"


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, also where the database knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse local times, store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


ordered_id = String(128).with_variant(String(128, collation="C"), "postgresql")
"""An id that every database sorts the same way, by its bytes."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _column(name: str, kind: Any, *rules: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *rules, **{"nullable": False, **options})


owner = Table(
    "owner",
    metadata,
    _column("number", Integer, primary_key=True, autoincrement=False),
    _column("campaign", String(64)),
    _column("campaign_id", String(32), server_default=text("''")),
    _column("host", String(255), server_default=text("''")),
    _column("url", Text, server_default=text("''")),
    _column("folder", String(32), server_default=text("''")),
)
"""One row: the campaign whose queue this is, and where it lies; see `rescueseg.queue.owner`."""

tickets = Table(
    "tickets",
    metadata,
    _column("ticket_id", ordered_id, primary_key=True),
    _column("volume_id", String(128)),
    _column("offset_z", Integer),
    _column("offset_y", Integer),
    _column("offset_x", Integer),
    _column("shape_z", Integer),
    _column("shape_y", Integer),
    _column("shape_x", Integer),
    _column("purpose", String(16)),
    _column("generation", Integer),
    _column("stratum", String(64)),
    _column("reason", Text),
    _column("score", Float),
    _column("prefill", Text, nullable=True),
    _column("priority", Integer),
    _column("classes", Text, server_default=text("''")),
    _column("annotators", Integer, server_default=text("1")),
    _column("agreement", Float, nullable=True),
    _column("status", String(16)),
    _column("created_at", UtcDateTime),
    _column("updated_at", UtcDateTime),
    Index(None, "status", "purpose"),
)

assignments = Table(
    "assignments",
    metadata,
    _column("assignment_id", Integer, primary_key=True),
    _column("ticket_id", String(128), ForeignKey("tickets.ticket_id")),
    _column("number", Integer),
    _column("reserved_for", String(128), nullable=True),
    _column("reserved_until", UtcDateTime, nullable=True),
    UniqueConstraint("ticket_id", "number"),
)
"""The parts of a ticket that different people do: one, or the two of a blind pair."""

leases = Table(
    "leases",
    metadata,
    _column("lease_id", String(64), primary_key=True),
    _column("ticket_id", String(128), ForeignKey("tickets.ticket_id"), index=True),
    _column("assignment_id", Integer, ForeignKey("assignments.assignment_id")),
    _column("annotator", String(128)),
    _column("granted_at", UtcDateTime),
    _column("expires_at", UtcDateTime),
    _column("seconds", Float),
    _column("ended", String(16), nullable=True),
    _column("idle_seconds", Float, server_default=text("300")),
    _column("active_seconds", Float, server_default=text("0")),
    _column("seen_at", UtcDateTime, nullable=True),
    Index(
        "uq_leases_running",
        "assignment_id",
        unique=True,
        sqlite_where=text("ended IS NULL"),
        postgresql_where=text("ended IS NULL"),
    ),
)
"""Every lease ever granted; the partial unique index keeps a second running one off an assignment."""

annotation_table = Table(
    "annotations",
    metadata,
    _column("annotation_id", String(64), primary_key=True),
    _column("ticket_id", String(128), ForeignKey("tickets.ticket_id")),
    _column("assignment_id", Integer, ForeignKey("assignments.assignment_id"), nullable=True),
    _column("lease_id", String(64), ForeignKey("leases.lease_id"), unique=True, nullable=True),
    _column("version", Integer),
    _column("annotator", String(128)),
    _column("tool", String(128)),
    _column("labels", Text),
    _column("labels_digest", String(64)),
    _column("seconds", Float),
    _column("voxels_corrected", Integer),
    _column("created_at", UtcDateTime),
    _column("verdict", String(16)),
    _column("decided_by", String(128), nullable=True),
    _column("decided_at", UtcDateTime, nullable=True),
    _column("comment", Text),
    _column("instances", Text, nullable=True),
    _column("instances_digest", String(64), nullable=True),
    _column("origin", String(16), server_default=text("'annotator'")),
    _column("provenance", JSON(none_as_null=True), nullable=True),
    UniqueConstraint("ticket_id", "version"),
)
"""Every version ever handed in; those of a reviewer or a consensus belong to no assignment."""

audit = Table(
    "audit",
    metadata,
    _column("number", Integer, primary_key=True),
    _column("at", UtcDateTime),
    _column("ticket_id", String(128), ForeignKey("tickets.ticket_id"), index=True),
    _column("event", String(16)),
    _column("actor", String(128)),
    _column("before", String(16)),
    _column("after", String(16)),
    _column("lease_id", String(64)),
    _column("details", JSON),
)

locks = Table(
    "locks",
    metadata,
    _column("name", String(128), primary_key=True),
    _column("owner", String(128)),
    _column("token", String(64)),
    _column("host", String(255)),
    _column("pid", Integer),
    _column("started", Float),
    _column("acquired_at", UtcDateTime),
    _column("expires_at", UtcDateTime),
)
"""Locks held by processes: host, pid and the process's start time tell whether the holder still lives."""

generations = Table(
    "generations",
    metadata,
    _column("generation", Integer, primary_key=True, autoincrement=False),
    _column("accepted_count", Integer),
    _column("begun_at", UtcDateTime),
    _column("finished_at", UtcDateTime, nullable=True),
)
