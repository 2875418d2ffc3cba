"""Another user of the machine who tries to run a function wherever a Dask cluster listens, and to read its credentials.

    python tests/integration/dask_stranger.py '{"addresses": ["127.0.0.1:40000", …], "folder": "…", "proofs": "…"}'

It needs root, which it gives up for uid 65534 once everything is imported: the interpreter may be closed to that user. What
it reached is written as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster
from distributed.core import rpc
from distributed.protocol.pickle import dumps

from rescueseg.services.dask_credentials import CERT_FILE, KEY_FILE, temporary_credentials

NOBODY = 65534
SECONDS = 6
PATHS = (
    "/",
    "/status",
    "/info/main/workers.html",
    "/info/main/logs.html",
    "/json/counts.json",
    "/sitemap.json",
    "/metrics",
)


def leave_proof(path: str) -> int:
    import os
    from pathlib import Path

    Path(path).write_text(str(os.getuid()))
    return os.getuid()


def contexts() -> dict[str, ssl.SSLContext | None]:
    """Plain, encrypted with no certificate, encrypted with a certificate of the stranger's own; none checks the server."""
    found: dict[str, ssl.SSLContext | None] = {"tcp": None}
    with temporary_credentials() as folder:
        for name, own in (("tls without a certificate", False), ("tls with another certificate", True)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if own:
                context.load_cert_chain(folder / CERT_FILE, folder / KEY_FILE)
            found[name] = context
    return found


async def run(address: str, context: ssl.SSLContext | None, operation: str, proof: Path) -> Any:
    """Ask a scheduler, worker or nanny to run a function."""
    scheme = "tls" if context else "tcp"
    told = {"ssl_context": context} if context else {}
    call = {"function": dumps(leave_proof), "args": dumps((str(proof),)), "kwargs": dumps({}), "wait": True}
    async with rpc(f"{scheme}://{address}", connection_args=told, timeout=SECONDS) as peer:
        return await asyncio.wait_for(getattr(peer, operation)(**call), SECONDS)


async def knock(addresses: list[str], proofs: Path) -> list[str]:
    """Return where a function ran, every address in every way at once."""
    ways = [
        (address, name, context, operation)
        for address in addresses
        for name, context in contexts().items()
        for operation in ("run", "run_function")
    ]
    answers = await asyncio.gather(
        *(run(a, context, op, proofs / f"{n}") for n, (a, _, context, op) in enumerate(ways)), return_exceptions=True
    )
    return [
        f"{address} by {name}: {answer}"
        for (address, name, _, _), answer in zip(ways, answers, strict=True)
        if isinstance(answer, dict) and answer.get("status") == "OK"
    ]


def pages(addresses: list[str]) -> dict[str, str]:
    """Return what web servers give away."""
    found = {}
    for address in addresses:
        for path in PATHS:
            try:
                with urllib.request.urlopen(f"http://{address}{path}", timeout=SECONDS) as answer:
                    found[f"{address}{path}"] = answer.read().decode(errors="replace")[:2000]
            except (OSError, ValueError):  # refused, or no web server
                continue
            except Exception as error:
                found[f"{address}{path}"] = f"{type(error).__name__}"
    return found


def readable(folder: str) -> list[str]:
    """Return what of a folder can be listed or read."""
    seen = []
    for path in [Path(folder), *(Path(folder, name) for name in ("ca.pem", "cert.pem", "key.pem"))]:
        try:
            seen.append(str(os.listdir(path) if path.is_dir() else path.read_text()[:40]))  # noqa: PTH208
        except OSError:
            continue
    return seen


def command_lines() -> str:
    """Return the command lines of every process, which every user can read."""
    return "\n".join(path.read_bytes().replace(b"\0", b" ").decode(errors="replace") for path in _existing("cmdline"))


def _existing(name: str) -> list[Path]:
    return [path for path in Path("/proc").glob(f"[0-9]*/{name}") if path.exists()]


def main() -> None:
    """Import everything as root, become another user, then knock."""
    told = json.loads(sys.argv[1])
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        client.run(os.getuid)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.environ["HOME"] = tempfile.gettempdir()
    ran = asyncio.run(knock(told["addresses"], Path(told["proofs"])))
    seen = {"ran": ran, "pages": pages(told["addresses"]), "read": readable(told["folder"])}
    print(json.dumps(seen | {"uid": os.getuid(), "command_lines": command_lines()}))


if __name__ == "__main__":
    main()
