"""Many annotators at one server that is killed again and again: no patch is held by two, none is lost.

Each annotator is a process with a `RemoteClient`. It takes patches, waits, hands in; sometimes it hands in twice, too late,
gives back, skips, or is killed and comes again. The server is killed -9 and started again. At the end everything that
was confirmed to somebody is looked for in the queue and the campaign, voxel by voxel, and the audit trail is replayed.
Prints the figures and exits with 1 when anything is wrong; then times leases and submits of 128³ patches.

    python -m tests.integration.annotators_against_server --database postgres
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tifffile
from scipy import ndimage

from rescueseg import volumes
from rescueseg.annotation.remote_client import RemoteClient
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import LeaseExpiredError, QueueError, ServiceError, StorageError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import AuditEntry, Lease, NewTicket
from rescueseg.queue.store import QueueStore, open_queue, utc_now
from rescueseg.services.processes import stop_tree
from rescueseg.storage import digest_array
from tests.annotation_server import start_server
from tests.postgres import throw_away_postgres

FORK = multiprocessing.get_context("fork")
PATCH = (4, 8, 8)
LARGE = (128, 128, 128)
LEASE_SECONDS = 30.0
"""Well above what a call takes on a busy machine: where leases end before labels arrive, nobody gets anything done."""
HABITS = {"once": 78, "twice": 6, "late": 3, "release": 5, "skip": 1, "drop": 3, "beat": 4}
"""What an annotator does with a patch, in percent."""
ENDS = {"submitted", "released", "skipped", "expired"}


def make_campaign(folder: Path, database_url: str, tickets: int, lease_seconds: float = LEASE_SECONDS) -> Campaign:
    """Return a campaign of noise with so many small patches waiting."""
    settings = {"name": "load", "classes": ["a"], "annotation": {"lease_minutes": lease_seconds / 60}}
    campaign = Campaign.create(str(folder / "campaign"), check_config({**settings, "database_url": database_url}))
    places = itertools.product(range(0, 32, 4), range(0, 160, 8), range(0, 128, 8))
    boxes = [Box(place, PATCH) for place in itertools.islice(places, tickets)]
    noise = np.random.default_rng(1).integers(0, 255, (32, 160, 128), np.uint8)
    tifffile.imwrite(folder / "raw.tif", noise)
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=(0.3, 0.1, 0.1))
    )
    new = [NewTicket(ticket_id=f"t{n:04d}", volume_id="v", box=box, score=n % 7) for n, box in enumerate(boxes)]
    open_queue(campaign).tickets.add(new)
    return campaign


def labels_by(annotator: str, ticket_id: str, shape: tuple[int, ...] = PATCH) -> PatchLabels:
    """Return what this person draws in this patch: always the same, and nobody else's."""
    rng = np.random.default_rng(list(f"{annotator}/{ticket_id}".encode()))
    return PatchLabels(rng.choice(np.array([0, 1, 255], np.uint8), shape))


class Annotator:
    """One process's work: asks until the server answers, and writes down what was confirmed.

    Parameters
    ----------
    url : str
        Of the server.
    name : str
        In the queue.
    log : Path
        Gets a line of JSON for each confirmed call; what a killed process was told last may be missing.
    """

    def __init__(self, url: str, name: str, log: Path) -> None:
        self.name, self.random = name, random.Random(f"{name}{os.getpid()}")
        self.client = RemoteClient(url, annotator=name, timeout=60)
        self.log = log.open("a")

    def ask(self, what: str, call: Callable[[], Any]) -> Any:
        """Call until there is an answer; an error of the queue is one."""
        tries = 0
        while True:
            began = time.perf_counter()
            try:
                answer = call()
            except (ServiceError, StorageError):
                tries += 1
                time.sleep(self.random.uniform(0.2, 1.0))
                continue
            took = time.perf_counter() - began
            known = {"ticket": getattr(answer, "ticket_id", ""), "lease": getattr(answer, "lease_id", "")}
            digest = getattr(answer, "labels_digest", "")
            entry = {"what": what, "by": self.name, **known, "digest": digest, "seconds": took, "tries": tries}
            print(json.dumps(entry), file=self.log, flush=True)
            return answer

    def work(self) -> None:
        """Take patches until there is none left, nor anybody who might give one back."""
        while True:
            lease = self.ask("next", self.client.next)
            if lease is None:
                counts = self.ask("info", self.client.info).counts
                if not counts["queued"] + counts["leased"]:
                    return
                time.sleep(self.random.uniform(0.3, 1.0))
                continue
            habit = self.random.choices(list(HABITS), list(HABITS.values()))[0]
            time.sleep(self.random.uniform(0, 0.1))
            with suppress(LeaseExpiredError):  # while the server was away
                self.follow(habit, lease)

    def follow(self, habit: str, lease: Lease) -> None:
        """Do with a patch what the habit says."""
        if habit == "drop":
            os.kill(os.getpid(), signal.SIGKILL)
        elif habit in ("release", "skip"):
            arguments = ["noise"] if habit == "skip" else []
            self.ask(habit, lambda: getattr(self.client, habit)(lease.lease_id, *arguments))
        elif habit == "beat":
            self.ask("beat", lambda: self.client.heartbeat(lease.lease_id, 0.1))
            self.submit(lease)
        elif habit == "late":
            time.sleep(max(0.0, (lease.expires_at - utc_now()).total_seconds()) + 0.5)
            try:
                self.submit(lease)
                raise AssertionError("a lease that ran out was taken")
            except LeaseExpiredError:
                with suppress(QueueError):  # somebody else has it now
                    again = self.ask("next", lambda: self.client.next(ticket_id=lease.ticket_id))
                    self.submit(again)
        else:
            first = self.submit(lease)
            assert habit == "once" or self.submit(lease) == first, "the same again is another version"

    def submit(self, lease: Lease) -> Any:
        """Hand in this person's labels."""
        labels = labels_by(self.name, lease.ticket_id, lease.ticket.box.shape_zyx)
        return self.ask("submit", lambda: self.client.submit(lease.lease_id, labels, "load", override=True))


def _annotate(url: str, name: str, log: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Annotator(url, name, log).work()


class Crowd:
    """The annotators' processes; whoever was killed comes again under the same name."""

    def __init__(self, url: str, count: int, logs: Path) -> None:
        self.url, self.logs = url, logs
        self.crashes = 0
        self.members = {f"annotator{n:02d}": self._start(f"annotator{n:02d}") for n in range(count)}

    def _start(self, name: str) -> Any:
        process = FORK.Process(target=_annotate, args=(self.url, name, self.logs / f"{name}.jsonl"), daemon=True)
        process.start()
        return process

    def tend(self) -> bool:
        """Start again whoever was killed; return whether anybody still works."""
        for name, process in self.members.items():
            if process.exitcode not in (None, 0, -signal.SIGKILL):
                raise AssertionError(f"{name} ended with {process.exitcode}")
            if process.exitcode == -signal.SIGKILL:
                self.crashes += 1
                self.members[name] = self._start(name)
        return any(process.exitcode is None for process in self.members.values())

    def stop(self) -> None:
        for process in self.members.values():
            process.kill()
            process.join()


def run(campaign: Campaign, annotators: int, restarts: int, logs: Path, limit: float = 3600.0) -> dict[str, Any]:
    """Let the crowd empty the queue while the server is killed; return the figures, checked."""
    store = open_queue(campaign)
    total = len(store.views.tickets())
    server, url = start_server(campaign.url)
    crowd = Crowd(url, annotators, logs)
    began, killed = time.monotonic(), 0
    try:
        while crowd.tend():
            assert time.monotonic() - began < limit, store.views.counts()
            counts = store.views.counts()
            if killed < restarts and counts["accepted"] >= (killed + 1) * total // (restarts + 1):
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                killed += 1
                server = _again(campaign.url, url)
            time.sleep(0.2)
        seconds = time.monotonic() - began
    finally:
        crowd.stop()
        stop_tree(server.pid)
        server.wait()
    assert killed == restarts, f"the server was killed {killed} times only"
    told = [json.loads(line) for path in logs.glob("*.jsonl") for line in path.read_text().splitlines()]
    check(campaign, store, told)
    events = Counter(e.event for e in _trail(store))
    return {
        "annotators": annotators,
        "tickets": total,
        "server kills": killed,
        "annotator kills": crowd.crashes,
        "seconds": round(seconds, 1),
        "tickets per second": round(total / seconds, 2),
        "events": dict(events),
        **{f"{what} ms p50/p99": _percentiles(told, what) for what in ("next", "submit")},
    }


def _again(campaign_url: str, url: str) -> subprocess.Popen[str]:
    """Start a killed server again at its address."""
    return start_server(campaign_url, "--port", str(httpx.URL(url).port))[0]


def _percentiles(told: list[dict[str, Any]], what: str) -> list[float]:
    """Return p50 and p99 in milliseconds of the calls that were answered at once."""
    found = [t["seconds"] for t in told if t["what"] == what and not t["tries"]]
    return [round(float(v) * 1000, 1) for v in np.percentile(found, [50, 99])]


def _trail(store: QueueStore) -> list[AuditEntry]:
    """Return the whole audit trail."""
    found: list[AuditEntry] = []
    while more := store.views.changes(found[-1].number if found else 0):
        found += more
    return found


def check(campaign: Campaign, store: QueueStore, told: list[dict[str, Any]]) -> None:
    """Compare what annotators were told with the queue, the stored labels and the audit trail."""
    tickets = {t.ticket_id: t for t in store.views.tickets()}
    assert {t.status for t in tickets.values()} <= {"accepted", "skipped"}, store.views.counts()
    trail: dict[str, list[AuditEntry]] = defaultdict(list)
    for entry in _trail(store):
        trail[entry.ticket_id].append(entry)
    assert set(trail) == set(tickets)
    for ticket_id, entries in trail.items():
        _replay(entries, tickets[ticket_id].status)
    accepted = {a.ticket_id: a for a in store.views.accepted()}
    assert set(accepted) == {t.ticket_id for t in tickets.values() if t.status == "accepted"}
    for ticket_id, annotation in accepted.items():
        drawn = labels_by(annotation.annotator, ticket_id)
        stored = campaign.storage.read_array(annotation.labels)
        assert np.array_equal(stored, drawn.classes), ticket_id
        assert annotation.labels_digest == drawn.digest == digest_array(stored)
    for entry in told:
        if entry["what"] == "submit":
            versions = {(a.annotator, a.labels_digest) for a in store.views.annotations(entry["ticket"])}
            assert (entry["by"], entry["digest"]) in versions, f"lost: {entry}"
    granted = {(t["lease"], t["by"]) for t in told if t["what"] == "next" and t["lease"]}
    claimed = {(e.lease_id, e.actor) for entries in trail.values() for e in entries if e.event == "claimed"}
    assert granted <= claimed, "a lease that the queue does not know"


def _replay(entries: list[AuditEntry], status: str) -> None:
    """Check one ticket's trail: each step begins where the last ended, and one lease runs at a time."""
    where, holder = "", ""
    for entry in entries:
        assert entry.before == where, entries
        where = entry.after
        if entry.event == "claimed":
            assert not holder, f"held by two: {entries}"
            holder = entry.lease_id
        elif entry.event in ENDS:
            assert entry.lease_id == holder, entries
            holder = ""
    assert not holder
    assert where == status


def time_large(folder: Path, database_url: str, count: int, annotators: int = 4) -> dict[str, Any]:
    """Return the latencies of leases and submits of 128³ patches with a few annotators at once."""
    settings = {"name": "large", "classes": ["a"], "database_url": database_url}
    campaign = Campaign.create(str(folder / "large"), check_config(settings))
    rng = np.random.default_rng(2)
    tifffile.imwrite(folder / "large.tif", rng.integers(0, 255, (160, 160, 160), np.uint8))
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / "large.tif"), volume_id="v", spacing=(0.1, 0.1, 0.1))
    )
    places = [tuple(int(v) for v in rng.integers(0, 33, 3)) for _ in range(count)]
    new = [NewTicket(ticket_id=f"t{n:04d}", volume_id="v", box=Box(p, LARGE)) for n, p in enumerate(places)]  # type: ignore[arg-type]
    open_queue(campaign).tickets.add(new)
    blobs = ndimage.gaussian_filter(rng.normal(size=LARGE), 4) > 0
    server, url = start_server(campaign.url)
    try:
        with FORK.Pool(annotators) as pool:
            seconds = pool.starmap(_time_one, [(url, f"a{n}", blobs.astype(np.uint8)) for n in range(annotators)])
    finally:
        stop_tree(server.pid)
        server.wait()
    told = [entry for part in seconds for entry in part]
    shown = {f"128³ {what} ms p50/p99": _percentiles(told, what) for what in ("next", "view", "submit")}
    return {"128³ patches": len([t for t in told if t["what"] == "submit"]), **shown}


def _time_one(url: str, name: str, blobs: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Take and hand in patches until there are none; return how long each call took."""
    client, told = RemoteClient(url, annotator=name), []
    rng = np.random.default_rng(list(name.encode()))

    def timed(what: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        answer = call()
        told.append({"what": what, "seconds": time.perf_counter() - began, "tries": 0})
        return answer

    while (lease := timed("next", client.next)) is not None:
        timed("view", lambda lease_id=lease.lease_id: client.view(lease_id))
        drawn = PatchLabels(np.roll(blobs, int(rng.integers(128)), axis=int(rng.integers(3))))
        timed("submit", lambda lease_id=lease.lease_id, d=drawn: client.submit(lease_id, d, "load", override=True))
    return told


def main() -> int:
    """Run it on one database and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--annotators", type=int, default=32)
    parser.add_argument("--tickets", type=int, default=2000)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--large", type=int, default=100, help="128³ patches to time; 0 for none")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rescueseg-load-")))
        urls = ["", ""]
        if chosen.database == "postgres":
            socket = stack.enter_context(throw_away_postgres())
            urls = [_new_database(socket, name) for name in ("load", "large")]
        campaign = make_campaign(folder, urls[0], chosen.tickets)
        logs = folder / "logs"
        logs.mkdir()
        try:
            figures = run(campaign, chosen.annotators, chosen.restarts, logs)
            if chosen.large:
                figures |= time_large(folder, urls[1], chosen.large)
        except AssertionError as error:
            print(f"wrong: {error}")
            return 1
    for name, value in {"database": chosen.database, **figures}.items():
        print(f"{name:>24}  {value}")
    print("no ticket held by two, none lost, every accepted label bit-exact, the audit trail consistent")
    return 0


def _new_database(socket: str, name: str) -> str:
    import psycopg2

    connection = psycopg2.connect(host=socket, user="postgres", dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"postgresql+psycopg2://postgres@/{name}?host={socket}"


if __name__ == "__main__":
    sys.exit(main())
