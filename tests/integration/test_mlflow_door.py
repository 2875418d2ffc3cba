"""MLflow as it is started for a campaign, from the pages of others: nothing is told, nothing is changed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rescueseg.services.local_servers import environment, mlflow_command
from rescueseg.services.prefect_server import PrefectServer
from rescueseg.services.processes import stop_tree

API = "/api/2.0/mlflow"
EVERYTHING = {"max_results": 10}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A running server and a client at its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *mlflow_command(f"sqlite:///{folder}/mlflow.db", Path(folder), port)],
            env=environment(folder, PrefectServer("http://127.0.0.1:1/api"), url),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
            deadline = time.monotonic() + 120
            while True:
                try:
                    assert client.get("/health").text == "OK"
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                    assert process.poll() is None, (folder / "log").read_text()[-2000:]
                    time.sleep(0.3)
            yield client
    finally:
        stop_tree(process.pid)
        process.wait()


def experiments(mlflow: httpx.Client) -> list[str]:
    found = mlflow.post(f"{API}/experiments/search", json=EVERYTHING).json()["experiments"]
    return sorted(experiment["name"] for experiment in found)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil"])
def test_a_name_of_others_that_points_here_is_refused(mlflow: httpx.Client, host: str) -> None:
    for answer in (
        mlflow.get("/", headers={"Host": host}),
        mlflow.post(f"{API}/experiments/search", json=EVERYTHING, headers={"Host": host}),
    ):
        assert answer.status_code == 403
        assert "Default" not in answer.text


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://evil.example:5000"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_page_elsewhere_may_not_post(mlflow: httpx.Client, origin: str, kind: str) -> None:
    headers = {"Origin": origin, "Content-Type": kind}
    answer = mlflow.post(f"{API}/experiments/create", content=b'{"name": "planted"}', headers=headers)
    assert answer.status_code == 403
    assert answer.headers.get("access-control-allow-origin") not in ("*", origin)
    assert experiments(mlflow) == ["Default"]


def test_a_page_elsewhere_gets_no_leave_to_ask(mlflow: httpx.Client) -> None:
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = mlflow.options(f"{API}/experiments/search", headers=headers)
    assert answer.status_code == 400
    assert answer.headers.get("access-control-allow-origin") not in ("*", "https://evil.example")
