"""Errors in HTTP: their status, and their description in OpenAPI."""

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
    """Return the HTTP status of an error: that of its nearest base class with one.

    Examples
    --------
    >>> status_of(errors.LeaseExpiredError("the lease ended")), status_of(errors.LabelWarningsError("a gap"))
    (410, 422)
    """
    return next((_STATUS[base] for base in type(error).__mro__ if base in _STATUS), 500)


def reply(status: int, body: ErrorReply) -> JSONResponse:
    """Return the HTTP response to an error."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


def reply_to(error: errors.RescuesegError, status: int | None = None) -> JSONResponse:
    """Return the HTTP response to one of our errors."""
    warnings = list(error.warnings) if isinstance(error, errors.LabelWarningsError) else []
    kind = type(error).__name__
    body = ErrorReply(error=kind, what=error.what, where=error.where, todo=error.todo, warnings=warnings)
    return reply(status or status_of(error), body)


_DESCRIPTIONS = {
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


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of the errors of a route: the given ones and those of every route."""
    return {
        n: {"model": ErrorReply, "description": _DESCRIPTIONS[n]} for n in sorted({400, 401, 403, 413, 422, *statuses})
    }
