"""No upload harms: each that is none is refused with one sentence, nothing changes, and memory stays bounded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from rescueseg.campaign import Campaign
from rescueseg.queue.store import open_queue
from rescueseg.queue.tables import metadata
from rescueseg.services.processes import stop_tree
from rescueseg.storage import file_digest
from tests.annotation_server import fill, start_server
from tests.malformed_uploads import RAW, malformed, nifti

MEMORY_MIB = 32
"""How much more the server may take at its peak: a bomb is 256 MiB, the patch 60 voxels."""


def everything(campaign: Campaign) -> Any:
    """Return all rows of the queue and all files below the campaign but the database's."""
    with sa.create_engine(campaign.database_url).connect() as connection:
        rows = {table.name: connection.execute(sa.select(table)).all() for table in metadata.sorted_tables}
    files = {str(path): file_digest(str(path)) for path in Path(campaign.url).rglob("*") if path.is_file()}
    return rows, {path: digest for path, digest in files.items() if "campaign.db" not in path}


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def test_every_malformed_upload_is_refused_and_changes_nothing(campaign: Campaign) -> None:
    fill(campaign)
    process, url = start_server(campaign.url)
    try:
        with httpx.Client(
            base_url=f"{url}/api/v1", headers={"X-Rescueseg-Annotator": "anna"}, timeout=60, trust_env=False
        ) as client:
            lease = client.post("/tickets/next").json()["lease_id"]
            path = f"/leases/{lease}"
            assert client.post(f"{path}/check", content=nifti(), headers={"Content-Type": RAW}).status_code == 200
            before, at_first = everything(campaign), peak_mib(process.pid)
            seen: Counter[int] = Counter()
            for number, upload in enumerate(malformed(seed=4)):
                target = f"{path}/submit?tool=fuzz&override=true" if number % 4 else f"{path}/check"
                answer = client.post(target, content=upload.body, headers={"Content-Type": upload.content_type})
                assert 400 <= answer.status_code < 500, (upload.fault, answer.status_code, answer.text)
                error = answer.json()
                assert error["error"] == "LabelError", (upload.fault, error)
                assert 10 < len(error["what"]) < 300, (upload.fault, error)
                assert "\n" not in error["what"], (upload.fault, error)
                seen[answer.status_code] += 1
            grown = peak_mib(process.pid) - at_first
            print(f"{seen.total()} malformed uploads: {dict(seen)}; {at_first:.0f} MiB, at the peak {grown:.1f} more")
            assert seen.total() >= 500
            assert grown < MEMORY_MIB
            assert everything(campaign) == before
            assert not list(Path("/tmp").glob("rescueseg-unpickled")) + list(Path("/tmp").glob("rescueseg-evaluated"))
            done = client.post(f"{path}/submit?tool=fuzz&override=true", content=nifti())
            assert done.status_code == 200, "the lease still stands"
            assert psutil.Process(process.pid).is_running()
        assert [a.version for a in open_queue(campaign).views.annotations("a")] == [1]
    finally:
        stop_tree(process.pid)
        process.wait()
