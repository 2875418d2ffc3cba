"""The only module that talks to Prefect, by HTTP: emit an event, start a deployment, read its state.

Events only start a recount. What is due is recounted in the queue's database under the campaign's lock, so a lost or doubled event
changes nothing; so a server that does not answer is worth a warning only.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import stamina
from pydantic import JsonValue

from rescueseg.campaign import Campaign
from rescueseg.config import CampaignConfig
from rescueseg.errors import ServiceError, StorageError
from rescueseg.queue.due import patches_due
from rescueseg.queue.store import QueueStore
from rescueseg.services.local_servers import Servers, checkout
from rescueseg.services.prefect_server import PrefectServer, server_of_environment
from rescueseg.services.state import read_state

PATCHES_ACCEPTED = "rescueseg.patches.accepted"
GENERATION_FLOW = "generation"
INFER_FLOW = "infer-volume"
LOOP_FLOW = "active-learning"
TRAIN_FLOW = "train"
SEGMENT_FLOW = "segment"
WORK_POOL = "rescueseg"

_log = logging.getLogger(__name__)
logging.getLogger("stamina").setLevel(logging.ERROR)  # it would warn of every pause, in words of its own


@dataclass(frozen=True)
class RunState:
    """State of a flow run: Prefect's type (``COMPLETED``, ``FAILED``…), its display name and message."""

    type: str
    name: str
    message: str

    @property
    def is_final(self) -> bool:
        """Tell whether the run has ended."""
        return self.type in {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def prefect_server(campaign: Campaign | None = None) -> PrefectServer | None:
    """Return the Prefect server to use, None when none is known.

    That of the environment goes first, then the server that ``rescueseg up`` started for `campaign`.
    """
    if found := server_of_environment():
        return found
    if campaign is None or not campaign.storage.is_local:
        return None
    state = read_state(campaign.services_folder)
    return state.prefect(campaign.services_folder) if state else None


def deployment_name(flow: str, config: CampaignConfig) -> str:
    """Return the name under which a campaign's flow is deployed, as ``flow/deployment``."""
    return f"{flow}/{config.name}"


def emit_event(prefect: PrefectServer, event: str, resource: str, payload: Mapping[str, Any]) -> None:
    """Send one event.

    Parameters
    ----------
    prefect : PrefectServer
        Where to ask.
    event, resource : str
        Name of the event, and id of what it happened to.
    payload : mapping
        JSON-ready.

    Raises
    ------
    ServiceError
        If the server does not take it.
    """
    body = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": resource},
        "payload": dict(payload),
    }
    _request(prefect, "POST", "/events", [body])


def wake(campaign: Campaign, store: QueueStore) -> bool:
    """Emit `PATCHES_ACCEPTED` if enough patches were accepted since the last generation, see `patches_due`.

    Call it after a submission or an acceptance. A server that does not answer costs a warning only: the schedule makes
    up for a lost event.

    Returns
    -------
    bool
        True if an event was sent.
    """
    due, reason = patches_due(campaign.config, store)
    if not due:
        return False
    try:
        prefect = prefect_server(campaign)
        if prefect is None:
            return False
        emit_event(prefect, PATCHES_ACCEPTED, f"rescueseg.campaign.{campaign.config.name}", {"reason": reason})
    except (ServiceError, StorageError) as error:
        _log.warning("%s", error)
        return False
    return True


def start_deployment(prefect: PrefectServer, name: str, parameters: Mapping[str, JsonValue]) -> str:
    """Start a run of a deployment.

    Parameters
    ----------
    prefect : PrefectServer
        Where to ask.
    name : str
        ``flow/deployment``.
    parameters : mapping
        JSON-ready; the deployment's own parameters are kept unless named here.

    Returns
    -------
    str
        Id of the flow run.

    Raises
    ------
    ServiceError
        If there is no such deployment or no server.
    """
    flow, _, deployment = name.partition("/")
    deployed = _request(prefect, "GET", f"/deployments/name/{flow}/{deployment}")
    body = {"parameters": dict(parameters), "idempotency_key": str(uuid.uuid4())}
    run = _request(prefect, "POST", f"/deployments/{deployed['id']}/create_flow_run", body)
    return str(run["id"])


def run_state(prefect: PrefectServer, flow_run_id: str) -> RunState:
    """Return the state of a flow run.

    Raises
    ------
    ServiceError
        If there is no such run or no server.
    """
    state = _request(prefect, "GET", f"/flow_runs/{flow_run_id}").get("state") or {}
    return _run_state(state)


def _run_state(state: Mapping[str, Any]) -> RunState:
    """Return a state from Prefect's JSON; a run without one is pending."""
    return RunState(state.get("type", "PENDING"), state.get("name", "Pending"), state.get("message") or "")


@dataclass(frozen=True)
class FlowRun:
    """One run of a deployment; times as Prefect writes them (ISO 8601), empty before they come."""

    run_id: str
    state: RunState
    created: str
    ended: str


def latest_run(prefect: PrefectServer, name: str) -> FlowRun | None:
    """Return the latest run of a deployment that has begun or was requested, None when there is none.

    Runs that are only scheduled for later do not count.

    Parameters
    ----------
    prefect : PrefectServer
        Where to ask.
    name : str
        ``flow/deployment``.

    Raises
    ------
    ServiceError
        If there is no server.
    """
    flow, _, deployment = name.partition("/")
    runs = {
        "flows": {"name": {"any_": [flow]}},
        "deployments": {"name": {"any_": [deployment]}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": 200,
    }
    for run in _request(prefect, "POST", "/flow_runs/filter", runs):
        state = run.get("state") or {}
        if run.get("auto_scheduled") and state.get("type") == "SCHEDULED":
            continue
        return FlowRun(str(run["id"]), _run_state(state), run.get("created") or "", run.get("end_time") or "")
    return None


def cancel_run(prefect: PrefectServer, flow_run_id: str) -> None:
    """Ask Prefect to stop a run; its worker does. Errors as in `run_state`."""
    body = {"state": {"type": "CANCELLING", "message": "stopped by an annotator"}}
    _request(prefect, "POST", f"/flow_runs/{flow_run_id}/set_state", body)


def flow_command(flow: str, parameters: Mapping[str, JsonValue]) -> list[str]:
    """Return the command that runs a flow in a process of its own, by the name that Prefect shows."""
    return [sys.executable, "-m", "flows.run", flow, json.dumps(dict(parameters))]


def deploy(campaign: Campaign, servers: Servers) -> None:
    """Make the work pool, deploy the campaign's flows from ``deployments/prefect.yaml`` and start a worker.

    Runs of the pool take no job variables: no command, no environment, no folder. A pool that is there already, such as
    one that an earlier version made, becomes like that.

    Parameters
    ----------
    campaign : Campaign
        Its trigger settings go into the schedule.
    servers : Servers
        Running; the worker is stopped with them.

    Raises
    ------
    ServiceError
        If Prefect's command line fails; the message ends with its output.
    """
    trigger = campaign.config.trigger
    values = {
        "RESCUESEG_CAMPAIGN": campaign.url,
        "RESCUESEG_NAME": campaign.config.name,
        "RESCUESEG_CHECKOUT": str(checkout()),
        "RESCUESEG_WORK_POOL": WORK_POOL,
        "RESCUESEG_CRON": trigger.cron,
        "RESCUESEG_TIMEZONE": trigger.timezone,
    }
    environment = servers.environment | values
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    template = ["--base-job-template", "deployments/work_pool.json"]
    _run([*prefect, "work-pool", "create", WORK_POOL, "--type", "process", "--overwrite", *template], environment)
    _run([*prefect, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"], environment)
    worker = f"{campaign.config.name}-worker"
    servers.spawn("worker", [*prefect, "worker", "start", "--pool", WORK_POOL, "--name", worker])


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    process = subprocess.run(
        command, cwd=checkout(), env=dict(environment), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if process.returncode:
        lines = (process.stdout + process.stderr).strip().splitlines()
        raise ServiceError(
            "deploying failed", where=" ".join(command[2:6]), todo="Prefect said:\n" + "\n".join(lines[-12:])
        )


def _is_busy(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (429, 503)


def _request(prefect: PrefectServer, method: str, path: str, body: Any = None) -> Any:
    """Ask the API; a busy server is asked again (events and runs carry an id of ours, so nothing happens twice)."""
    where = f"{prefect.url}{path}"
    loopback = httpx.URL(prefect.url).host in {"127.0.0.1", "localhost"}
    try:
        with httpx.Client(timeout=30.0, trust_env=not loopback, headers=prefect.headers) as client:
            for attempt in stamina.retry_context(
                _is_busy, attempts=5, timeout=None, wait_initial=0.5, wait_max=4.0, wait_jitter=0.5
            ):
                with attempt:
                    response = client.request(method, where, json=body)
                    response.raise_for_status()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        todo = "Is the campaign deployed? 'rescueseg up CAMPAIGN' does it"
        if status == httpx.codes.UNAUTHORIZED:
            todo = (
                "Set PREFECT_API_AUTH_STRING to its secret, or unset PREFECT_API_URL to use the campaign's own server"
            )
        raise ServiceError(
            f"Prefect refused ({status}): {error.response.text[:200]}", where=where, todo=todo
        ) from error
    except httpx.HTTPError as error:
        raise ServiceError(
            f"the Prefect server does not answer ({error})",
            where=prefect.url,
            todo="Start it with 'rescueseg up CAMPAIGN', or mend PREFECT_API_URL",
        ) from error
    return response.json() if response.content else None
