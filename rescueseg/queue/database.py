"""The database under the queue: engine, transactions, migrations."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from rescueseg.errors import RESTORE, ConfigError, QueueError, StorageError, storage_errors
from rescueseg.queue.tables import VERSION_TABLE

HEAD = "0003"
"""The schema version that this code reads and writes."""

_BUSY_SECONDS = 60
_LOG_BYTES = 2**16
_MIGRATION_LOCK = 0x7265736375
_NETWORK = (
    "nfs", "cifs", "smb", "afs", "lustre", "gpfs", "beegfs", "fhgfs", "ceph", "glusterfs", "pvfs", "orangefs",
    "davfs", "fuse.sshfs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "webdav",
)  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that a path lies on, None for a local disk."""
    target = path.resolve()
    mounts = [(Path(p.mountpoint), p.fstype.lower()) for p in psutil.disk_partitions(all=True)]
    inside = [(len(mount.parts), kind) for mount, kind in mounts if target.is_relative_to(mount)]
    kind = max(inside, default=(0, ""))[1]
    return kind if kind.startswith(_NETWORK) else None


def damage(where: str, what: str) -> StorageError:
    """Return the error about a database that no longer holds what was stored in it: lost, cut or altered."""
    return StorageError(what, where=where, todo=RESTORE)


def make_engine(url: str | URL) -> Engine:
    """Return an engine whose transactions take the write lock at once on SQLite.

    Raises
    ------
    ConfigError
        If the URL is not valid or its driver is not installed.
    QueueError
        If it names a SQLite file on a network file system, or in memory.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"the database URL cannot be used: {error}",
            where="database_url",
            todo="Use sqlite:////path/queue.db or postgresql+psycopg2://user@host/database (pip install rescueseg[postgres])",
        ) from error
    if not parsed.database or parsed.database == ":memory:":
        raise QueueError("a queue in memory would be lost", where=str(url), todo="Name a file")
    kind = network_file_system(Path(parsed.database).parent)
    if kind:
        raise QueueError(
            f"SQLite is not safe on a network file system ({kind})",
            where=parsed.database,
            todo="Put the campaign on a local disk, or set database_url to a PostgreSQL URL",
        )
    engine = sa.create_engine(parsed, poolclass=NullPool, connect_args={"timeout": _BUSY_SECONDS})
    sa.event.listen(engine, "do_connect", _open_existing)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _open_existing(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """Let SQLite open only what is there: by itself it makes a missing database anew, empty."""
    arguments[0] = f"{Path(arguments[0]).absolute().as_uri()}?mode=rw"
    options["uri"] = True


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    deadline = time.monotonic() + _BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # while another process is switching: the busy timeout does not cover this
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("rescueseg_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


class Database:
    """Transactions on the queue's database, its errors turned into ours.

    Parameters
    ----------
    url : str or sqlalchemy.URL
        SQLAlchemy URL: a SQLite file or PostgreSQL.
    """

    def __init__(self, url: str | URL) -> None:
        self.engine = make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.file = Path(str(self.engine.url.database)).absolute() if self.is_sqlite else None
        """The file of SQLite, None for a server."""
        self.where = str(self.file) if self.file else self.engine.url.render_as_string(hide_password=True)
        self._turn: AbstractContextManager[object] = threading.Lock() if self.is_sqlite else nullcontext()
        """SQLite lets waiting writers poll, and some of many threads starve: here they queue up."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the driver's errors, and values that no row of ours holds, into a `StorageError`."""
        try:
            yield
        except PoolTimeoutError as error:
            raise StorageError(
                "no connection to the database was free", where=self.where, todo="Run again; nothing was changed"
            ) from error
        except ValueError as error:  # a time, a text or a status that nobody stored
            raise damage(self.where, f"the database holds what was not stored: {_first_line(error)}") from error
        except (DatabaseError, InterfaceError) as error:
            text = next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
            if "no such table" in text or (isinstance(error, ProgrammingError) and "does not exist" in text):
                raise damage(self.where, f"tables of the queue are missing: {text}") from error
            if isinstance(error, (ProgrammingError, IntegrityError, DataError)):
                raise
            if any(
                said in text for said in ("not a database", "malformed", "decode to UTF-8", "unsupported file format")
            ):
                raise damage(self.where, f"the database is damaged: {text}") from error
            if self._is_missing():
                raise damage(self.where, "the database is missing") from error
            if self.is_sqlite and ("full" in text or self._disk_is_full()):
                text = "the disk is full"
            todo = "Free some space" if "full" in text else "Check that the database is reachable and writable"
            raise StorageError(
                f"the database refused: {text}", where=self.where, todo=f"{todo}, then run again; nothing was changed"
            ) from error

    def _is_missing(self) -> bool:
        """Tell whether SQLite's file is not in its folder; without the folder, perhaps a disk is out of reach."""
        return self.file is not None and self.file.parent.is_dir() and not self.file.exists()

    def _disk_is_full(self) -> bool:
        """Tell what SQLite calls an I/O error: there is no room for its log."""
        folder = self.file.parent if self.file else None
        return folder is not None and folder.is_dir() and shutil.disk_usage(folder).free < _LOG_BYTES

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open one immediate transaction on the schema of this version; all of it happens or nothing.

        Raises
        ------
        QueueError
            If the database has another schema by now: nothing is written to one that this code does not know.
        StorageError
            If the database is lost, damaged, full or out of reach.
        """
        with self._begin() as connection:
            # another process cannot upgrade it before this transaction has ended
            keep = "" if self.is_sqlite else " FOR KEY SHARE"
            version = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}{keep}")).scalar()
            if version != HEAD:
                raise QueueError(
                    f"the queue's database is of version {version}, this program writes version {HEAD}",
                    where=self.where,
                    todo="Stop this and start it again with the rescueseg that upgraded the campaign; nothing was changed",
                )
            yield connection

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with self._turn, self.errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open one consistent view that blocks nobody."""
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        engine = self.engine.execution_options(rescueseg_reading=True, **level)
        with self.errors(), engine.begin() as connection:
            yield connection

    def insert_if_new(self, table: sa.Table) -> Any:
        """Return an insert that does nothing when the primary key is taken."""
        dialect: Any = sqlite if self.is_sqlite else postgresql
        return dialect.insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key.columns))

    def version(self) -> str | None:
        """Return the schema version in the database, None when there is no database or it holds no queue."""
        if self._is_missing() or (self.file and self.file.is_file() and not self.file.stat().st_size):
            return None
        with self.errors(), self.engine.execution_options(rescueseg_reading=True).begin() as connection:
            return _version(connection)

    def migrate(self, target: str = HEAD) -> None:
        """Make the database, or bring its schema to a version; several processes may do so at once.

        Parameters
        ----------
        target : str
            Another version than this code's, for tests.

        Raises
        ------
        QueueError
            If a newer rescueseg made the database.
        """
        if self.version() == target:
            return
        if self._is_missing() and self.file:
            with storage_errors(self.where):
                self.file.touch()

        config = Config()
        config.set_main_option("script_location", "rescueseg.queue:migrations")
        with self._begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            if _version(connection) == target:
                return
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, target)
            except CommandError as error:
                raise QueueError(
                    f"the queue's database is of an unknown version ({error})",
                    where=self.where,
                    todo="Update rescueseg: a newer version made this database",
                ) from error


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))} is {first['input']!r}"
    return str(error).partition("\n")[0]


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    value = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if value is None else str(value)
