"""What is sent to Prefect, and that a server that is away costs a warning and no more."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import stamina

from rescueseg.campaign import Campaign
from rescueseg.errors import ServiceError
from rescueseg.services import prefect_api
from rescueseg.services.prefect_api import (
    PATCHES_ACCEPTED,
    emit_event,
    prefect_server,
    run_state,
    start_deployment,
    wake,
)
from rescueseg.services.prefect_server import PrefectServer

SECRET = "rescueseg:anna's"
GIVEN = "Basic cmVzY3Vlc2VnOmFubmEncw=="


class _Store:
    """A queue in which some patches were accepted."""

    def __init__(self, accepted: int) -> None:
        self.accepted = accepted
        self.ledger = self.views = self

    def accepted_since_last_generation(self) -> int:
        return self.accepted

    def tickets(self, purpose: str) -> list[Any]:
        return [SimpleNamespace(status="queued")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PrefectServer, list[tuple[str, str, Any]]]]:
    """A stand-in for Prefect's API that notes what it was asked."""
    asked: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, json.loads(body) if body else None))
            if self.headers["Authorization"] != GIVEN:
                self.send_response(401)
                self.end_headers()
                return
            answers = {
                "/api/deployments/name/generation/test": {"id": "d1"},
                "/api/deployments/d1/create_flow_run": {"id": "r1"},
                "/api/flow_runs/r1": {"state": {"type": "COMPLETED", "name": "NotDue", "message": "2 of 4"}},
                "/api/events": {},
            }
            found = self.path in answers
            busy = (self.path == "/api/events" and len(asked) < 2) or self.path == "/api/flow_runs/busy"
            self.send_response(503 if busy else 200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path, {"detail": "no such thing"})).encode())

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    prefect = PrefectServer(f"http://127.0.0.1:{httpd.server_port}/api", SECRET)
    monkeypatch.setenv("PREFECT_API_URL", prefect.url)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", SECRET)
    yield prefect, asked
    httpd.shutdown()
    httpd.server_close()


def test_the_event_is_sent_once_the_threshold_is_reached(server: Any, campaign: Campaign) -> None:
    _, asked = server
    wanted = campaign.config.trigger.accepted_patches
    assert not wake(campaign, _Store(wanted - 1))  # type: ignore[arg-type]
    assert asked == []
    assert wake(campaign, _Store(wanted))  # type: ignore[arg-type]
    assert asked[0] == asked[1], "a busy server is asked again with the same event"
    method, path, [event] = asked[-1]
    assert (method, path) == ("POST", "/api/events")
    assert event["event"] == PATCHES_ACCEPTED
    assert event["resource"] == {"prefect.resource.id": "rescueseg.campaign.test"}
    assert event["payload"]["reason"].startswith(f"{wanted} of {wanted} patches accepted")


def test_a_deployment_is_started_and_its_state_read(server: Any) -> None:
    prefect, asked = server
    run = start_deployment(prefect, "generation/test", {"only_if_due": False})
    method, path, body = asked[-1]
    assert (method, path) == ("POST", "/api/deployments/d1/create_flow_run")
    assert body["parameters"] == {"only_if_due": False}
    assert body["idempotency_key"]
    state = run_state(prefect, run)
    assert state.is_final
    assert (state.type, state.name, state.message) == ("COMPLETED", "NotDue", "2 of 4")


def test_a_server_that_stays_busy_is_asked_five_times(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    prefect, asked = server
    with stamina.set_testing(True, attempts=99, cap=True), pytest.raises(ServiceError, match="503"):
        run_state(prefect, "busy")
    assert [path for _, path, _ in asked] == ["/api/flow_runs/busy"] * 5
    assert caplog.text == ""


def test_another_refusal_is_not_asked_again(server: Any) -> None:
    prefect, asked = server
    with pytest.raises(ServiceError, match="404"):
        run_state(prefect, "none")
    assert len(asked) == 1


def test_a_missing_deployment_says_what_to_do(server: Any) -> None:
    with pytest.raises(ServiceError, match=r"404.*rescueseg up"):
        start_deployment(server[0], "generation/other", {})


def test_without_the_secret_nothing_is_done_and_nobody_reads_it_in_the_message(
    server: Any, campaign: Campaign, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prefect, _ = server
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "rescueseg:another")
    with caplog.at_level(logging.DEBUG):
        assert not wake(campaign, _Store(99))  # type: ignore[arg-type]
    assert "401" in caplog.text
    with pytest.raises(ServiceError, match=r"401.*PREFECT_API_AUTH_STRING") as refused:
        start_deployment(PrefectServer(prefect.url, "rescueseg:another"), "generation/test", {})
    assert not any("another" in text for text in (caplog.text, str(refused.value), repr(PrefectServer("x", "another"))))


def test_a_server_that_is_away_costs_a_warning(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with caplog.at_level(logging.WARNING):
        assert not wake(campaign, _Store(99))  # type: ignore[arg-type]
    assert "does not answer" in caplog.text
    with pytest.raises(ServiceError, match="does not answer"):
        emit_event(PrefectServer("http://127.0.0.1:9/api"), "x", "y", {})


def test_without_any_server_nothing_is_sent(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert prefect_server(campaign) is None
    assert not wake(campaign, _Store(99))  # type: ignore[arg-type]


def test_a_campaign_is_deployed_under_its_name(campaign: Campaign) -> None:
    assert prefect_api.deployment_name("generation", campaign.config) == "generation/test"
