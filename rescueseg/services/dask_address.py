"""Which Dask schedulers may be spoken to. Imports no Dask, so that a wrong address is told before anything is started."""

from __future__ import annotations

import ipaddress
import re

from rescueseg.config import ClusterConfig
from rescueseg.errors import ConfigError

_ADDRESS = re.compile(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]{1,5})?")


def check_address(config: ClusterConfig) -> None:
    """Refuse the address of a scheduler that anybody on the way, or anybody on its machine, could use or imitate.

    Whoever speaks to a scheduler runs Python on it and on its workers, and whoever answers for it runs Python here. With
    TLS both sides show a certificate. Without it, a scheduler on the loopback interface is left to the person who runs it.

    Parameters
    ----------
    config : ClusterConfig
        Kinds other than ``address`` always pass: they make credentials of their own.

    Raises
    ------
    ConfigError
        If the address is missing or malformed, is not ``tls://`` beyond loopback, or names no credentials.
    """
    if config.kind != "address":
        return
    if not config.address:
        raise ConfigError("no scheduler address", where="cluster.address", todo="Set it, e.g. 'tls://scheduler:8786'")
    scheme, host = _parts(config.address)
    if scheme == "tls":
        if not config.tls_folder:
            raise ConfigError(
                f"{config.address} needs credentials",
                where="cluster.tls_folder",
                todo="Name the folder that holds the scheduler's ca.pem, cert.pem and key.pem",
            )
    elif scheme != "inproc" and not (scheme == "tcp" and _is_loopback(host)):
        raise ConfigError(
            f"{config.address} is not protected by TLS: whoever reaches it can run programs as its owner",
            where="cluster.address",
            todo="Start scheduler and workers with --tls-ca-file, --tls-cert and --tls-key, then give a tls:// address and "
            "cluster.tls_folder; infra/README.md shows how",
        )


def is_unprotected(config: ClusterConfig) -> bool:
    """Tell whether an address that was let pass goes without TLS."""
    return config.kind == "address" and _parts(config.address)[0] == "tcp"


def _parts(address: str) -> tuple[str, str]:
    """Return scheme and host; Dask takes tcp where none is given."""
    if address.startswith("inproc://"):  # a scheduler in this very process
        return "inproc", ""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ConfigError(
            f"'{address}' is no address of a scheduler", where="cluster.address", todo="E.g. 'tls://scheduler:8786'"
        )
    return found["scheme"] or "tcp", found["host"].strip("[]")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
