"""The annotation server: a FastAPI application over the desks of one campaign."""

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
from rescueseg.server.clients import Service
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
        Whether people say who they are instead of showing a token: on the loopback interface only.
    login : str
        Who somebody is who says nothing, on an open server.

    Returns
    -------
    FastAPI
        With the routes of `rescueseg.server.routes`; what works for one person depends on
        `rescueseg.server.clients`.

    Raises
    ------
    QueueError, StorageError
        If the queue cannot be opened.
    """
    office = Service(campaign, open_queue(campaign), is_open, login, access.image_key(campaign))
    app = FastAPI(
        title="rescueseg annotation server",
        version=__version__,
        summary="Take a patch, correct its mask, hand it in.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = office
    app.include_router(router)
    mount_page(app)
    app.include_router(monai_label_routes(office), prefix="/monai")
    origins = campaign.config.server.allowed_origins
    app.add_middleware(
        Guard,
        holder=None if is_open else partial(access.holder, campaign),
        allowed_origins=origins,
        limit=office.upload_limit,
    )
    if origins:  # outside of the guard: a page that may ask must be able to read its refusals
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", ANNOTATOR_HEADER],
        )
    _answer_errors(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Give every error the one JSON shape."""

    def handle(kind: type[Exception], answer: Callable[[Any], Response]) -> None:
        def handler(_request: Request, error: Exception) -> Response:
            return answer(error)

        app.add_exception_handler(kind, handler)

    handle(RescuesegError, _ours)
    handle(RefusedError, lambda refused: reply_to(refused.error, refused.status))
    handle(RequestValidationError, _invalid)
    handle(HTTPException, lambda error: _refused(error.status_code, str(error.detail)))
    handle(Exception, _unexpected)


def _ours(error: RescuesegError) -> Response:
    if status_of(error) >= 500:
        _log.error("%s", error)
    return reply_to(error)


def _refused(status: int, what: str, where: str = "", todo: str = "") -> Response:
    return reply(status, ErrorReply(error="RequestError", what=what, where=where, todo=todo))


def _invalid(error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _refused(422, str(first["msg"]), where, "See /api/v1/openapi.json")


def _unexpected(_error: Exception) -> Response:
    return reply(
        500,
        ErrorReply(error="ServerError", what="the server failed", todo="Tell whoever runs it to look at its log"),
    )
