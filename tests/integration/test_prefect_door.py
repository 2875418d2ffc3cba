"""Nobody but the owner gets a command run through a served campaign's Prefect server.

Servers, deployments and worker are those of `rescueseg up`; the work pool is first made as earlier versions made it. From
outside come plain requests, a page of another origin, an HTML file from disk and another account of the machine. Each tries
to have a command written into a run of the campaign's deployment, knowing that deployment's id already.
"""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import WORK_POOL, deploy, run_state, start_deployment
from rescueseg.services.prefect_server import SECRET_FILE, PrefectServer
from tests.browser import CHROMIUM, chromium
from tests.prefect_attacks import AS_NOBODY, ATTACK

NOBODY = 65534
EVIL = "https://evil.example"

pytestmark = pytest.mark.timeout(600)


@dataclass
class House:
    """A served campaign, one of its deployments, and a folder that everybody may enter."""

    campaign: Campaign
    servers: Servers
    deployment: str
    folder: Path

    @property
    def prefect(self) -> PrefectServer:
        return self.servers.prefect

    @property
    def run_path(self) -> str:
        return f"/deployments/{self.deployment}/create_flow_run"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Ask the API as the owner does."""
        url = f"{self.prefect.url}{path}"
        return httpx.request(
            method, url, json=body, headers={**self.prefect.headers, **headers}, trust_env=False, timeout=60
        )

    def outside(self, method: str, path: str, content: str = "", **headers: str) -> httpx.Response:
        """Ask the API without its secret."""
        url = f"{self.prefect.url}{path}"
        return httpx.request(method, url, content=content, headers=headers, trust_env=False, timeout=60)

    def runs(self) -> set[str]:
        """Return the ids of all runs that were not laid out by the schedule."""
        found = self.ask("POST", "/flow_runs/filter", {}).json()
        return {run["id"] for run in found if not run["auto_scheduled"]}

    def command(self) -> tuple[str, Path]:
        """Return a command, and the file that it would write."""
        written = self.folder / f"written-{uuid.uuid4().hex}"
        return f"sh -c 'id > {written}'", written

    def finish(self, run: str) -> str:
        """Wait for the end of a run and return the name of its state."""
        deadline = time.monotonic() + 300
        while not (state := run_state(self.prefect, run)).is_final:
            assert time.monotonic() < deadline, self.servers.log_tail("worker", 60)
            time.sleep(0.5)
        return state.name


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        campaign = Campaign.create(
            str(folder / "campaign"),
            check_config({"name": "door", "classes": ["organelle"], "trigger": {"cron": "0 0 1 1 *"}}),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
            patch.delenv("PREFECT_API_URL", raising=False)
            campaign.services_folder.mkdir(mode=0o755)
            with Servers(campaign.services_folder, campaign.tracking_uri) as servers:
                prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
                older = [*prefect, "work-pool", "create", WORK_POOL, "--type", "process"]
                subprocess.run(older, env=servers.environment, check=True, capture_output=True)
                deploy(campaign, servers)
                found = httpx.get(
                    f"{servers.prefect.url}/deployments/name/generation/door",
                    headers=servers.prefect.headers,
                    trust_env=False,
                )
                yield House(campaign, servers, found.json()["id"], folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def before(house: House) -> Iterator[tuple[str, Path]]:
    """A command that a test tries to get run, and the file that it would write; afterwards there is no run of it."""
    known = house.runs()
    command, written = house.command()
    yield command, written
    assert house.runs() == known
    assert not written.exists()
    assert not house.servers.dead_process()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def evil(house: House) -> Iterator[str]:
    """A web server of another origin with the page; yields its URL."""
    pages = house.folder / "evil"
    pages.mkdir()
    (pages / "index.html").write_text(ATTACK)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(pages))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


def cors(response: httpx.Response) -> str | None:
    return response.headers.get("access-control-allow-origin")


# requests -------------------------------------------------------------------------------------------------------------


def test_a_foreign_origin_is_allowed_nothing(house: House, before: tuple[str, Path]) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = house.outside("OPTIONS", house.run_path, Origin=EVIL, **asked)
    assert (preflight.status_code, cors(preflight)) == (400, None)
    body = json.dumps({"job_variables": {"command": before[0]}})
    posted = house.outside("POST", house.run_path, body, Origin=EVIL, **{"Content-Type": "application/json"})
    assert (posted.status_code, cors(posted)) == (401, None)
    given = house.ask("POST", "/deployments/filter", {}, Origin=EVIL)
    assert (given.status_code, cors(given)) == (200, None), "not even with the secret may a page of another origin read"
    own = house.prefect.url.removesuffix("/api")
    assert cors(house.outside("OPTIONS", house.run_path, Origin=own, **asked)) == own


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost"])
def test_under_any_host_name_nothing_is_done_without_the_secret(
    house: House, before: tuple[str, Path], host: str
) -> None:
    for kind in ("application/json", "text/plain"):
        body = json.dumps({"job_variables": {"command": before[0]}})
        assert house.outside("POST", house.run_path, body, Host=host, **{"Content-Type": kind}).status_code == 401
    assert house.outside("GET", "/admin/version", Host=host).status_code == 401


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_browser_sends_without_asking_first_is_refused(
    house: House, before: tuple[str, Path], kind: str
) -> None:
    body = json.dumps({"job_variables": {"command": before[0]}})
    answer = house.outside("POST", house.run_path, body, **({"Content-Type": kind} if kind else {}))
    assert (answer.status_code, cors(answer)) == (401, None)


def test_every_path_but_health_asks_for_the_secret(house: House) -> None:
    described = httpx.get(f"{house.prefect.url.removesuffix('/api')}/openapi.json", trust_env=False, timeout=240).json()
    paths = described["paths"] | {
        "/docs": ["get"],
        "/openapi.json": ["get"],
        "/metrics": ["get"],
        "/none/such": ["get"],
    }
    answered = set()
    with httpx.Client(trust_env=False, timeout=60) as client:
        for path, methods in paths.items():
            where = house.prefect.url + path.format_map(dict.fromkeys(_names(path), str(uuid.uuid4())))
            wrong = {"Authorization": "Basic cmVzY3Vlc2VnOm5v"}
            for method, headers in itertools.product(methods, ({}, wrong)):
                if client.request(method, where, headers=headers, json={}).status_code != 401:
                    answered.add(path)
    assert len(paths) > 150
    assert answered == {"/health", "/ready"}


def _names(path: str) -> list[str]:
    return [part.split("}")[0].split(":")[0] for part in path.split("{")[1:]]


@pytest.mark.parametrize(
    "path",
    [
        "/events/in",
        "/events/out",
        "/logs/out",
        "/task_runs/subscriptions/scheduled",
        f"/work_pools/{WORK_POOL}/workers/connect",
    ],
)
def test_sockets_ask_for_the_secret(house: House, path: str) -> None:
    url = house.prefect.url.replace("http", "ws") + path
    with pytest.raises((InvalidStatus, ConnectionClosed)), connect(url, proxy=None) as socket:
        socket.recv(timeout=30)
    for message in ({"type": "auth", "token": "rescueseg:no"}, {"type": "auth"}, {"type": "worker.hello.v1"}):
        with connect(url, subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
            socket.send(json.dumps(message))
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=30)
    with connect(url, subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
        socket.send(json.dumps({"type": "auth", "token": house.prefect.secret}))
        assert json.loads(socket.recv(timeout=30)) == {"type": "auth_success"}


# a browser ------------------------------------------------------------------------------------------------------------

NOTHING = {"read": "refused", "json": "refused", "text": 0, "socket": "refused"}
"""A request that a page may send but not read the answer of has the status 0."""


@pytest.mark.needs_chromium
@pytest.mark.parametrize("place", ["another origin", "a file from disk"])
def test_a_page_gets_nothing_run(house: House, before: tuple[str, Path], browser: Any, evil: str, place: str) -> None:
    address = evil if place == "another origin" else (house.folder / "evil" / "index.html").as_uri()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(address)
        given = [house.prefect.url, house.deployment, before[0]]
        assert page.evaluate("given => attack(...given)", given) == NOTHING
    finally:
        context.close()


@pytest.mark.needs_chromium
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_owner_logs_in_with_what_the_file_says(house: House, browser: Any, host: str) -> None:
    """By another name too, such as that of a tunnel's end."""
    address = house.prefect.url.removesuffix("/api").replace("127.0.0.1", host)
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(address)
        page.wait_for_url("**/login**")
        page.fill("input[type=password]", "rescueseg:no")
        page.click("button[type=submit]")
        page.wait_for_selector("text=Authentication failed")
        page.fill("input[type=password]", (house.campaign.services_folder / SECRET_FILE).read_text().strip())
        page.click("button[type=submit]")
        page.wait_for_url("**/dashboard")
        page.goto(f"{address}/deployments")
        page.wait_for_selector("text=infer-volume")
    finally:
        context.close()


# another account ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_another_account_gets_nothing_run_and_finds_no_secret(house: House, before: tuple[str, Path]) -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no Python that another account may run")
    body = json.dumps({"job_variables": {"command": before[0]}})
    arguments = [str(house.campaign.services_folder), house.prefect.url + house.run_path, body]
    done = subprocess.run(
        [python, "-c", AS_NOBODY, *arguments],
        cwd="/",
        env={},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["listed"], found["secret"], found["state"], found["run"]) == (None, None, None, 401)
    assert any("prefect" in text and "worker" in text for text in found["processes"]), (
        "it sees the worker's command line"
    )
    assert house.prefect.secret not in done.stdout
    assert house.prefect.secret.removeprefix("rescueseg:") not in done.stdout


# the owner ------------------------------------------------------------------------------------------------------------


def test_with_the_secret_too_a_run_takes_no_command(house: House, before: tuple[str, Path]) -> None:
    command, _ = before
    for variables in ({"command": command}, {"env": {"PATH": "/tmp"}}, {"working_dir": "/tmp"}, {"env.PATH": "/tmp"}):
        assert house.ask("POST", house.run_path, {"job_variables": variables}).status_code == 422
    offered = house.ask("GET", f"/work_pools/{WORK_POOL}").json()["base_job_template"]
    assert offered["variables"]["properties"] == {}
    assert offered["job_configuration"] == {"stream_output": True}


def test_a_run_that_kept_a_command_from_an_earlier_version_goes_without_it(house: House) -> None:
    """It is the worker that leaves the command out, and this run shows that it would have come to it."""
    command, written = house.command()
    pool = house.ask("GET", f"/work_pools/{WORK_POOL}").json()["base_job_template"]
    template = {
        "job_configuration": pool["job_configuration"],
        "variables": {"type": "object", "properties": {"command": {}}},
    }
    later = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}}
    try:
        assert house.ask("PATCH", f"/work_pools/{WORK_POOL}", {"base_job_template": template}).is_success
        run = house.ask("POST", house.run_path, {**later, "job_variables": {"command": command}}).json()["id"]
    finally:
        assert house.ask("PATCH", f"/work_pools/{WORK_POOL}", {"base_job_template": pool}).is_success
    assert house.ask("GET", f"/flow_runs/{run}").json()["job_variables"] == {"command": command}
    now = {"state": {"type": "SCHEDULED"}, "force": True}
    assert house.ask("POST", f"/flow_runs/{run}/set_state", now).is_success
    assert house.finish(run) == "NotDue"
    assert not written.exists()


def test_the_worker_ran_what_the_owner_asked_for_and_nothing_else(house: House) -> None:
    run = start_deployment(house.prefect, "generation/door", {})
    assert house.finish(run) == "NotDue"
    log = (house.campaign.services_folder / "worker.log").read_text()
    begun = set(re.findall(r"submitting flow run '([0-9a-f-]+)'", log))
    assert run in begun
    assert begun <= house.runs()
    assert list(house.folder.glob("written-*")) == []


def test_nothing_writes_the_secret_down_but_its_file(house: House) -> None:
    files = [path for path in Path(house.campaign.url).rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"services.json", "worker.log", "prefect.log", "prefect.db", "mlflow.db"}
    given = house.prefect.headers["Authorization"].removeprefix("Basic ")
    parts = [text.encode() for text in (house.prefect.secret.removeprefix("rescueseg:"), given)]
    holding = [path.name for path in files if any(part in path.read_bytes() for part in parts)]
    assert holding == [SECRET_FILE]
