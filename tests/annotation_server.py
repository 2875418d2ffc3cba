"""A small campaign for the annotation server, and the real server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from rescueseg import volumes
from rescueseg.campaign import Campaign
from rescueseg.geometry import Box
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.services.processes import stop_tree

ROOT = Path(__file__).parents[1]
BOX = Box((2, 3, 4), (3, 4, 5))
SPACING = (0.4, 0.2, 0.1)
IMAGE = np.arange(8 * 9 * 10, dtype=np.uint16).reshape(8, 9, 10)
HERE = "http://127.0.0.1:8642"


def fill(campaign: Campaign) -> Campaign:
    """Give a campaign a volume and two tickets, `a` and then `b`."""
    source = Path(campaign.url).with_name("raw.tif")
    tifffile.imwrite(source, IMAGE)
    volumes.import_volume(campaign, volumes.VolumeImport(str(source), volume_id="v", spacing=SPACING))
    boxes = {"a": BOX, "b": Box((5, 0, 0), (2, 3, 4))}
    tickets = [NewTicket(ticket_id=name, volume_id="v", box=box, score=-ord(name)) for name, box in boxes.items()]
    open_queue(campaign).tickets.add(tickets)
    return campaign


def start_server(url: str, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start `rescueseg serve` on a free port (unless the options name one); return the process and its URL."""
    port = [] if "--port" in options else ["--port", "0"]
    command = [sys.executable, "-c", "from rescueseg.cli.main import app; app()", "serve", url, *port, *options]
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
