"""Alembic scripts of the queue's database; `rescueseg.annotation.database` runs them."""
