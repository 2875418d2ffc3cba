"""The schema: migrated from empty it is what the code expects, however many processes start at once."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import IntegrityError

from rescueseg.errors import QueueError
from rescueseg.geometry import Box
from rescueseg.queue.database import HEAD, Database
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore
from rescueseg.queue.tables import VERSION_TABLE, leases, metadata


def test_the_migrated_schema_is_that_of_the_tables(database_url: str) -> None:
    database = Database(database_url)
    assert database.version() is None
    database.migrate()
    database.migrate()
    assert database.version() == HEAD
    options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    database.engine.dispose()


def test_the_database_refuses_a_second_running_lease(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    store.tickets.add([NewTicket(ticket_id="t", volume_id="v", box=Box((0, 0, 0), (1, 1, 1)))])
    lease = store.leases.claim("anna", 60)
    assert lease is not None
    copy = sa.insert(leases).from_select(
        [c.name for c in leases.c],
        sa.select(*(sa.literal("other") if c.name == "lease_id" else c for c in leases.c)),
    )
    with pytest.raises(IntegrityError), store.database.write() as connection:
        connection.execute(copy)
    store.leases.release(lease.lease_id, "anna")
    assert store.leases.claim("bob", 60) is not None
    store.close()


def test_a_queue_of_the_first_version_is_brought_up_to_date(database_url: str) -> None:
    database = Database(database_url)
    database.migrate("0001")
    assert database.version() == "0001"
    rows = {
        "tickets": "('t', 'v', 0,0,0, 1,1,1, 'pool', 0, '', '', 1.5, NULL, 0, 'accepted', '2026-01-01', '2026-01-01')",
        "assignments": "(1, 't', 1)",
        "leases": "('l', 't', 1, 'anna', '2026-01-01', '2026-01-02', 60, 'submitted')",
        "annotations": "('a', 't', 1, 'l', 1, 'anna', 'file', 'p', 'd', 42.0, 7, '2026-01-01', 'accepted', NULL, NULL, '')",
    }
    with database.engine.begin() as connection:
        for table, row in rows.items():
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES {row}")
    store = QueueStore(database_url)
    store.migrate()
    assert store.views.ticket("t").annotators == 1
    assert [(a.version, a.origin, a.seconds) for a in store.views.annotations("t")] == [(1, "annotator", 42.0)]
    assert [(w.seconds, w.voxels_corrected, w.accepted) for w in store.views.efforts()] == [(42.0, 7, 1)]
    assert [a.ticket_id for a in store.views.accepted()] == ["t"]
    store.close()
    database.engine.dispose()


def test_head_is_the_last_script() -> None:
    config = Config()
    config.set_main_option("script_location", "rescueseg.queue:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_newer_database_is_refused(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(QueueError, match="newer version"):
        database.migrate()
    assert database.version() == "9999"
    database.engine.dispose()


def test_nothing_is_written_to_another_version(database_url: str) -> None:
    store = QueueStore(database_url)
    store.migrate()
    new = [NewTicket(ticket_id="t", volume_id="v", box=Box((0, 0, 0), (1, 1, 1)))]
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(QueueError, match="version 9999, this program writes version"):
        store.tickets.add(new)
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'")
    assert store.views.tickets() == []
    assert store.tickets.add(new) == 1
    store.close()


def test_no_upgrade_comes_between_the_look_at_the_version_and_the_commit(database_url: str) -> None:
    store, other = QueueStore(database_url), Database(database_url)
    store.migrate()
    ended: list[str] = []

    def upgrade() -> None:
        with other.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
            ended.append("upgrade")

    with store.database.write() as connection:
        beside = threading.Thread(target=upgrade)
        beside.start()
        beside.join(0.5)
        connection.exec_driver_sql("SELECT 1")
        ended.append("write")
    beside.join(30)
    assert ended == ["write", "upgrade"]
    store.close()
    other.engine.dispose()


def _migrate(url: str, start: multiprocessing.synchronize.Event) -> None:
    start.wait()
    QueueStore(url).migrate()


def test_several_processes_may_open_a_new_database_at_once(database_url: str) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    processes = [context.Process(target=_migrate, args=(database_url, start)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    database = Database(database_url)
    assert database.version() == HEAD
    database.engine.dispose()


def test_a_migration_that_dies_leaves_nothing_behind(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import alembic.operations.toimpl as toimpl

    database = Database(database_url)
    create_index = toimpl.create_index

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    from alembic.operations import Operations
    from alembic.operations.ops import CreateIndexOp

    Operations.implementation_for(CreateIndexOp, replace=True)(die)
    try:
        with pytest.raises(KeyboardInterrupt):
            database.migrate()
    finally:
        Operations.implementation_for(CreateIndexOp, replace=True)(create_index)
    assert sa.inspect(database.engine).get_table_names() == []
    database.migrate()
    assert database.version() == HEAD
    database.engine.dispose()


def test_the_queue_imports_nothing_heavy() -> None:
    code = (
        "import sys, rescueseg.cli.queue;"
        "print([m for m in ('torch', 'monai', 'mlflow', 'prefect', 'scipy', 'alembic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_scripts_are_in_the_package() -> None:
    import rescueseg.queue.migrations as migrations

    folder = Path(migrations.__file__).parent
    assert {"env.py", "script.py.mako"} <= {p.name for p in folder.iterdir()}
    assert list((folder / "versions").glob("v0001_*.py"))
