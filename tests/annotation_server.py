"""A real annotation server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescueseg.campaign import Campaign
from rescueseg.processes import stop_tree

ROOT = Path(__file__).parents[1]


def start_server(url: str, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start `rescueseg serve` on a free port (unless the options name one); return the process and its URL."""
    port = [] if "--port" in options else ["--port", "0"]
    command = [sys.executable, "-c", "from rescueseg.cli import app; app()", "serve", url, *port, *options]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PREFECT_API_URL": ""},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Annotation http"), line
    return process, line.split()[1]


@contextmanager
def served(campaign: Campaign, *options: str) -> Iterator[str]:
    """Serve a campaign for a block and yield the server's URL."""
    process, url = start_server(campaign.url, *options)
    try:
        yield url
    finally:
        stop_tree(process.pid)
        process.wait()
