"""What each person may do in a campaign."""

from __future__ import annotations

from typing import Literal

from rescueseg.errors import AccessError

Role = Literal["annotator", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("annotator", "reviewer", "admin")
"""Each may do what those before it may."""


def require_role(name: str, role: Role, minimum: Role) -> None:
    """Check that somebody's role covers what another role may do.

    Raises
    ------
    AccessError
        If it does not.

    Examples
    --------
    >>> require_role("lead", "admin", "reviewer")
    >>> require_role("anna", "annotator", "reviewer")
    Traceback (most recent call last):
    rescueseg.errors.AccessError: this needs the role 'reviewer', and 'anna' is 'annotator'. Ask a reviewer
    """
    if ROLES.index(role) < ROLES.index(minimum):
        raise AccessError(f"this needs the role '{minimum}', and '{name}' is '{role}'", todo=f"Ask a {minimum}")
