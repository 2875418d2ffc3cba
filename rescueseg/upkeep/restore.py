"""A campaign made again from a backup; every file's digest is checked on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import dump_config, parse_config
from rescueseg.campaign.layout import ANNOTATION, CAMPAIGN_FILE, DATABASE
from rescueseg.config import CampaignConfig
from rescueseg.errors import CampaignError, ServiceError, StorageError, storage_errors
from rescueseg.progress import Progress
from rescueseg.queue.database import HEAD, Database
from rescueseg.queue.database_copy import client_arguments, client_program
from rescueseg.queue.owner import settle
from rescueseg.storage import Storage, replace_atomically, write_atomically
from rescueseg.upkeep.backup_records import Backup, BackupFolder

_NOTE = ".restore"
"""Names the backup while its files are written: a restore that was cut off is given again and goes on."""
_CHUNK = 1 << 20


def restore(
    folder: BackupFolder,
    target: Path,
    name: str = "",
    *,
    database_url: str = "",
    progress: Progress | None = None,
) -> Campaign:
    """Make a campaign again from a backup.

    The settings are written last: until then there is no campaign, and the same command goes on where it was cut off.

    Parameters
    ----------
    folder : BackupFolder
        With the backups.
    target : Path
        Folder for the campaign: empty, new, or that of a restore which was cut off.
    name : str
        Of the backup; the latest when empty.
    database_url : str
        Database for the queue instead of the one that the settings name; it must be empty.
    progress : callable, optional
        Called with (what is counted, how many files are done, how many there are).

    Raises
    ------
    StorageError
        If something of the backup is missing or damaged; the file is named, and there is no campaign.
    CampaignError
        If the folder is in use, or the database that the settings name is.
    ServiceError
        If PostgreSQL's programs are missing or fail.
    """
    target = target.resolve()
    name = name or (folder.names() or [""])[-1]
    backup = folder.read(name)
    config = _settings(folder, backup, database_url)
    check_content(folder, backup)
    _require_room(target, name, config, backup)
    note = target / _NOTE
    write_atomically(note, name.encode())
    settings = next(file for file in backup.files if file.path == CAMPAIGN_FILE.path())
    files = [file for file in backup.files if file is not settings]
    for number, file in enumerate(files):
        if progress is not None:
            progress("files", number, len(files))
        _copy(folder, file.sha256, place := _inside(target, file.path))
        if ANNOTATION.matches(file.path):
            place.chmod(0o444)
    _restore_database(folder, backup, target, config)
    restored = Campaign(Storage(str(target)), config)
    database = Database(restored.database_url)
    if database.version() == HEAD:  # an earlier one is told by 'rescueseg upgrade' where it lies
        settle(database, restored.storage)  # it names the place where the campaign lay
    if database_url:
        write_atomically(target / CAMPAIGN_FILE.path(), dump_config(config).encode())
    else:
        _copy(folder, settings.sha256, target / CAMPAIGN_FILE.path())
    note.unlink()
    return restored


def _settings(folder: BackupFolder, backup: Backup, database_url: str) -> CampaignConfig:
    file = next((f for f in backup.files if f.path == CAMPAIGN_FILE.path()), None)
    if file is None:
        raise _damaged(folder.path / CAMPAIGN_FILE.path(), "the backup holds no settings")
    content = b"".join(_checked(folder, file.sha256))
    config = parse_config(content.decode(), f"{folder.path}: {CAMPAIGN_FILE.path()}")
    return config.model_copy(update={"database_url": database_url}) if database_url else config


def check_content(folder: BackupFolder, backup: Backup, *, anew: bool = False) -> None:
    """Make sure that the content of every file is there, by its size; with `anew` all of it is read, by its digest.

    Raises
    ------
    StorageError
        At the first that is missing or cut.
    """
    for sha256, size in [(backup.database_sha256, backup.database_size), *((f.sha256, f.size) for f in backup.files)]:
        path = folder.object(sha256)
        if not path.exists():
            raise _damaged(path, "the content of a file is missing")
        if path.stat().st_size != size:
            raise _damaged(path, f"the content of a file has {path.stat().st_size} bytes instead of {size}")
        if anew and not folder.holds(sha256, size, anew=True):
            raise _damaged(path, "the content of a file is not what was backed up")


def _require_room(target: Path, name: str, config: CampaignConfig, backup: Backup) -> None:
    note = target / _NOTE
    if target.exists() and not target.is_dir():
        raise CampaignError("this is no folder", where=str(target), todo="Name a new folder")
    goes_on = note.exists() and note.read_text() == name and not (target / CAMPAIGN_FILE.path()).exists()
    if not goes_on and target.exists() and any(target.iterdir()):
        raise CampaignError(
            "the folder is not empty",
            where=str(target),
            todo="Name a new folder, or one where this restore was cut off",
        )
    if backup.size > (free := shutil.disk_usage(_existing(target)).free):
        raise StorageError(
            f"{backup.size:,} bytes are needed, {free:,} are free", where=str(target), todo="Free some space"
        )
    url = _database(config, target)
    if url.get_backend_name() != backup.database:
        raise CampaignError(
            f"the backup holds a {backup.database} database, and {url.get_backend_name()} is named",
            where="database_url",
            todo=f"Name a {backup.database} database: --database-url",
        )
    own = Path(target, DATABASE.path())
    if backup.database == "sqlite" and not Path(str(url.database)).is_relative_to(target):
        for old in _companions(Path(str(url.database))):
            if old.exists():
                raise CampaignError(
                    "the log of a database that was there lies beside the new one's place, and would be played into it",
                    where=str(old),
                    todo="Move it away, or name another place: --database-url",
                )
    if (
        backup.database == "sqlite"
        and not goes_on
        and Path(str(url.database)) != own
        and Path(str(url.database)).exists()
    ):
        raise CampaignError(
            "the database that the settings name exists already",
            where=str(url.database),
            todo="Name another one: --database-url",
        )


def _companions(database: Path) -> list[Path]:
    """Return the files that SQLite keeps beside a database."""
    return [database.with_name(f"{database.name}{suffix}") for suffix in ("-wal", "-shm", "-journal")]


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _database(config: CampaignConfig, target: Path) -> URL:
    return (
        make_url(config.database_url)
        if config.database_url
        else URL.create("sqlite", database=str(Path(target, DATABASE.path()).absolute()))
    )


def _restore_database(folder: BackupFolder, backup: Backup, target: Path, config: CampaignConfig) -> None:
    url = _database(config, target)
    if backup.database == "sqlite":
        for old in _companions(Path(str(url.database))):
            old.unlink(missing_ok=True)
        _copy(folder, backup.database_sha256, Path(str(url.database)))
        return
    _restore_postgres(b"".join(_checked(folder, backup.database_sha256)), Database(url))


def _restore_postgres(dump: bytes, database: Database) -> None:
    """Make the tables of a dump in an empty database."""
    with database.read() as connection:
        tables = sorted(sa.inspect(connection).get_table_names())
    if tables:
        raise ServiceError(
            f"the database holds tables already, such as '{tables[0]}'",
            where=database.where,
            todo="Name an empty one: --database-url",
        )
    arguments, environment = client_arguments(database)
    command = [client_program("psql"), *arguments, "--no-psqlrc", "--quiet", "--single-transaction"]
    command += ["--set=ON_ERROR_STOP=1", "--file=-"]
    sql = dump.replace(b"\nCREATE SCHEMA ", b"\nCREATE SCHEMA IF NOT EXISTS ", 1)  # it is there, and empty
    run = subprocess.run(command, env=environment, input=sql, capture_output=True, check=False)
    if run.returncode:
        raise StorageError(
            f"psql failed: {run.stderr.decode(errors='replace').strip()}",
            where=database.where,
            todo="Mend what it says, then run again",
        )


def _inside(target: Path, path: str) -> Path:
    """Return where a file goes; a backup that was tampered with leads nowhere else."""
    place = Path(os.path.normpath(target / path))
    if not place.is_relative_to(target) or Path(path).is_absolute():
        raise _damaged(place, f"the backup names a path outside of the campaign, '{path}'")
    return place


def _copy(folder: BackupFolder, sha256: str, target: Path) -> None:
    """Write the content of a digest; what is there already with that digest stays."""
    if target.exists() and _digest(target) == sha256:
        return
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(target) as part, part.open("wb") as file:
            for data in _checked(folder, sha256):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _checked(folder: BackupFolder, sha256: str) -> Iterator[bytes]:
    """Yield the content of a digest, piece by piece; raise at its end when it is another's."""
    digest, path = hashlib.sha256(), folder.object(sha256)
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                digest.update(data)
                yield data
    except OSError as error:
        raise _damaged(path, f"the content of a file cannot be read: {error.strerror}") from error
    if digest.hexdigest() != sha256:
        raise _damaged(path, "the content of a file is not what was backed up")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(what, where=str(path), todo="Run 'rescueseg backup CAMPAIGN OUT --full', which stores it again")
