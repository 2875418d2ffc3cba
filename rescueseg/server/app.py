"""The annotation server: a FastAPI application for one campaign."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from rescueseg import __version__
from rescueseg.annotation.remote_client import ANNOTATOR_HEADER
from rescueseg.annotation.replies import ErrorReply
from rescueseg.campaign import Campaign
from rescueseg.errors import RescuesegError
from rescueseg.queue.store import open_queue
from rescueseg.server import access
from rescueseg.server.dependencies import Service
from rescueseg.server.guard import Guard
from rescueseg.server.monai_label import monai_label_routes
from rescueseg.server.page import mount_page
from rescueseg.server.replies import reply, reply_to, status_of
from rescueseg.server.routes import router
from rescueseg.server.uploads import RefusedError

_log = logging.getLogger(__name__)


def create_app(campaign: Campaign, *, is_open: bool, login: str = "annotator") -> FastAPI:
    """Return the server of a campaign.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    is_open : bool
        Whether people give a name instead of a token: on the loopback interface only.
    login : str
        Name of a person who gives none, on an open server.

    Returns
    -------
    FastAPI
        With the routes of `rescueseg.server.routes`, the page, and the endpoint for clients of MONAI Label.

    Raises
    ------
    QueueError, StorageError
        If the queue cannot be opened.
    """
    service = Service(campaign, open_queue(campaign), is_open, login, access.image_key(campaign.storage))
    app = FastAPI(
        title="rescueseg annotation server",
        version=__version__,
        summary="Take a patch, correct its mask, hand it in.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # these pages would load scripts from other servers
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    mount_page(app)
    app.include_router(monai_label_routes(service), prefix="/monai")
    origins = campaign.config.server.allowed_origins
    app.add_middleware(
        Guard,
        holder=None if is_open else partial(access.holder, campaign.storage),
        allowed_origins=origins,
        limit=service.upload_limit,
    )
    if origins:  # outside of the guard: a page of an allowed origin must be able to read the guard's errors
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", ANNOTATOR_HEADER],
        )
    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error with the same JSON shape."""

    def handle(kind: type[Exception], respond: Callable[[Any], Response]) -> None:
        def handler(_request: Request, error: Exception) -> Response:
            return respond(error)

        app.add_exception_handler(kind, handler)

    handle(RescuesegError, _rescueseg_error)
    handle(RefusedError, lambda refusal: reply_to(refusal.error, refusal.status))
    handle(RequestValidationError, _validation_error)
    handle(HTTPException, lambda error: _request_error(error.status_code, str(error.detail)))
    handle(Exception, _server_error)


def _rescueseg_error(error: RescuesegError) -> Response:
    if status_of(error) >= 500:
        _log.error("%s", error)
    return reply_to(error)


def _request_error(status: int, what: str, where: str = "", todo: str = "") -> Response:
    return reply(status, ErrorReply(error="RequestError", what=what, where=where, todo=todo))


def _validation_error(error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _request_error(422, str(first["msg"]), where, "See /api/v1/openapi.json")


def _server_error(_error: Exception) -> Response:
    return reply(
        500,
        ErrorReply(error="ServerError", what="the server failed", todo="Tell whoever runs it to look at its log"),
    )
