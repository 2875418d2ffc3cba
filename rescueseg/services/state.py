"""Which servers of a campaign run: what ``services.json`` says, checked against the processes that are alive."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import ServiceError, StorageError, storage_errors
from rescueseg.services.prefect_server import PrefectServer, read_secret
from rescueseg.services.processes import stop_tree
from rescueseg.storage import parse_record, record_bytes, write_atomically

OWNER = "owner"
"""Entry in ``services.json`` of the process that started the servers."""
_FILE = "services.json"


@dataclass(frozen=True)
class ServiceState:
    """Where the servers of a campaign answer, as written to ``services.json``; their secret is not in it.

    Parameters
    ----------
    prefect_api_url, mlflow_uri : str
        URLs; `mlflow_uri` may belong to a server that somebody else runs.
    pids : dict
        Process id by service name.
    started : dict
        Start time of each process (seconds since the epoch), which tells a reused process id from ours.
    annotation_url : str
        URL of the annotation server; empty where none was started.
    """

    prefect_api_url: str
    mlflow_uri: str
    pids: dict[str, int] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    annotation_url: str = ""

    @property
    def is_served(self) -> bool:
        """Whether another process that is alive started the servers and they run."""
        owned = _process(self, OWNER) is not None and self.pids[OWNER] != os.getpid()
        return owned and any(_process(self, name) is not None for name in self.pids if name != OWNER)

    def prefect(self, folder: Path) -> PrefectServer:
        """Return the Prefect server, with the secret that lies beside this state."""
        return PrefectServer(self.prefect_api_url, read_secret(folder))


_STATE = RecordFile("services", ServiceState)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one session at a time start servers in `folder`: the next one waits, and then finds what the first started."""
    with storage_errors(str(folder)), (folder / ".starting").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_state(folder: Path) -> ServiceState | None:
    """Return the state of the servers that run from `folder`; None when none was started or they are gone.

    None too for an account that may not enter the folder: the servers are not for it.

    Raises
    ------
    StorageError
        If the file is damaged: nobody knows then what runs.
    """
    try:
        state = _read(folder)
    except PermissionError:
        return None
    return state if state is not None and _process(state, "prefect") is not None else None


def write_state(
    folder: Path, prefect_api_url: str, mlflow_uri: str, annotation_url: str, pids: Mapping[str, int]
) -> None:
    """Note where the servers answer and by which processes; this one is their owner."""
    all_pids = {OWNER: os.getpid(), **pids}
    started = {name: _create_time(pid) for name, pid in all_pids.items()}
    state = ServiceState(prefect_api_url, mlflow_uri, all_pids, started, annotation_url)
    write_atomically(folder / _FILE, record_bytes(asdict(state)))


def stop_stale_servers(folder: Path) -> ServiceState | None:
    """Stop servers that a killed session left running in `folder`; return what ``services.json`` said of them.

    Raises
    ------
    ServiceError
        If the session is not dead: its servers are in use.
    StorageError
        If the folder is another account's, or the file is damaged.
    """
    with storage_errors(str(folder)):
        state = _read(folder)
    if state is None:
        return None
    if state.is_served:
        raise ServiceError(
            f"process {state.pids[OWNER]} serves this campaign already",
            where=str(folder),
            todo="Use its servers, or stop that process first",
        )
    for name in reversed(state.pids):
        if name != OWNER and _process(state, name) is not None:
            stop_tree(state.pids[name])
    return state


def _read(folder: Path) -> ServiceState | None:
    path = folder / _FILE
    try:
        return _STATE.parse(parse_record(path.read_bytes(), str(path)), str(path))
    except FileNotFoundError:
        return None
    except StorageError as error:
        todo = "Stop the servers that its session left running, if there are any, and remove it"
        raise StorageError(error.what, where=str(path), todo=todo) from error


def _create_time(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _process(state: ServiceState, name: str) -> psutil.Process | None:
    """Return a service's process if it is still the one that was started."""
    try:
        process = psutil.Process(state.pids[name])
        same = abs(process.create_time() - state.started[name]) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, psutil.NoSuchProcess):
        return None
