"""The HTTP side of errors: their status, and what OpenAPI says of them."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from rescueseg import errors
from rescueseg.annotation.replies import ErrorReply

_STATUS: dict[type[errors.RescuesegError], int] = {
    errors.UnknownTokenError: 401,
    errors.AccessError: 403,
    errors.NotYourLeaseError: 403,
    errors.TicketNotFoundError: 404,
    errors.LeaseExpiredError: 410,
    errors.QueueError: 409,
    errors.CampaignError: 409,
    errors.LabelError: 422,
    errors.ConfigError: 422,
    errors.StorageError: 503,
    errors.ServiceError: 503,
}


def status_of(error: errors.RescuesegError) -> int:
    """Return the HTTP status of an error: that of its nearest known base."""
    return next((_STATUS[base] for base in type(error).__mro__ if base in _STATUS), 500)


def reply(status: int, body: ErrorReply) -> JSONResponse:
    """Return an error's reply."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


def reply_to(error: errors.RescuesegError, status: int | None = None) -> JSONResponse:
    """Return the reply to one of our errors."""
    warnings = list(error.warnings) if isinstance(error, errors.LabelWarningsError) else []
    kind = type(error).__name__
    body = ErrorReply(error=kind, what=error.what, where=error.where, todo=error.todo, warnings=warnings)
    return reply(status or status_of(error), body)


_MEANING = {
    400: "The body is no JSON",
    401: "A token is needed, or this one is not known",
    403: "Not yours, or not within your role",
    404: "There is no such ticket or lease",
    408: "The upload stopped",
    409: "The ticket cannot do this now",
    410: "The lease ran out",
    413: "The body is larger than allowed here",
    415: "The body is of another type",
    422: "The labels or the request do not fit",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of the errors that a route may answer with, those of every route included."""
    return {n: {"model": ErrorReply, "description": _MEANING[n]} for n in sorted({400, 401, 403, 413, 422, *statuses})}
