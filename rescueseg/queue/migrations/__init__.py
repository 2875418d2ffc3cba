"""Alembic scripts of the queue's database; `rescueseg.queue.database` runs them."""
