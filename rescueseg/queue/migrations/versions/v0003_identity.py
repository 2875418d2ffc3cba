"""Whose queue it is: the campaign's id, and where the campaign lay when it was last opened."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("owner", sa.Column("campaign_id", sa.String(length=32), server_default=sa.text("''"), nullable=False))
    op.add_column("owner", sa.Column("host", sa.String(length=255), server_default=sa.text("''"), nullable=False))
    op.add_column("owner", sa.Column("url", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("owner", sa.Column("folder", sa.String(length=32), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    raise NotImplementedError("an older rescueseg does not know whose queue it is: restore the copy made before")
