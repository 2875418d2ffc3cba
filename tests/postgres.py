"""A PostgreSQL server for the time of a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def throw_away_postgres() -> Iterator[str]:
    """Start a throw-away PostgreSQL server on a socket of its own and return the folder of that socket."""
    installed = [p.parent for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))]
    on_path = shutil.which("pg_ctl")
    if not installed and on_path is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("psycopg2", reason="the extra 'postgres' is not installed")
    programs = installed[-1] if installed else Path(str(on_path)).parent
    folder = Path(tempfile.mkdtemp(prefix="rescueseg-pg-", dir="/tmp"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("runuser") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    data, log = str(folder / "data"), str(folder / "log")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=50"
    run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
    run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
    try:
        yield str(folder)
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
