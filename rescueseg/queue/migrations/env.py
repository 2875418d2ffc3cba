"""Run by Alembic on the connection, and inside the transaction, that `Database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from rescueseg.queue.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
