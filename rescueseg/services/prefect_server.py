"""A Prefect server: where it answers, and the secret that everybody who asks it for anything has to give.

Whoever may use Prefect's API runs commands as the owner of its worker. Each server of ours is therefore started with a
secret made for it alone, kept in ``CAMPAIGN/services/prefect-secret``, which only the owner reads. Processes get it by
their environment, never on a command line, where every account of the machine would see it.
"""

from __future__ import annotations

import base64
import logging
import os
import secrets
import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rescueseg.errors import storage_errors
from rescueseg.storage import replace_atomically

SECRET_FILE = "prefect-secret"
_ONLY_THE_OWNER = 0o700

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrefectServer:
    """A server and the right to use it.

    Parameters
    ----------
    url : str
        URL of the API.
    secret : str
        What it asks for; empty for a server that asks for nothing.
    """

    url: str
    secret: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        given = base64.b64encode(self.secret.encode()).decode()
        return {"Authorization": f"Basic {given}"} if self.secret else {}

    @property
    def settings(self) -> dict[str, str]:
        """Environment of the server itself and of whatever uses it.

        No page of another origin may read an answer. Prefect has no setting for allowed hosts; under a foreign host
        name there is no secret, so nothing is answered. Nor is its protection against forged requests switched on: the
        secret is a header that no browser adds by itself.
        """
        found = {"PREFECT_API_URL": self.url}
        if self.secret:
            found["PREFECT_API_AUTH_STRING"] = found["PREFECT_SERVER_API_AUTH_STRING"] = self.secret
            found["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] = self.url.removesuffix("/api")
        return found


def where_prefect(prefect: PrefectServer, folder: Path) -> str:
    """Return a line on the address of a server's page, and how its owner gets past the login that stands before it."""
    page = prefect.url.removesuffix("/api")
    return f"{page}   its login asks for what this prints: cat {shlex.quote(str(folder / SECRET_FILE))}"


def server_of_environment() -> PrefectServer | None:
    """Return the server that ``PREFECT_API_URL`` and ``PREFECT_API_AUTH_STRING`` name, None when there is no such name."""
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    return PrefectServer(url, os.environ.get("PREFECT_API_AUTH_STRING", "")) if url else None


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter; one of ours that others could enter is closed to them.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with storage_errors(str(folder)):
        folder.mkdir(mode=_ONLY_THE_OWNER, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            with suppress(PermissionError):  # a file system without permissions: `make_secret` says so
                folder.chmod(_ONLY_THE_OWNER)


def make_secret(folder: Path) -> str:
    """Return a new secret and keep it in a file of `folder` that only the owner reads; it replaces an older one.

    On a file system that keeps no permissions it is kept all the same, with a warning.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    secret = f"rescueseg:{secrets.token_urlsafe(32)}"
    path = folder / SECRET_FILE
    with storage_errors(str(path)):
        with replace_atomically(path) as part:
            part.touch(mode=0o600, exist_ok=False)
            part.write_text(f"{secret}\n")
        if path.stat().st_mode & 0o077:
            _log.warning(
                "%s: the file system keeps no permissions, so other accounts of this machine may read it", path
            )
    return secret


def read_secret(folder: Path) -> str:
    """Return the secret of the server that runs from `folder`, empty when there is none that we may read."""
    try:
        return (folder / SECRET_FILE).read_text().strip()
    except (FileNotFoundError, PermissionError):
        return ""
