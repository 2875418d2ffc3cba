"""The local servers of a campaign: Prefect, MLflow and, where it is served, annotation, on free loopback ports.

::

    CAMPAIGN/services/
        services.json     URLs and process ids, so that other commands find the servers
        prefect-secret    what Prefect asks everybody for, made anew at each start; only the owner enters this folder
        prefect/          Prefect's home and SQLite database
        mlflow-artifacts/ what runs log
        *.log             output of every server

A Prefect flow without a server starts an ephemeral one in every process, Dask workers included: five times slower than
one real server. Everything below a `Servers` block therefore gets the URLs, and the secret, by its environment.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import httpx

from rescueseg.config import ANNOTATION_PORT
from rescueseg.errors import ServiceError, storage_errors
from rescueseg.services.prefect_server import (
    SECRET_FILE,
    PrefectServer,
    make_private,
    make_secret,
    server_of_environment,
)
from rescueseg.services.processes import listens, stop_tree
from rescueseg.services.state import ServiceState, one_at_a_time, read_state, stop_stale_servers, write_state

HOST = "127.0.0.1"
START_SECONDS = 120.0


def checkout() -> Path:
    """Return the checkout that holds ``flows`` and ``tasks``, which no wheel carries.

    Raises
    ------
    ServiceError
        If rescueseg was not installed from a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "flows" / "generation.py").exists():
        raise ServiceError("the flows are not here", where=str(root), todo="Install from a checkout: pip install -e .")
    return root


def environment(folder: Path, prefect: PrefectServer, mlflow_uri: str) -> dict[str, str]:
    """Return the environment of every process that works with the servers.

    Parameters
    ----------
    folder : Path
        The services folder; Prefect keeps its database and results in it.
    prefect : PrefectServer
        The server that flows report to.
    mlflow_uri : str
        URL of the other server.

    Returns
    -------
    dict
        The whole environment of the caller with the settings added.
    """
    quiet = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "rescueseg",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "DASK_LOGGING__DISTRIBUTED": "warning",
        "PYTHONUNBUFFERED": "1",
        # Threads that spin at a barrier stall a training when another process wants a core: 4 s a step instead of 0.5 s.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    loopback = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), HOST, "localhost"]))
    return {
        **os.environ,
        **quiet,
        "NO_PROXY": loopback,
        "no_proxy": loopback,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(checkout()), os.environ.get("PYTHONPATH", "")])),
        "PREFECT_HOME": str(folder / "prefect"),
        **prefect.settings,
        "MLFLOW_TRACKING_URI": mlflow_uri,
    }


class Servers:
    """Start the servers on entering, stop them with all their children on leaving.

    Parameters
    ----------
    folder : Path
        The services folder; made when missing. Servers that a killed session left behind in it are stopped first.
    mlflow_backend : str
        SQLAlchemy URL of MLflow's database.
    mlflow_uri : str
        Use this tracking server and start none, unless empty.

    Raises
    ------
    ServiceError
        If a server does not answer in time; the message ends with its last lines of output.
    """

    def __init__(self, folder: Path, mlflow_backend: str, *, mlflow_uri: str = "") -> None:
        self.folder = folder
        self._backend = mlflow_backend
        self.prefect = PrefectServer("")
        self.mlflow_uri = mlflow_uri
        self.annotation_url = ""
        self._owns_mlflow = not mlflow_uri
        self._last_annotation_url = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Environment for processes that use the servers; see `environment`."""
        return environment(self.folder, self.prefect, self.mlflow_uri)

    def __enter__(self) -> Servers:
        make_private(self.folder)
        try:
            with one_at_a_time(self.folder):
                health = self._start(stop_stale_servers(self.folder))
            for name, url in health.items():
                self._wait(name, url)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, previous: ServiceState | None) -> dict[str, str]:
        """Start the processes; return the address of each at which it says that it is there."""
        port = _free_port(_port_of(previous.prefect_api_url if previous else ""))
        self.prefect = PrefectServer(f"http://{HOST}:{port}/api", make_secret(self.folder))
        health = {"prefect": f"{self.prefect.url}/health"}
        commands = {"prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(port)]}
        if self._owns_mlflow:
            mlflow_port = _free_port(_port_of(previous.mlflow_uri if previous else ""), avoid=port)
            self.mlflow_uri = f"http://{HOST}:{mlflow_port}"
            health["mlflow"] = f"{self.mlflow_uri}/health"
            commands["mlflow"] = mlflow_command(self._backend, self.folder, mlflow_port)
        for name, command in commands.items():
            self.spawn(name, [sys.executable, "-m", *command])
        self._last_annotation_url = previous.annotation_url if previous else ""
        return health

    def serve_annotation(self, campaign_url: str) -> None:
        """Start a campaign's annotation server too, at its last address if that is free; errors as on entering."""
        port = _free_port(_port_of(self._last_annotation_url) or ANNOTATION_PORT)
        self.annotation_url = f"http://{HOST}:{port}"
        program = "from rescueseg.cli.main import app; app()"
        self.spawn("annotation", [sys.executable, "-c", program, "serve", campaign_url, "--port", str(port)])
        self._wait("annotation", f"{self.annotation_url}/api/v1/health")

    def spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process in the services folder; it is stopped with the servers.

        Parameters
        ----------
        name : str
            Names its log file and its entry in ``services.json``; a process of that name is stopped first.
        command : sequence of str
            Program and arguments.
        """
        self._stop(self._processes.pop(name, None))
        path = self.folder / f"{name}.log"
        with storage_errors(str(path)), path.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        pids = {name: process.pid for name, process in self._processes.items()}
        write_state(self.folder, self.prefect.url, self.mlflow_uri, self.annotation_url, pids)
        return process

    def dead_process(self) -> str:
        """Return the name of a process that has ended, empty while all are alive."""
        return next((name for name, process in self._processes.items() if process.poll() is not None), "")

    def log_tail(self, name: str, lines: int = 12) -> str:
        """Return the last lines that a process wrote."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def stop(self) -> None:
        """End every process started, the youngest first, with all its descendants; their secret is worth nothing then."""
        while self._processes:
            self._stop(self._processes.popitem()[1])
        if self.prefect.secret:
            (self.folder / SECRET_FILE).unlink(missing_ok=True)

    @staticmethod
    def _stop(process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            stop_tree(process.pid)
            process.wait()

    def _wait(self, name: str, url: str) -> None:
        """Wait until the server answers; whoever else took its port meanwhile is not given the secret."""
        process = self._processes[name]
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if client.get(url).is_success and listens(process.pid, _port_of(url)):
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
        why = "ended at once" if process.poll() is not None else f"did not answer within {START_SECONDS:.0f} s"
        raise ServiceError(
            f"the {name} server {why}",
            where=str(self.folder / f"{name}.log"),
            todo=f"Its last lines:\n{self.log_tail(name)}",
        )


@contextmanager
def connect(folder: Path, mlflow_backend: str, mlflow_uri: str = "") -> Iterator[dict[str, str]]:
    """Yield the environment for flows: servers that run already are used, others are started for the block.

    Parameters
    ----------
    folder : Path
        The services folder of the campaign.
    mlflow_backend : str
        SQLAlchemy URL of MLflow's database, for a server that has to be started.
    mlflow_uri : str
        Tracking server to use in any case, unless empty.
    """
    if prefect := server_of_environment():
        yield environment(folder, prefect, mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", mlflow_backend))
        return
    if state := read_state(folder):
        yield environment(folder, state.prefect(folder), mlflow_uri or state.mlflow_uri)
        return
    with Servers(folder, mlflow_backend, mlflow_uri=mlflow_uri) as servers:
        yield servers.environment


def mlflow_command(backend: str, folder: Path, port: int) -> list[str]:
    """Return the arguments after ``python -m`` that serve a campaign's MLflow database."""
    return [
        *["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"],
        *["--backend-store-uri", backend, "--artifacts-destination", str(folder / "mlflow-artifacts")],
    ]


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that a `Servers` block still stops what it started."""

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _port_of(url: str) -> int:
    return httpx.URL(url).port or 0 if url else 0


def _free_port(preferred: int = 0, avoid: int = 0) -> int:
    """Return a free loopback port: the one used last time when it is free, so that bookmarks stay valid."""
    for candidate in (preferred, 0, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((HOST, candidate))
            except OSError:
                continue
            port = int(sock.getsockname()[1])
            if port != avoid:
                return port
    raise ServiceError("no free port on the loopback interface", todo="Stop some servers and run again")
