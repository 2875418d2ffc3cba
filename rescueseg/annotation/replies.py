"""Errors as the annotation server tells them: one JSON shape, and back to the exception that it came from."""

from __future__ import annotations

from pydantic import BaseModel

from rescueseg import errors
from rescueseg.annotation.client import LabelWarning


class ErrorReply(BaseModel):
    """What went wrong."""

    error: str
    """Kind: the name of the exception in `rescueseg.errors`, or `RequestError`."""
    what: str
    where: str = ""
    todo: str = ""
    warnings: list[LabelWarning] = []
    """Of `LabelWarningsError`: what a person can override."""


def error_from(body: ErrorReply) -> errors.RescuesegError:
    """Return the error that a reply came from."""
    kind = getattr(errors, body.error, None)
    if kind is errors.LabelWarningsError:
        return kind(body.what, where=body.where, todo=body.todo, warnings=tuple(body.warnings))
    if isinstance(kind, type) and issubclass(kind, errors.RescuesegError):
        return kind(body.what, where=body.where, todo=body.todo)
    return errors.ServiceError(body.what, where=body.where, todo=body.todo)
