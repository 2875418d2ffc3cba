"""Whatever the OpenAPI document allows, and much that it does not, gets an answer that it describes: schemathesis."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from rescueseg.campaign import Campaign
from rescueseg.server import access
from rescueseg.server.app import create_app
from tests.annotation_server import HERE, fill

HOLDER = "anna"
FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def api(campaign: Campaign) -> Any:
    """Return the server's description, but for its endless stream of events."""
    app = create_app(fill(campaign), is_open=False)
    app.state.token = access.add_token(campaign.storage, HOLDER, "admin")
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app).exclude(path="/api/v1/events")


def answered(case: Any) -> None:
    """Ask, every other time about a lease or ticket that is there, and check the answer."""
    ids = case.path_parameters or {}
    client = case.operation.app.state.service.client(HOLDER, "admin")
    if re.fullmatch("[0-9a-f]{32}", str(ids.get("lease_id", ""))) and int(ids["lease_id"][0], 16) % 2:
        lease = client.next()
        ids["lease_id"] = ids["lease_id"] if lease is None else lease.lease_id
    if len(str(ids.get("ticket_id", ""))) % 2:
        ids["ticket_id"] = "a"
    response = case.call(base_url=HERE, headers={"Authorization": f"Bearer {case.operation.app.state.token}"})
    assert response.status_code < 500, response.text
    if not case.operation.path.startswith("/api/"):
        return  # MONAI Label's own API, whose answers its clients decide
    # no schema describes labels of this very patch; and in a query, whatever is no text becomes text
    unknown = [positive_data_acceptance, negative_data_rejection] if case.operation.body else [negative_data_rejection]
    case.validate_response(response, excluded_checks=unknown)


def ask_all(api: Any, how: settings) -> int:
    """Ask every operation with bodies and parameters that its description allows, and that it does not."""
    asked = 0
    for found in api.get_all_operations():
        for mode in GenerationMode:

            @how
            @given(case=found.ok().as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                answered(case)

            with suppress(Unsatisfiable):  # nothing can be wrong with a request that takes nothing
                ask()
    return asked


def test_every_answer_is_one_that_is_described(api: Any) -> None:
    assert ask_all(api, FEW) > 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_answer_is_one_that_is_described_at_length(api: Any) -> None:
    assert ask_all(api, MANY) > 5000
