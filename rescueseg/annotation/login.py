"""Who works at this machine."""

from __future__ import annotations

import getpass


def login_name() -> str:
    """Return the name of who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without that user
        return "annotator"
