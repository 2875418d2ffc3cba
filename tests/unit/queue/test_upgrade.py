"""An older queue is left as it is until `rescueseg upgrade`, which copies it first and can be killed anywhere."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.campaign.identity import IDENTITY
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.errors import QueueError, ServiceError, StorageError
from rescueseg.queue import database_copy
from rescueseg.queue.database import HEAD, Database
from rescueseg.queue.database_copy import client_arguments, client_program, copy_sqlite
from rescueseg.queue.store import open_queue
from rescueseg.queue.upgrade import queue_steps

ROW = "('t', 'v', 0,0,0, 1,1,1, 'pool', 0, '', '', 1.5, NULL, 0, 'queued', '2026-01-01', '2026-01-01')"


def older_campaign(folder: Path, url: str, version: str = "0001") -> Campaign:
    """Return a campaign whose queue holds a ticket in the schema of an earlier version, and which has no id."""
    config = check_config({"name": "liver", "classes": ["organelle"], "database_url": url})
    campaign = Campaign.create(str(folder), config)
    campaign.storage.write_json("holdout.json", {"boxes": [], "guard_zyx": [1, 1, 1]})
    database = Database(url)
    database.migrate("0001")
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO tickets VALUES {ROW}")
        connection.exec_driver_sql("INSERT INTO owner VALUES (1, 'liver')")
    database.migrate(version)
    database.engine.dispose()
    return campaign


@pytest.fixture(params=["0001", "0002"])
def older(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> Campaign:
    return older_campaign(tmp_path / "liver", database_url, request.param)


def run(*arguments: str) -> str:
    told = CliRunner().invoke(app, list(arguments))
    assert told.exit_code == 0, told.output
    return told.output


def copies(campaign: Campaign) -> list[Path]:
    file = Database(campaign.database_url).file
    folder, name = (file.parent, file.name) if file else (Path(campaign.url), "campaign.db")
    return sorted(folder.glob(f"{name}.000*"))


def test_opening_an_older_queue_changes_nothing(older: Campaign) -> None:
    database = Database(older.database_url)
    version = database.version()
    for _ in range(2):
        with pytest.raises(QueueError, match=f"version is {version}, this one reads {HEAD}.*rescueseg upgrade"):
            open_queue(older)
    told = CliRunner().invoke(app, ["status", older.url])
    assert told.exit_code == 1
    assert f"rescueseg upgrade {older.url}" in told.output
    assert database.version() == version
    assert not older.storage.exists("identity.json")


def test_a_dry_run_says_what_would_be_done(older: Campaign) -> None:
    version = Database(older.database_url).version()
    said = run("upgrade", older.url, "--dry-run")
    assert "Would copy the database to " in said
    assert f"Would bring the database from version {version} to {HEAD}" in said
    assert "Nothing was changed" in said
    assert (Database(older.database_url).version(), copies(older)) == (version, [])


def test_an_older_queue_is_upgraded_once(older: Campaign) -> None:
    version = Database(older.database_url).version()
    run("upgrade", older.url)
    assert [ticket.ticket_id for ticket in open_queue(older).views.tickets()] == ["t"]
    assert older.records.read(IDENTITY) is not None
    [copy] = copies(older)
    assert f".{version}-" in copy.name
    assert "Nothing to do" in run("upgrade", older.url)
    assert copies(older) == [copy]


def test_the_copy_is_the_database_as_it_was(older: Campaign, new_postgres: Callable[[], str]) -> None:
    version = Database(older.database_url).version()
    run("upgrade", older.url)
    [copy] = copies(older)
    if Database(older.database_url).is_sqlite:
        restored = Database(f"sqlite:///{copy}")
        assert not copy.with_name(f"{copy.name}-wal").exists()
    else:
        restored = Database(new_postgres())
        arguments, environment = client_arguments(restored)
        with restored.engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public")
        command = [client_program("psql"), *arguments, "--set=ON_ERROR_STOP=1", "--quiet", f"--file={copy}"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert restored.version() == version
    with restored.read() as connection:
        assert connection.exec_driver_sql("SELECT ticket_id, score FROM tickets").all() == [("t", 1.5)]
        assert connection.exec_driver_sql("SELECT campaign FROM owner").all() == [("liver",)]
    restored.engine.dispose()


@pytest.mark.parametrize("steps", [1, 2])
def test_an_upgrade_that_was_killed_goes_on(older: Campaign, steps: int) -> None:
    for step in queue_steps(older)[:steps]:
        step.act()
    with pytest.raises((QueueError, StorageError), match="rescueseg upgrade"):
        open_queue(older)
    run("upgrade", older.url)
    assert [ticket.ticket_id for ticket in open_queue(older).views.tickets()] == ["t"]


def test_no_upgrade_while_a_generation_runs(older: Campaign) -> None:
    database, process = Database(older.database_url), psutil.Process()
    values = "('generation', 'generation of liver', 'x', '{}', {}, {}, '2026-01-01', '2999-01-01')"
    with database.engine.begin() as connection:
        row = values.format(socket.gethostname(), os.getpid(), process.create_time())
        connection.exec_driver_sql(f"INSERT INTO locks VALUES {row}")
    with pytest.raises(QueueError, match=f"'generation of liver' .process {os.getpid()} on"):
        queue_steps(older)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE locks SET started = 1.0")
    assert len(queue_steps(older)) == 3, "that process runs no more"


def test_a_queue_of_another_campaign_is_not_upgraded(older: Campaign, tmp_path: Path) -> None:
    settings = {"name": "kidney", "classes": ["o"], "database_url": older.config.database_url}
    other = Campaign.create(str(tmp_path / "kidney"), check_config(settings))
    with pytest.raises(QueueError, match="queue of campaign 'liver', not of 'kidney'"):
        queue_steps(other)


def test_of_two_older_folders_one_gets_the_database(older: Campaign, tmp_path: Path) -> None:
    settings = {"name": "liver", "classes": ["o"], "database_url": older.config.database_url}
    other = Campaign.create(str(tmp_path / "copy"), check_config(settings))
    other.storage.write_json("holdout.json", {})
    run("upgrade", older.url)
    with pytest.raises(QueueError, match=f"another campaign of the name 'liver', in {older.url}"):
        queue_steps(other)


def test_a_later_queue_is_refused(older: Campaign) -> None:
    with Database(older.database_url).engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rescueseg_schema SET version_num = '9999'")
    for act in (open_queue, queue_steps):
        with pytest.raises(QueueError, match="a later version of rescueseg made the queue"):
            act(older)


def test_a_lost_queue_is_not_made_by_an_upgrade(campaign: Campaign) -> None:
    file = Path(campaign.url, "campaign.db")
    file.unlink()
    with pytest.raises(StorageError, match="missing or empty"):
        queue_steps(campaign)
    assert not file.exists()


# copies --------------------------------------------------------------------------------------------------------------


def test_a_copy_holds_what_lies_in_the_log(tmp_path: Path) -> None:
    """Handed-in work is in the log beside the file while somebody reads, and a plain copy of the file misses it."""
    with closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE work (number INTEGER)")
        connection.execute("INSERT INTO work VALUES (42)")
        connection.commit()
        assert (tmp_path / "queue.db-wal").stat().st_size > 0
        copy_sqlite(tmp_path / "queue.db", tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copied:
        assert copied.execute("SELECT number FROM work").fetchall() == [(42,)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "queue.db"]


def test_a_damaged_database_is_not_copied(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "queue.db")) as connection, connection:
        connection.execute("CREATE TABLE work (text TEXT)")
        connection.executemany("INSERT INTO work VALUES (?)", [("x" * 500,)] * 200)
    content = bytearray((tmp_path / "queue.db").read_bytes())
    content[8192:12288] = b"\xff" * 4096
    (tmp_path / "queue.db").write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        copy_sqlite(tmp_path / "queue.db", tmp_path / "copy.db")
    with pytest.raises(StorageError, match="cannot be copied"):
        copy_sqlite(tmp_path / "missing.db", tmp_path / "copy.db")
    assert [path.name for path in tmp_path.iterdir()] == ["queue.db"]


def test_the_password_is_on_no_command_line() -> None:
    pytest.importorskip("psycopg2")
    database = Database("postgresql+psycopg2://anna:se%27cret@host:5433/liver?options=-csearch_path%3Dother")
    arguments, environment = client_arguments(database)
    assert "cret" not in "".join(arguments)
    assert environment["PGPASSWORD"] == "se'cret"
    for part in ("host='host'", "port='5433'", "dbname='liver'", "user='anna'", "options='-csearch_path=other'"):
        assert part in arguments[0]


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(database_copy, "Path", lambda _: tmp_path)
    with pytest.raises(ServiceError, match="pg_dump is not installed"):
        client_program("pg_dump")


def test_the_copy_is_named_by_its_time(older: Campaign) -> None:
    step = queue_steps(older)[0]
    assert f"-{datetime.now(UTC):%Y%m%dT}" in step.what
