"""A campaign's annotation queue, put together of its parts: what is read, leased, reviewed, queued and counted."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.identity import IDENTITY, Identity
from rescueseg.campaign.layout import ANNOTATION, GENERATION, HOLDOUT
from rescueseg.errors import QueueError
from rescueseg.queue.database import HEAD, Database, damage
from rescueseg.queue.execute import Clock
from rescueseg.queue.leases import Leases
from rescueseg.queue.ledger import Ledger
from rescueseg.queue.owner import check_name, check_owner, claim, is_here, lies_inside
from rescueseg.queue.reviews import Reviews
from rescueseg.queue.tickets import Tickets
from rescueseg.queue.views import QueueViews
from rescueseg.storage import Storage


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def open_queue(campaign: Campaign) -> QueueStore:
    """Open a campaign's queue; that of a new campaign is made.

    Raises
    ------
    QueueError
        If the database belongs to another campaign, another version of rescueseg made it, or it lies on a network file
        system.
    StorageError
        If the database is lost, damaged or cannot be reached.
    """
    if is_new(campaign.storage):
        make_queue(campaign)
    store = QueueStore(campaign.database_url)
    require_this_version(store.database, campaign.url)
    check_owner(store.database, campaign.storage, campaign.config.name)
    return store


def is_new(storage: Storage) -> bool:
    """Tell whether the queue of the campaign at `storage` was never made, so that an empty one loses nothing."""
    places = (HOLDOUT.path(), ANNOTATION.top, GENERATION.top)
    return not RecordFolder(storage).has(IDENTITY) and not any(map(storage.exists, places))


def make_queue(campaign: Campaign) -> None:
    """Make the queue of a new campaign, and give the campaign its id; what another process has made stays.

    Raises
    ------
    QueueError, StorageError
        As `open_queue`.
    """
    store = QueueStore(campaign.database_url)
    database = store.database
    if database.version() is None:
        database.migrate()
    require_this_version(database, campaign.url)
    name = campaign.config.name
    claimed = claim(database, campaign.storage, name, uuid.uuid4().hex)
    check_name(database, name, claimed.campaign)
    own = lies_inside(database, campaign.storage) or is_here(campaign.storage, claimed.place)
    if not own or campaign.records.has(IDENTITY):
        return
    if any(store.views.counts().values()):
        raise QueueError(
            f"the database holds the queue of another campaign of the name '{claimed.campaign}', which lay here before",
            where=database.where,
            todo="Restore that campaign, or name another database (or PostgreSQL schema): database_url in campaign.toml",
        )
    campaign.records.write(IDENTITY, Identity(campaign_id=claimed.campaign_id))


def require_this_version(database: Database, url: str) -> None:
    """Refuse a database that holds no queue, or one of another version.

    Parameters
    ----------
    database : Database
        Of the queue.
    url : str
        Of the campaign, for the message.

    Raises
    ------
    StorageError
        If there is no database, or no queue in it.
    QueueError
        If another version of rescueseg made it.
    """
    version = database.version()
    if version is None:
        raise damage(
            database.where,
            "the database of the queue is missing or empty, and with it who annotated what, every ticket, lease and review",
        )
    if version > HEAD:
        raise QueueError(
            f"a later version of rescueseg made the queue: its version is {version}, this one reads up to {HEAD}",
            where=database.where,
            todo="Update rescueseg; nothing was changed",
        )
    if version < HEAD:
        raise QueueError(
            f"an earlier version of rescueseg made the queue: its version is {version}, this one reads {HEAD}",
            where=database.where,
            todo=f"Run 'rescueseg upgrade {url}', which copies it first; nothing was changed",
        )


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
        """Make the database, or bring its tables up to date; several processes may do so at once."""
        self.database.migrate()

    def close(self) -> None:
        """Close the database connections; the store can be used again."""
        self.database.engine.dispose()
