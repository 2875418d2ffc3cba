"""A backup of a campaign, taken while people annotate and a generation runs.

The database is copied first, as it is at one moment: what it names was written before, so that it is among the files. Then
the records are copied, which commit what lies beside them, and then everything else: whatever a record speaks of was
there when the record was. Files are kept by their digest; a second backup reads and stores only what has changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.identity import IDENTITY
from rescueseg.campaign.layout import (
    CHECKPOINTS,
    DATABASE,
    SERVICES,
    TRACKING_DATABASE,
    TRACKING_FILES,
)
from rescueseg.errors import QueueError, StorageError, damaged
from rescueseg.progress import Progress
from rescueseg.queue.database import Database
from rescueseg.queue.database_copy import copy_sqlite, dump_postgres
from rescueseg.queue.store import is_new
from rescueseg.storage import Storage
from rescueseg.upkeep.backup_records import Backup, BackupFile, BackupFolder, DatabaseKind

_CHUNK = 1 << 20
_log = logging.getLogger(__name__)
_UNFINISHED = re.compile(r"(^|/)\.[^/]*\.part[^/]*(/|$)")


@dataclass(frozen=True)
class Found:
    """A file of the campaign, as its folder lists it."""

    path: str
    size: int
    stamp: str


@dataclass(frozen=True)
class BackupPlan:
    """What a backup would do.

    Parameters
    ----------
    files : int
        Files of the campaign, the database left out.
    size : int
        Bytes in them.
    new_files, new_size : int
        Those that changed since the backup before, which are read and stored.
    """

    files: int
    size: int
    new_files: int
    new_size: int


def files_of(campaign: Campaign) -> list[Found]:
    """Return the files that a backup holds, records first.

    Left out are the databases, which are copied as such; logs and databases of local servers; imports that run; and the
    checkpoints of finished generations.
    """
    finished = {g.number for g in campaign.generations() if "training" in g.finished_stages()}
    own = _own_database(campaign.storage, campaign.database_url)
    files = [f for f in _listed(campaign.storage) if not _is_left_out(f.path, finished, own)]
    return sorted(files, key=lambda f: (not f.path.endswith((".json", ".toml")), f.path))


def _listed(storage: Storage) -> Iterator[Found]:
    storage.fs.invalidate_cache()
    for path, info in sorted(storage.fs.find(storage.root, detail=True).items()):
        relative = str(path).removeprefix(storage.root).lstrip("/")
        if info["type"] != "file" or info.get("islink") or "\\" in relative:
            continue  # a link, a pipe, a name that no version writes: nothing of the campaign's
        changed = next((info[key] for key in ("mtime", "LastModified", "ETag", "created") if info.get(key)), "")
        yield Found(relative, int(info["size"]), f"{changed}/{info.get('ino', '')}")


def _own_database(storage: Storage, database_url: str | URL) -> str:
    """Return where the queue's file lies below the campaign, if it does."""
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite" or not storage.is_local:
        return DATABASE.path()
    return os.path.relpath(str(url.database), storage.root)


def _is_left_out(path: str, finished: set[int], own: str) -> bool:
    databases = (DATABASE.path(), TRACKING_DATABASE.path(), own)
    if path in {f"{name}{suffix}" for name in databases for suffix in ("", "-wal", "-shm", "-journal")}:
        return True
    if _UNFINISHED.search(path):
        return True
    if SERVICES.matches(path):
        return not TRACKING_FILES.matches(path)
    return any(path.startswith(f"{CHECKPOINTS.path(generation=number)}/") for number in finished)


def plan_backup(campaign: Campaign, folder: BackupFolder) -> BackupPlan:
    """Return what a backup would read and store; nothing is written, and no file is read."""
    files, known = files_of(campaign), _known(folder)
    new = [f for f in files if not _unchanged(f, known, folder)]
    return BackupPlan(len(files), sum(f.size for f in files), len(new), sum(f.size for f in new))


def back_up(
    campaign: Campaign, folder: BackupFolder, *, full: bool = False, progress: Progress | None = None
) -> tuple[str, Backup]:
    """Back a campaign up; nobody has to stop working.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    folder : BackupFolder
        Where its backups lie; not below the campaign.
    full : bool
        Read every file again, those too that seem unchanged.
    progress : callable, optional
        Called with (what is counted, how many files are done, how many there are).

    Returns
    -------
    name : str
        Of the backup.
    backup : Backup
        What it holds.

    Raises
    ------
    StorageError
        If a file cannot be read, or the backup cannot be written; there is no backup then.
    ServiceError
        If PostgreSQL's programs are missing or fail.
    """
    _check_folder(campaign, folder)
    started, known = time.perf_counter(), {} if full else _known(folder)
    kind, (sha256, size) = _copy_database(campaign, folder)
    left_out: list[str] = []
    files = list(_copy_tracking(campaign.storage, folder, left_out))
    first = files_of(campaign)
    records = [f for f in first if f.path.endswith((".json", ".toml"))]
    for number, found in enumerate(records):
        _note(progress, "records", number, len(records))
        files += _copy(campaign.storage, found, known, folder, anew=full)
    others = [f for f in files_of(campaign) if not f.path.endswith((".json", ".toml"))]
    for number, found in enumerate(others):
        _note(progress, "files", number, len(others))
        files += _copy(campaign.storage, found, known, folder, anew=full)
    backup = Backup(
        campaign=campaign.config.name,
        campaign_id=_id_of(campaign.storage),
        url=campaign.url,
        made_at=datetime.now(UTC),
        version=version("rescueseg"),
        database=kind,
        database_sha256=sha256,
        database_size=size,
        files=tuple(sorted(files, key=lambda f: f.path)),
        left_out=tuple(left_out),
        seconds=round(time.perf_counter() - started, 3),
    )
    return folder.write(backup), backup


def _note(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)


def _id_of(storage: Storage) -> str:
    identity = RecordFolder(storage).read(IDENTITY)
    return identity.campaign_id if identity else ""


def _check_folder(campaign: Campaign, folder: BackupFolder) -> None:
    """Refuse a folder within the campaign, and one that holds another campaign's backups."""
    if campaign.storage.is_local and folder.path.is_relative_to(campaign.storage.root):
        raise StorageError(
            "the backup would lie in the campaign itself", where=str(folder.path), todo="Name a folder elsewhere"
        )
    last = _last(folder)
    if last is None:
        return
    mine, theirs = _id_of(campaign.storage), last.campaign_id
    if (mine and theirs and mine != theirs) or last.campaign != campaign.config.name:
        raise StorageError(
            f"the folder holds backups of another campaign, '{last.campaign}' in {last.url}",
            where=str(folder.path),
            todo="Give each campaign a folder of its own",
        )


def _last(folder: BackupFolder) -> Backup | None:
    """Return the latest backup whose list can be read."""
    for name in reversed(folder.names()):
        try:
            return folder.read(name)
        except StorageError as error:
            _log.warning("%s", error)
    return None


def _known(folder: BackupFolder) -> Mapping[str, BackupFile]:
    last = _last(folder)
    return {file.path: file for file in last.files} if last else {}


def _unchanged(found: Found, known: Mapping[str, BackupFile], folder: BackupFolder) -> bool:
    earlier = known.get(found.path)
    same = earlier is not None and (earlier.size, earlier.stamp) == (found.size, found.stamp)
    return same and earlier is not None and folder.holds(earlier.sha256, earlier.size)


def _copy(
    storage: Storage, found: Found, known: Mapping[str, BackupFile], folder: BackupFolder, *, anew: bool
) -> list[BackupFile]:
    """Copy a file unless its content is there; none where it vanished: what replaces it is committed later."""
    if _unchanged(found, known, folder):
        return [known[found.path]]
    try:
        sha256, size = _store(storage, found.path, folder, anew=anew)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"the file cannot be read or stored: {error.strerror or error}",
            where=storage.path(found.path),
            todo="Check its owner, its mode and the disk, then run again; there is no backup yet",
        ) from error
    return [BackupFile(path=found.path, sha256=sha256, size=size, stamp=found.stamp if size == found.size else "")]


def _store(storage: Storage, path: str, folder: BackupFolder, *, anew: bool) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with storage.fs.open(storage.path(path), "rb") as source, folder.new_object() as part:
        with part.open("wb") as target:
            while data := source.read(_CHUNK):
                digest.update(data)
                size += len(data)
                target.write(data)
        folder.keep(part, digest.hexdigest(), anew=anew)
    return digest.hexdigest(), size


def _copy_database(campaign: Campaign, folder: BackupFolder) -> tuple[DatabaseKind, tuple[str, int]]:
    if is_new(campaign.storage):
        raise QueueError("the campaign has no queue yet", where=campaign.url, todo="Sample first: 'rescueseg sample'")
    url = make_url(campaign.database_url)
    with folder.new_object() as part:
        if url.get_backend_name() == "sqlite":
            _copy_sqlite(Path(str(url.database)), part)
            return "sqlite", _keep(part, folder)
        part.write_bytes(dump_postgres(Database(url)))
        return "postgresql", _keep(part, folder)


def _copy_tracking(storage: Storage, folder: BackupFolder, left_out: list[str]) -> Iterator[BackupFile]:
    """Yield the copy of MLflow's own database, where the campaign has one."""
    path = TRACKING_DATABASE.path()
    if storage.is_local and storage.exists(path):
        with folder.new_object() as part:
            try:
                _copy_sqlite(Path(storage.path(path)), part)
            except StorageError as error:  # curves can be made again, labels cannot
                left_out.append(str(error))
                return
            sha256, size = _keep(part, folder)
        yield BackupFile(path=path, sha256=sha256, size=size)


def _copy_sqlite(source: Path, target: Path) -> None:
    if not source.is_file() or not source.stat().st_size:
        raise damaged(str(source), "the database is missing or empty")
    copy_sqlite(source, target)


def _keep(part: Path, folder: BackupFolder) -> tuple[str, int]:
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = part.stat().st_size
    folder.keep(part, sha256, anew=True)
    return sha256, size
