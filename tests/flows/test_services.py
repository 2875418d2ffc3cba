"""The servers really start, answer, are found again, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from rescueseg.campaign import Campaign
from rescueseg.errors import ServiceError
from rescueseg.services.local_servers import OWNER, Servers, environment, read_state, stop_stale_servers


def test_all_servers_answer_on_loopback_and_stop_with_the_block(tmp_path: Path, campaign: Campaign) -> None:
    with Servers(tmp_path, f"sqlite:///{tmp_path}/mlflow.db") as servers:
        assert httpx.get(f"{servers.prefect_api_url}/health", trust_env=False).json() is True
        assert httpx.get(f"{servers.mlflow_uri}/health", trust_env=False).text == "OK"
        servers.serve_annotation(campaign.url)
        assert httpx.get(f"{servers.annotation_url}/api/v1/info", trust_env=False).json()["campaign"] == "test"
        state = read_state(tmp_path)
        assert state is not None
        assert (state.prefect_api_url, state.mlflow_uri) == (servers.prefect_api_url, servers.mlflow_uri)
        assert state.annotation_url == servers.annotation_url
        pids = [pid for name, pid in state.pids.items() if name != OWNER]
        family = [p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
        listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        child = servers.environment
        assert child["PREFECT_API_URL"] == servers.prefect_api_url
        assert child["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert read_state(tmp_path) is None


def test_what_a_killed_session_left_is_stopped(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from rescueseg.services.local_servers import Servers\n"
        "s = Servers(Path(sys.argv[1]), '', mlflow_uri='http://elsewhere')\n"
        "s.prefect_api_url = 'http://127.0.0.1:1/api'\n"
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
        "import sys; from pathlib import Path; from rescueseg.services.local_servers import Servers\n"
        "s = Servers(Path(sys.argv[1]), '', mlflow_uri='http://elsewhere')\n"
        "s.prefect_api_url = 'http://127.0.0.1:1/api'\n"
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
    assert environment(tmp_path, "a", "b")["NO_PROXY"] == "intranet,127.0.0.1,localhost"
