"""Bringing a campaign's queue to this version: explicit, step by step, with a copy made first."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.identity import IDENTITY, Identity
from rescueseg.campaign.layout import DATABASE_COPY
from rescueseg.errors import QueueError
from rescueseg.queue.database import HEAD, Database
from rescueseg.queue.database_copy import copy_sqlite, dump_postgres
from rescueseg.queue.ledger import running_locks
from rescueseg.queue.owner import check_name, check_owner, claim, is_here, lies_inside, read_owner, settle
from rescueseg.queue.store import is_new, make_queue, require_this_version, utc_now
from rescueseg.storage import Storage


@dataclass(frozen=True)
class UpgradeStep:
    """One step of an upgrade; again it changes nothing."""

    what: str
    """What it does, for people."""
    act: Callable[[], None]


def queue_steps(campaign: Campaign, *, moved: bool = False) -> list[UpgradeStep]:
    """Return what brings a campaign's queue to this version; nothing is changed yet.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    moved : bool
        The person says that the campaign lies here now, and nowhere else that uses its database.

    Returns
    -------
    list of UpgradeStep
        In their order; none when there is nothing to do.

    Raises
    ------
    QueueError
        If a later version made the queue, it is another campaign's, or a generation runs.
    StorageError
        If the database is lost, damaged or cannot be reached.
    """
    database = Database(campaign.database_url)
    version = database.version()
    if version is None and is_new(campaign.storage):
        return [UpgradeStep("make the queue, which is empty yet", partial(make_queue, campaign))]
    if version is None or version > HEAD:
        require_this_version(database, campaign.url)
    identify = UpgradeStep(
        f"write down the campaign's id, and that it lies in {campaign.url}",
        partial(_identify, campaign.storage, campaign.config.name, database, moved=moved),
    )
    if version == HEAD:
        return [identify] if moved or _lacks_identity(campaign.storage, campaign.config.name, database) else []
    _check_older(campaign.storage, campaign.config.name, database)
    copy, target = _copy_step(campaign.storage, database, str(version))
    return [
        UpgradeStep(f"copy the database to {target}", copy),
        UpgradeStep(f"bring the database from version {version} to {HEAD}", database.migrate),
        identify,
    ]


def _lacks_identity(storage: Storage, name: str, database: Database) -> bool:
    """Tell whether an upgrade was cut off before its end, or the campaign has lost its id; raise as `check_owner`."""
    claimed = read_owner(database)
    if claimed is not None and not claimed.campaign_id:
        return True
    if claimed is not None and not RecordFolder(storage).has(IDENTITY) and _is_ours(storage, database):
        return True
    check_owner(database, storage, name)
    return False


def _is_ours(storage: Storage, database: Database) -> bool:
    claimed = read_owner(database)
    inside = lies_inside(database, storage)
    return inside or (claimed is not None and is_here(storage, claimed.place))


def _identify(storage: Storage, name: str, database: Database, *, moved: bool) -> None:
    identity = RecordFolder(storage).read(IDENTITY)
    claimed = claim(database, storage, name, identity.campaign_id if identity else uuid.uuid4().hex)
    check_name(database, name, claimed.campaign)
    if moved:
        settle(database, storage)
    if identity is None and _is_ours(storage, database):
        RecordFolder(storage).write(IDENTITY, Identity(campaign_id=claimed.campaign_id))
    check_owner(database, storage, name)


def _check_older(storage: Storage, name: str, database: Database) -> None:
    """Refuse an older database that is another campaign's, or that a generation works with."""
    with database.read() as connection:
        held = connection.execute(sa.text("SELECT campaign FROM owner")).scalar()
        running = running_locks(connection, utc_now())
    if held is not None:
        check_name(database, name, str(held))
    if running:
        raise QueueError(
            f"{running[0]}, which works with the queue as it is",
            where=storage.url,
            todo="Wait until it has finished, or stop it, and stop the servers too",
        )


def _copy_step(storage: Storage, database: Database, version: str) -> tuple[Callable[[], None], str]:
    """Return what copies the database, and where to."""
    name = f"{version}-{utc_now():%Y%m%dT%H%M%SZ}"
    if database.file is not None:
        target = database.file.with_name(f"{database.file.name}.{name}")
        return partial(copy_sqlite, database.file, target), str(target)
    path = DATABASE_COPY.path(copy=f"{name}.sql")
    return lambda: storage.write_bytes(path, dump_postgres(database)), storage.path(path)
