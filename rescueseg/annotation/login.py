"""The name of the person at this machine."""

from __future__ import annotations

import getpass


def login_name() -> str:
    """Return the login name of this process's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without that user
        return "annotator"
