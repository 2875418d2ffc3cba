"""Credentials of a Dask cluster: who holds them may speak to its scheduler and workers, and nobody else.

::

    ca.pem      whom to trust
    cert.pem    what scheduler, workers and clients show
    key.pem     its key

Clusters that are opened here make theirs anew and remove them at the end. For a scheduler that runs by itself::

    python -m rescueseg.services.dask_credentials FOLDER
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from distributed import Security

from rescueseg.campaign.private_folder import private_folder
from rescueseg.errors import ConfigError, RescuesegError, storage_errors

CA_FILE, CERT_FILE, KEY_FILE = "ca.pem", "cert.pem", "key.pem"
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rescueseg dask cluster")])
_EARLIER, _LATER = timedelta(days=1), timedelta(days=3650)
"""Clocks of nodes differ, and no cluster may end because its certificate does."""


@contextmanager
def temporary_credentials(beside: Path | None = None) -> Iterator[Path]:
    """Make credentials for one cluster and remove them at the end.

    Parameters
    ----------
    beside : Path, optional
        The folder that gets the folder of the credentials, where other machines need them too; the system's temporary
        folder when omitted.

    Yields
    ------
    Path
        A new folder that only this user can enter, for the credentials and whatever else the cluster keeps to itself.
    """
    with storage_errors(str(beside or tempfile.gettempdir())):
        if beside is not None:
            beside.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="rescueseg-dask-", dir=beside))
    try:
        with storage_errors(str(folder)):
            _write(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_credentials(folder: Path) -> bool:
    """Make credentials in a folder, unless it holds some; return whether they were made.

    Raises
    ------
    CampaignError
        If others can reach into the folder.
    StorageError
        If it cannot be written.
    """
    private_folder(folder.absolute().parent, folder.name, todo=f"Run: chmod 700 {folder}, or choose another folder")
    if (folder / CA_FILE).exists():
        return False
    with storage_errors(str(folder)):
        _write(folder)
    return True


def _write(folder: Path) -> None:
    """Write the three files, the CA's last: without it they are made again."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(_NAME, _NAME, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _LATER)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, content in ((KEY_FILE, secret), (CERT_FILE, certificate), (CA_FILE, certificate)):
        (folder / name).unlink(missing_ok=True)
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)


def read_credentials(folder: Path) -> Security:
    """Return what scheduler, workers and clients are given; nothing unencrypted is accepted with it.

    Raises
    ------
    ConfigError
        If a file is missing, or the key is not this user's alone.
    """
    with dask.config.set(credential_settings(folder)):
        return Security()  # type: ignore[no-untyped-call]


def credential_settings(folder: Path) -> dict[str, Any]:
    """Return credentials as settings of Dask; see `read_credentials`."""
    for name in (CA_FILE, CERT_FILE, KEY_FILE):
        if not os.access(folder / name, os.R_OK):
            raise ConfigError(
                f"there is no {name} that can be read",
                where=str(folder),
                todo="Copy the scheduler's credentials there, or make new ones for it: "
                "python -m rescueseg.services.dask_credentials FOLDER",
            )
    key = (folder / KEY_FILE).stat()
    if key.st_uid != os.geteuid() or key.st_mode & 0o077:
        raise ConfigError(
            f"the key is not its reader's alone (user {key.st_uid}, mode {stat.S_IMODE(key.st_mode):o})",
            where=str(folder / KEY_FILE),
            todo="Own the file and run: chmod 600 key.pem",
        )
    files = {"ca-file": CA_FILE}
    for role in ("client", "scheduler", "worker"):
        files |= {f"{role}.cert": CERT_FILE, f"{role}.key": KEY_FILE}
    paths = {f"distributed.comm.tls.{setting}": str(folder / name) for setting, name in files.items()}
    return {"distributed.comm.require-encryption": True, **paths}


def main() -> int:
    """Make the credentials of a scheduler that runs by itself; those that are there stay."""
    if len(sys.argv) != 2:
        print("usage: python -m rescueseg.services.dask_credentials FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    try:
        made = make_credentials(folder)
    except RescuesegError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: {'made' if made else 'kept what is there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
