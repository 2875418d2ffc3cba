"""A campaign's annotation queue, put together of its parts: what is read, leased, reviewed, queued and counted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from rescueseg.errors import QueueError
from rescueseg.queue.database import Database
from rescueseg.queue.execute import Clock
from rescueseg.queue.leases import Leases
from rescueseg.queue.ledger import Ledger
from rescueseg.queue.reviews import Reviews
from rescueseg.queue.tables import owner
from rescueseg.queue.tickets import Tickets
from rescueseg.queue.views import QueueViews

if TYPE_CHECKING:
    from rescueseg.campaign import Campaign


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def open_queue(campaign: Campaign) -> QueueStore:
    """Open a campaign's queue, its database made or brought up to date.

    Raises
    ------
    QueueError
        If the database belongs to another campaign, or lies on a network file system.
    StorageError
        If the database cannot be reached.
    """
    store = QueueStore(campaign.database_url)
    store.migrate()
    store.belong_to(campaign.config.name)
    return store


class QueueStore:
    """The queue of one campaign. Safe to use from many processes and threads at once.

    Parameters
    ----------
    database_url : str or sqlalchemy.URL
        SQLAlchemy URL. SQLite (one file on a local disk, WAL) or PostgreSQL; one database or schema per campaign.
    clock : callable, optional
        Returns the time in UTC; for tests.

    Raises
    ------
    ConfigError
        If the URL cannot be used.
    QueueError
        If it names a SQLite file on a network file system.
    """

    def __init__(self, database_url: str | sa.URL, *, clock: Clock = utc_now) -> None:
        self.database = Database(database_url)
        self.views = QueueViews(self.database, clock)
        """What can be read."""
        self.leases = Leases(self.database, clock)
        """What annotators do."""
        self.reviews = Reviews(self.database, clock)
        """What reviewers do."""
        self.tickets = Tickets(self.database, clock)
        """What the campaign does to tickets."""
        self.ledger = Ledger(self.database, clock)
        """Locks and generations."""

    def migrate(self) -> None:
        """Make the tables or bring them up to date; several processes may do so at once."""
        self.database.migrate()

    def close(self) -> None:
        """Close the database connections; the store can be used again."""
        self.database.engine.dispose()

    def belong_to(self, campaign: str) -> None:
        """Write down whose queue this is, once.

        Raises
        ------
        QueueError
            If it is another campaign's.
        """
        with self.database.read() as connection:
            name = connection.execute(sa.select(owner.c.campaign)).scalar()
        if name is None:
            with self.database.write() as connection:
                if not self.database.is_sqlite:
                    connection.execute(sa.text("LOCK TABLE owner IN EXCLUSIVE MODE"))
                name = connection.execute(sa.select(owner.c.campaign)).scalar()
                if name is None:
                    connection.execute(sa.insert(owner).values(number=1, campaign=campaign))
                    return
        if name != campaign:
            raise QueueError(
                f"the database holds the queue of campaign '{name}', not of '{campaign}'",
                where=self.database.where,
                todo="Give each campaign a database (or PostgreSQL schema) of its own: database_url in campaign.toml",
            )
