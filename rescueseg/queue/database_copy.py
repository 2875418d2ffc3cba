"""Copies of the queue's database, made while others use it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from rescueseg.errors import ServiceError, StorageError, storage_errors
from rescueseg.queue.database import Database, damage
from rescueseg.storage import replace_atomically


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite database as it is at one moment, also while others write to it; a plain copy would miss their log.

    Parameters
    ----------
    source : Path
        The database.
    target : Path
        A new file, in a folder that exists; replaced when it is there.

    Raises
    ------
    StorageError
        If the database is missing or damaged, or the disk full.
    """
    with storage_errors(str(target)), replace_atomically(target) as part:
        try:
            with (
                closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as original,
                closing(sqlite3.connect(part)) as copy,
            ):
                original.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
                answer = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            code = (error.sqlite_errorcode or 0) & 0xFF
            if not source.exists() or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise damage(str(source), f"the database cannot be copied: {error}") from error
            raise StorageError(
                f"the database cannot be copied: {error}",
                where=str(source),
                todo="Check its owner, its mode and the disk, then run again; nothing was changed",
            ) from error
        if answer != "ok":
            raise damage(str(source), f"the database is damaged: {answer}")
        with part.open("rb") as file:
            os.fsync(file.fileno())


def dump_postgres(database: Database) -> bytes:
    """Return the SQL that makes the queue's schema of a PostgreSQL database anew: tables, rows and all.

    Raises
    ------
    ServiceError
        If pg_dump is not installed, or older than the server.
    StorageError
        If the database cannot be read.
    """
    program = client_program("pg_dump")
    with database.read() as connection:
        schema = str(connection.execute(sa.text("SELECT current_schema()")).scalar())
    name = schema.replace('"', '""')
    arguments, environment = client_arguments(database)
    command = [program, *arguments, f'--schema="{name}"', "--no-owner", "--no-privileges"]
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    if run.returncode:
        said = run.stderr.decode(errors="replace").strip()
        if "version mismatch" in said:
            raise ServiceError(f"pg_dump is older than the server: {said}", where=program, todo="Install a later one")
        raise StorageError(f"pg_dump failed: {said}", where=database.where, todo="Mend what it says, then run again")
    return run.stdout


def client_program(name: str) -> str:
    """Return the path of one of PostgreSQL's client programs, such as ``pg_dump`` or ``psql``: the latest installed.

    Raises
    ------
    ServiceError
        If it is not installed.
    """
    installed = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    latest = max(installed, key=lambda path: float(path.parts[4]), default=None)
    program = str(latest) if latest else shutil.which(name)
    if program is None:
        raise ServiceError(
            f"{name} is not installed", where="PATH", todo="Install PostgreSQL's client programs (postgresql-client)"
        )
    return program


def client_arguments(database: Database) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment by which PostgreSQL's client programs reach a database.

    The password goes into the environment: command lines can be read by everybody on the machine.
    """
    _, options = database.engine.dialect.create_connect_args(database.engine.url)
    password = options.pop("password", None)
    environment = dict(os.environ) if password is None else {**os.environ, "PGPASSWORD": str(password)}
    quoted = {key: str(value).replace("\\", "\\\\").replace("'", "\\'") for key, value in options.items()}
    dsn = " ".join(f"{key}='{value}'" for key, value in quoted.items())
    return [f"--dbname={dsn}", "--no-password"], environment
