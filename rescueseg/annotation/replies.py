"""Errors of the annotation server as JSON, and from JSON back to the exception."""

from __future__ import annotations

from pydantic import BaseModel

from rescueseg import errors
from rescueseg.annotation.client import LabelWarning


class ErrorReply(BaseModel):
    """An error: what is wrong, where, and what to do about it."""

    error: str
    """Kind: the name of the exception in `rescueseg.errors`, or `RequestError`."""
    what: str
    where: str = ""
    todo: str = ""
    warnings: list[LabelWarning] = []
    """Of `LabelWarningsError`: what a person can override."""


def error_from(body: ErrorReply) -> errors.RescuesegError:
    """Return the exception that a reply describes.

    Examples
    --------
    >>> error_from(ErrorReply(error="LeaseExpiredError", what="the lease ended"))
    LeaseExpiredError('the lease ended')
    """
    kind = getattr(errors, body.error, None)
    if kind is errors.LabelWarningsError:
        return kind(body.what, where=body.where, todo=body.todo, warnings=tuple(body.warnings))
    if isinstance(kind, type) and issubclass(kind, errors.RescuesegError):
        return kind(body.what, where=body.where, todo=body.todo)
    return errors.ServiceError(body.what, where=body.where, todo=body.todo)
