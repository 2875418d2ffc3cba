"""Training for clients of MONAI Label: a training is a run of the generation's deployment in Prefect."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from rescueseg.annotation.roles import require_role
from rescueseg.campaign import Campaign
from rescueseg.errors import QueueError, TicketNotFoundError
from rescueseg.server.monai_users import MonaiUsers
from rescueseg.services import prefect_api
from rescueseg.services.prefect_api import GENERATION_FLOW, FlowRun, deployment_name
from rescueseg.services.prefect_server import PrefectServer

STATUS = {
    "SCHEDULED": "SUBMITTED",
    "PENDING": "SUBMITTED",
    "RUNNING": "RUNNING",
    "PAUSED": "RUNNING",
    "COMPLETED": "DONE",
    "CANCELLED": "STOPPED",
    "CANCELLING": "STOPPED",
}
"""MONAI Label's status for each of Prefect's state types; all others are ERROR."""


def training_routes(router: APIRouter, users: MonaiUsers) -> None:
    """Add the routes below ``/train/``; `users` knows who sends a request."""

    @router.post("/train/", summary="Start the next generation")
    @router.post("/train/{model}", summary="Start the next generation")
    def start(request: Request, body: dict[str, Any] | None = None, model: str = "champion") -> dict[str, Any]:
        client = users.client(request, (body or {}).get("client_id"))
        require_role(client.annotator, client.role, "admin")
        prefect, run = _latest(client.campaign)
        if run is not None and not run.state.is_final:
            raise QueueError("a generation runs already", where=model[:64], todo="Wait for it; see GET /train/")
        prefect_api.start_deployment(prefect, deployment_name(GENERATION_FLOW, client.campaign.config), {})
        return _status(_latest(client.campaign)[1])

    @router.get("/train/", summary="The latest generation's run; 404 where none is running and that was asked")
    def status(request: Request, check_if_running: bool = False) -> dict[str, Any]:
        _, run = _latest(users.client(request).campaign)
        return _status(None if run is not None and check_if_running and run.state.is_final else run)

    @router.delete("/train/", summary="Stop the running generation; started again it goes on from there")
    def stop(request: Request) -> dict[str, Any]:
        client = users.client(request)
        require_role(client.annotator, client.role, "admin")
        prefect, run = _latest(client.campaign)
        if run is None or run.state.is_final:
            return _status(None)
        prefect_api.cancel_run(prefect, run.run_id)
        return _status(_latest(client.campaign)[1])


def _latest(campaign: Campaign) -> tuple[PrefectServer, FlowRun | None]:
    """Return Prefect's server and the latest run of the campaign's generations."""
    prefect = prefect_api.prefect_server(campaign)
    if prefect is None:
        raise QueueError(
            "the campaign is not served, so nothing can train",
            where=campaign.config.name,
            todo="Serve it with 'rescueseg up CAMPAIGN', or run 'rescueseg generation CAMPAIGN'",
        )
    return prefect, prefect_api.latest_run(prefect, deployment_name(GENERATION_FLOW, campaign.config))


def _status(run: FlowRun | None) -> dict[str, Any]:
    if run is None:
        raise TicketNotFoundError("no generation is running", todo="Start one with POST /train/")
    return {
        "id": run.run_id,
        "status": STATUS.get(run.state.type, "ERROR"),
        "request": {"model": "champion"},
        "start_ts": run.created,
        "end_ts": run.ended,
        "details": [f"{run.state.name}: {run.state.message}".removesuffix(": ")],
    }
