"""Blind pairs and their agreement, returned work, reviewers' versions, instances, and the account of each lease."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("tickets", sa.Column("classes", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("tickets", sa.Column("annotators", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("tickets", sa.Column("agreement", sa.Float(), nullable=True))
    op.add_column("assignments", sa.Column("reserved_for", sa.String(length=128), nullable=True))
    op.add_column("assignments", sa.Column("reserved_until", moment, nullable=True))
    op.add_column("leases", sa.Column("idle_seconds", sa.Float(), server_default=sa.text("300"), nullable=False))
    op.add_column("leases", sa.Column("active_seconds", sa.Float(), server_default=sa.text("0"), nullable=False))
    op.add_column("leases", sa.Column("seen_at", moment, nullable=True))
    with op.batch_alter_table("annotations") as annotations:
        annotations.alter_column("assignment_id", existing_type=sa.Integer(), nullable=True)
        annotations.alter_column("lease_id", existing_type=sa.String(length=64), nullable=True)
        annotations.add_column(sa.Column("instances", sa.Text(), nullable=True))
        annotations.add_column(sa.Column("instances_digest", sa.String(length=64), nullable=True))
        annotations.add_column(
            sa.Column("origin", sa.String(length=16), server_default=sa.text("'annotator'"), nullable=False)
        )
        annotations.add_column(sa.Column("provenance", sa.JSON(), nullable=True))
    # the time under leases that ended before there was an account: what was said when the labels were handed in
    op.execute(
        "UPDATE leases SET active_seconds = COALESCE("
        "(SELECT annotations.seconds FROM annotations WHERE annotations.lease_id = leases.lease_id), 0)"
    )


def downgrade() -> None:
    raise NotImplementedError("an older rescueseg does not know blind pairs: restore the database from its backup")
