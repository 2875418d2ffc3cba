"""The servers really start, answer, are found again, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import httpx
import psutil
import pytest

from rescueseg.campaign import Campaign
from rescueseg.errors import ServiceError
from rescueseg.services.local_servers import Servers, connect, environment
from rescueseg.services.prefect_server import PrefectServer, read_secret
from rescueseg.services.state import OWNER, read_state, stop_stale_servers


def test_all_servers_answer_on_loopback_and_stop_with_the_block(
    tmp_path: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Servers(tmp_path, f"sqlite:///{tmp_path}/mlflow.db") as servers:
        assert httpx.get(f"{servers.prefect.url}/health", trust_env=False).json() is True
        assert httpx.get(f"{servers.mlflow_uri}/health", trust_env=False).text == "OK"
        servers.serve_annotation(campaign.url)
        assert httpx.get(f"{servers.annotation_url}/api/v1/info", trust_env=False).json()["campaign"] == "test"
        state = read_state(tmp_path)
        assert state is not None
        assert (state.prefect_api_url, state.mlflow_uri) == (servers.prefect.url, servers.mlflow_uri)
        assert state.annotation_url == servers.annotation_url
        pids = [pid for name, pid in state.pids.items() if name != OWNER]
        family = [p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
        listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        assert read_secret(tmp_path) == servers.prefect.secret != ""
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        with connect(tmp_path, "") as others:
            assert others["PREFECT_API_AUTH_STRING"] == servers.prefect.secret
            assert others["PREFECT_API_URL"] == servers.prefect.url
        child = servers.environment
        assert child["PREFECT_API_URL"] == servers.prefect.url
        assert child["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert read_state(tmp_path) is None
    assert read_secret(tmp_path) == ""


def test_what_a_killed_session_left_is_stopped(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from rescueseg.services.local_servers import PrefectServer, Servers\n"
        "s = Servers(Path(sys.argv[1]), '', mlflow_uri='http://elsewhere')\n"
        "s.prefect = PrefectServer('http://127.0.0.1:1/api')\n"
        "s.spawn('prefect', [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    state = read_state(tmp_path)
    assert state is not None
    stop_stale_servers(tmp_path)
    assert not psutil.pid_exists(state.pids["prefect"])


def test_servers_in_use_are_not_taken_for_left_overs(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rescueseg.services.local_servers import PrefectServer, Servers\n"
        "s = Servers(Path(sys.argv[1]), '', mlflow_uri='http://elsewhere')\n"
        "s.prefect = PrefectServer('http://127.0.0.1:1/api')\n"
        "s.spawn('prefect', [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('up', flush=True); sys.stdin.read(); s.stop()"
    )
    session = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert session.stdout is not None
    assert session.stdout.readline() == b"up\n"
    with pytest.raises(ServiceError, match=f"process {session.pid} serves this campaign already"):
        stop_stale_servers(tmp_path)
    state = read_state(tmp_path)
    assert state is not None
    assert psutil.pid_exists(state.pids["prefect"])
    session.communicate()
    assert stop_stale_servers(tmp_path) is not None


@pytest.mark.parametrize("beforehand", ["nothing", "a killed session"])
def test_of_sessions_that_start_at_once_one_serves_with_its_own_secret(tmp_path: Path, beforehand: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from rescueseg.services.local_servers import Servers\n"
        "class Quick(Servers):\n"
        "    def spawn(self, name, command): return super().spawn(name, [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    def _wait(self, name, url): pass\n"
        "folder, moment = Path(sys.argv[1]), float(sys.argv[2]); time.sleep(max(0.0, moment - time.time()))\n"
        "try:\n"
        "    with Quick(folder, '', mlflow_uri='http://elsewhere') as servers:\n"
        "        print(servers.prefect.secret, flush=True); sys.stdin.readline()\n"
        "except Exception as error: print(error, flush=True)\n"
    )
    if beforehand == "a killed session":
        killed = _session(code, tmp_path, 0.0)
        assert killed.stdout is not None
        left_over = killed.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert read_secret(tmp_path) == left_over
    sessions = [_session(code, tmp_path, time.time() + 4) for _ in range(4)]
    said = [session.stdout.readline().strip() for session in sessions if session.stdout]
    [secret] = [line for line in said if "serves this campaign already" not in line]
    assert read_secret(tmp_path) == secret
    assert beforehand == "nothing" or secret != left_over
    for session in sessions:
        session.communicate("\n")
    assert read_secret(tmp_path) == ""


def _session(code: str, folder: Path, moment: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder), str(moment)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_who_takes_the_port_of_a_server_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rescueseg.services.local_servers.START_SECONDS", 2.0)
    stranger = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    servers = Servers(tmp_path, "")
    try:
        servers.spawn("prefect", [sys.executable, "-c", "import time; time.sleep(600)"])
        with pytest.raises(ServiceError, match="the prefect server did not answer"):
            servers._wait("prefect", f"http://127.0.0.1:{stranger.server_port}/")
    finally:
        servers.stop()
        stranger.shutdown()
        stranger.server_close()


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text(
        f'{{"prefect_api_url": "x", "mlflow_uri": "y", "pids": {{"prefect": {os.getpid()}}}, "started": {{"prefect": 1.0}}}}'
    )
    assert read_state(tmp_path) is None
    stop_stale_servers(tmp_path)
    assert psutil.pid_exists(os.getpid())


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="mlflow server ended at once"), Servers(tmp_path, "nonsense://x"):
        pass
    assert read_state(tmp_path) is None


def test_the_environment_keeps_loopback_off_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    assert environment(tmp_path, PrefectServer("a"), "b")["NO_PROXY"] == "intranet,127.0.0.1,localhost"
