"""Whose queue a database holds: the campaign's id, and where the campaign lies.

A campaign's folder may be moved, and several machines may open it under different paths. A copy of the folder that uses
the same database is another matter: both would hand out the same patches, and each would miss the labels that were
handed in at the other. Where the database lies inside the folder, a copy has its own.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.identity import IDENTITY
from rescueseg.errors import QueueError, RescuesegError, StorageError
from rescueseg.queue.database import Database, damage
from rescueseg.queue.tables import owner
from rescueseg.storage import Storage


@dataclass(frozen=True)
class Place:
    """Where a campaign lies."""

    host: str
    """The machine; empty for a URL that is the same on all."""
    url: str
    folder: str
    """Number of the folder in its file system, the same on every machine that mounts it; empty for a URL."""

    @classmethod
    def of(cls, storage: Storage) -> Place:
        """Return the place of the campaign at `storage`, seen from this machine."""
        if not storage.is_local:
            return cls("", storage.url, "")
        return cls(socket.gethostname(), storage.url, str(Path(storage.root).stat().st_ino))


@dataclass(frozen=True)
class Owner:
    """Whose queue it is, as the database says."""

    campaign: str
    """The campaign's name."""
    campaign_id: str
    """Empty in a database that an earlier version made."""
    place: Place


def read_owner(database: Database) -> Owner | None:
    """Return whose queue a database of this version holds, None where nobody has claimed it."""
    with database.read() as connection:
        return _read(connection)


def _read(connection: Connection) -> Owner | None:
    row = connection.execute(sa.select(owner)).mappings().first()
    if row is None:
        return None
    return Owner(row["campaign"], row["campaign_id"], Place(row["host"], row["url"], row["folder"]))


def claim(database: Database, storage: Storage, name: str, campaign_id: str) -> Owner:
    """Write down whose queue it is where nobody has, and return whose it is."""
    place = Place.of(storage)
    row = {"campaign": name, "campaign_id": campaign_id, **asdict(place)}
    with database.write() as connection:
        connection.execute(database.insert_if_new(owner).values(number=1, **row))
        connection.execute(sa.update(owner).where(owner.c.campaign_id == "").values(row))
        claimed = _read(connection)
    if claimed is None:
        raise StorageError("the queue's owner could not be written", where=database.where, todo="Run again")
    return claimed


def settle(database: Database, storage: Storage) -> None:
    """Write down that the campaign lies where it lies now: after a move, or a restore from a backup."""
    with database.write() as connection:
        connection.execute(sa.update(owner).values(asdict(Place.of(storage))))


def check_owner(database: Database, storage: Storage, name: str) -> None:
    """Refuse the queue of another campaign, and that of the campaign that this one is a copy of.

    A campaign that was moved is written down at its new place.

    Parameters
    ----------
    database : Database
        Of the queue.
    storage : Storage
        The campaign's root.
    name : str
        The campaign's name.

    Raises
    ------
    QueueError
        If the database holds another campaign's queue, or this folder is a copy that would share it, or may be one.
    StorageError
        If the campaign's id is lost.
    """
    claimed, identity = read_owner(database), RecordFolder(storage).read(IDENTITY)
    if claimed is None:
        raise damage(database.where, "the database does not say whose queue it holds")
    check_name(database, name, claimed.campaign)
    if not claimed.campaign_id:
        raise QueueError(
            "the upgrade of the queue was cut off",
            where=database.where,
            todo=f"Run 'rescueseg upgrade {storage.url}' again",
        )
    inside = lies_inside(database, storage)
    if identity is None and (inside or is_here(storage, claimed.place)):
        raise StorageError(
            "the file is missing, and with it the campaign's id",
            where=storage.path(IDENTITY.path()),
            todo=f"Restore it from a backup, or run 'rescueseg upgrade {storage.url}', which asks the database for it",
        )
    if identity is None or identity.campaign_id != claimed.campaign_id:
        raise QueueError(
            f"the database holds the queue of another campaign of the name '{claimed.campaign}', in {claimed.place.url}",
            where=database.where,
            todo=_OWN_DATABASE,
        )
    if not inside:
        _check_place(database, storage, claimed)


def check_name(database: Database, name: str, held: str) -> None:
    """Refuse a database that holds the queue of a campaign of another name."""
    if held != name:
        raise QueueError(
            f"the database holds the queue of campaign '{held}', not of '{name}'",
            where=database.where,
            todo=_OWN_DATABASE,
        )


_OWN_DATABASE = "Give each campaign a database (or PostgreSQL schema) of its own: database_url in campaign.toml"


def lies_inside(database: Database, storage: Storage) -> bool:
    """Tell whether the database is a file in the campaign's folder, and so is copied and moved with it."""
    return storage.is_local and database.file is not None and database.file.resolve().is_relative_to(storage.root)


def is_here(storage: Storage, place: Place) -> bool:
    """Tell whether a place is that of the campaign at `storage`: by its address, or as the same folder mounted elsewhere."""
    here = Place.of(storage)
    if here.url == place.url and here.host == place.host:
        return True
    return here.host != place.host and here.folder == place.folder != ""


def _check_place(database: Database, storage: Storage, claimed: Owner) -> None:
    here, there = Place.of(storage), claimed.place
    if here == there:
        return
    if is_here(storage, there):
        if here.host == there.host:  # restored to its place, or on another disk there
            settle(database, storage)
        return
    if there.host not in ("", here.host):
        raise QueueError(
            f"the campaign was last opened in {there.url} on {there.host}, so this folder may be a copy of it",
            where=storage.url,
            todo=f"If it was moved, run 'rescueseg upgrade {storage.url} --moved'. {_COPY}",
        )
    if _may_hold(there.url, claimed.campaign_id) and not _same_folder(storage, there):
        raise QueueError(
            f"the folder is a copy of the campaign in {there.url}, which uses the same database",
            where=storage.url,
            todo=f"If this one goes on and that one does not, run 'rescueseg upgrade {storage.url} --moved'. {_COPY}",
        )
    settle(database, storage)


_COPY = "A copy needs a database of its own: database_url in campaign.toml"


def _same_folder(storage: Storage, place: Place) -> bool:
    """Tell whether two paths of this machine lead to one folder, as with a bind mount."""
    return storage.is_local and Place.of(storage).folder == place.folder and Path(storage.root).samefile(place.url)


def _may_hold(url: str, campaign_id: str) -> bool:
    """Tell whether the campaign of an id lies at a URL, or cannot be looked for there."""
    try:
        identity = RecordFolder(Storage(url)).read(IDENTITY)
    except (RescuesegError, OSError, ImportError, ValueError):
        return True
    return identity is not None and identity.campaign_id == campaign_id
