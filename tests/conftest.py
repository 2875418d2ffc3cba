"""Fixtures that every kind of test shares."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.queue.store import make_queue
from tests.other_packages import install_toy_family
from tests.postgres import throw_away_postgres


def pytest_configure(config: pytest.Config) -> None:
    """Install a model family of another package, on which the contract suites run as on our own."""
    site = tempfile.mkdtemp(prefix="rescueseg-site-")
    config.add_cleanup(lambda: shutil.rmtree(site, ignore_errors=True))
    install_toy_family(Path(site))


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Return an empty campaign with one class, as `rescueseg init` leaves it."""
    made = Campaign.create(str(tmp_path / "campaign"), check_config({"name": "test", "classes": ["organelle"]}))
    make_queue(made)
    return made


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real volumes; the test is skipped where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RESCUESEG_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real volumes in {folder} (set RESCUESEG_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Start a throw-away PostgreSQL server on a socket of its own and return the folder of that socket."""
    with throw_away_postgres() as folder:
        yield folder


@pytest.fixture(scope="session")
def virtual_screen() -> Iterator[str]:
    """Start a virtual X server with OpenGL for napari and return its display."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    pytest.importorskip("npe2", reason="the extra 'napari' is not installed")
    reading, writing = os.pipe()
    options = ["-displayfd", str(writing), "-screen", "0", "1280x900x24", "+extension", "GLX", "-nolisten", "tcp"]
    server = subprocess.Popen(["Xvfb", *options], pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as told:
            number = told.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


_numbers = itertools.count()


@pytest.fixture
def new_postgres(postgres_server: str) -> Callable[[], str]:
    """Return a function that makes an empty database and returns its SQLAlchemy URL."""
    import psycopg2

    def make() -> str:
        name = f"test_{next(_numbers)}"
        connection = psycopg2.connect(host=postgres_server, user="postgres", dbname="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return f"postgresql+psycopg2://postgres@/{name}?host={postgres_server}"

    return make


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs_postgres)])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of an empty queue database: each test runs on SQLite (in memory-backed files) and PostgreSQL."""
    if request.param == "postgres":
        yield str(request.getfixturevalue("new_postgres")())
        return
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield f"sqlite:///{folder}/queue.db"
