"""A campaign served as `rescueseg up` serves it: generations start by event and by cron, and exactly once.

The servers, the work pool, its worker, the automation and the schedule are real. The yearly schedule of the first test
keeps cron out of its way; the slow tests deploy again with a cron of every minute and wait for it. Who started a run is
asked of Prefect: ``AUTOMATION`` for the event, ``SCHEDULE`` for the cron.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tifffile

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.campaign_file import dump_config, settings_of
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import WORK_POOL, deploy, wake
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages import tickets
from rescueseg.stages.due import count_due
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from tests import annotation_server

EVERY_MINUTE = "* * * * *"
YEARLY = "0 0 1 1 *"
SETTINGS = [
    "trigger.accepted_patches=2",
    f"trigger.cron='{YEARLY}'",
    "sampling.starting_patches=2",
    "sampling.query_patches=2",
    "training.iterations=4",
    "training.threads=1",
    "inference.mc_samples=1",
    "inference.tta_symmetries=1",
    "stopping.patience=50",
    "cluster.workers=1",
]

pytestmark = pytest.mark.timeout(600)


@dataclass
class Served:
    """A campaign, its queue, and the servers it runs on."""

    campaign: Campaign
    store: QueueStore
    servers: Servers

    def post(self, path: str, **body: Any) -> list[dict[str, Any]]:
        prefect = self.servers.prefect
        response = httpx.post(f"{prefect.url}{path}", headers=prefect.headers, json=body, trust_env=False, timeout=30)
        response.raise_for_status()
        return response.json()

    def runs(self, known: set[str] | None = None) -> list[dict[str, Any]]:
        """Return the runs of the deployment that were started, but for those known."""
        states = {"type": {"not_any_": ["SCHEDULED"]}}
        found = self.post("/flow_runs/filter", flow_runs={"state": states}, sort="EXPECTED_START_TIME_ASC")
        return [run for run in found if run["id"] not in (known or set()) and run["deployment_id"]]

    def next_cron_run(self) -> dict[str, Any] | None:
        """Return the next cron run that is at least 4 s ahead, None when there is none yet."""
        waiting = self.post("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        ahead = [run for run in waiting if run["auto_scheduled"] and 4 < seconds_until(run) < 120]
        return min(ahead, key=seconds_until, default=None)

    def is_idle(self) -> bool:
        """Tell whether no run is going on and none is overdue."""
        waiting = self.post("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        return all(run["end_time"] for run in self.runs()) and all(seconds_until(run) > 0 for run in waiting)

    def known(self) -> set[str]:
        return {run["id"] for run in self.runs()}

    def annotate(self, count: int) -> None:
        """Hand in patches; without review they are accepted at once. No event is sent."""
        annotator = SimulatedAnnotator(self.campaign, self.store)
        for _ in range(count):
            lease = self.store.leases.claim("simulated", 600)
            assert lease is not None
            annotator.annotate(lease)

    def last(self) -> int:
        """Return the number of the last finished generation, -1 before the first."""
        row = self.store.ledger.last_generation()
        return -1 if row is None else row.generation if row.finished_at else row.generation - 1

    def schedule(self, cron: str) -> None:
        """Change the campaign's schedule and deploy again, as a second `rescueseg up` does."""
        config = self.campaign.config
        changed = config.model_copy(update={"trigger": config.trigger.model_copy(update={"cron": cron})})
        self.campaign.storage.write_bytes("campaign.toml", dump_config(changed).encode())
        self.campaign = Campaign.open(self.campaign.url)
        deploy(self.campaign, self.servers)

    def finish(self, generation: int) -> None:
        """Wait until a generation is finished, then until no run is going on."""
        self.until(lambda: self.last() >= generation, f"generation {generation} is finished")
        self.until(lambda: all(run["end_time"] for run in self.runs()), "all runs have ended")

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"not within {seconds:.0f} s: {what}\n{self.servers.log_tail('worker', 60)}"
            )
            assert not self.servers.dead_process()
            time.sleep(0.5)


def make_campaign(folder: Path) -> tuple[Campaign, QueueStore]:
    """Return a phantom campaign that has been sampled."""
    image, truth, spacing = make_phantom((16, 64, 64), seed=3)
    tifffile.imwrite(folder / "raw.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "truth.tif", truth, metadata={"axes": "ZYX"})
    campaign = start_campaign(
        str(folder / "campaign"),
        settings_of("served", ["organelle"], SETTINGS),
        [VolumeImport(str(folder / "raw.tif"), spacing=spacing, truth=str(folder / "truth.tif"), volume_id="phantom")],
    )
    store = open_queue(campaign)
    assert tickets.prepare(campaign, store) == 2
    return campaign, store


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A phantom campaign, sampled and deployed, with the event as its only near trigger."""
    campaign, store = make_campaign(tmp_path_factory.mktemp("served"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
        patch.delenv("PREFECT_API_URL", raising=False)
        with Servers(campaign.services_folder, campaign.tracking_uri) as servers:
            deploy(campaign, servers)
            yield Served(campaign, store, servers)


def heed_interrupts() -> None:
    """Take Ctrl-C as from a terminal, even where the tests were started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def seconds_until(run: dict[str, Any]) -> float:
    return (datetime.fromisoformat(run["expected_start_time"]) - datetime.now(UTC)).total_seconds()


def creator(run: dict[str, Any]) -> str:
    return str(run["created_by"]["type"])


def test_accepted_patches_start_a_generation_by_the_event(served: Served) -> None:
    known, generation = served.known(), served.last() + 1
    served.annotate(1)
    assert not wake(served.campaign, served.store), "1 of 2 patches"
    served.annotate(1)
    assert wake(served.campaign, served.store), "2 of 2 patches: the event is sent"
    served.finish(generation)
    [run] = served.runs(known)
    assert (creator(run), run["state_type"], run["work_pool_name"]) == ("AUTOMATION", "COMPLETED", WORK_POOL)
    assert run["parameters"] == {"campaign_url": served.campaign.url, "only_if_due": True}
    assert served.campaign.generation(generation).finished_stages() == list(STAGES)
    assert not count_due(served.campaign, served.store).due
    assert len(served.store.views.tickets(status="queued")) == 2, "the next patches wait in the queue"


@pytest.mark.slow
def test_a_lost_event_is_made_good_by_the_next_cron_run(served: Served) -> None:
    """The cron is real: the schedule is changed to every minute, and the test waits for it."""
    known, generation = served.known(), served.last() + 1
    served.annotate(2)  # and nobody calls `wake`
    served.schedule(EVERY_MINUTE)
    try:
        served.finish(generation)
    finally:
        served.schedule(YEARLY)
    assert served.last() == generation
    runs = served.runs(known)
    assert {creator(run) for run in runs} == {"SCHEDULE"}
    assert all(run["state_type"] == "COMPLETED" for run in runs)
    assert sum(run["state_name"] != "NotDue" for run in runs) == 1


@pytest.mark.slow
def test_cron_and_event_at_once_give_one_generation(served: Served) -> None:
    """The cron is real (every minute); the event is sent in the second in which the cron run is due."""
    generation = served.last() + 1
    served.schedule(EVERY_MINUTE)
    try:
        served.until(
            lambda: served.is_idle() and served.next_cron_run() is not None,
            "earlier cron runs have ended and Prefect has scheduled the next",
        )
        cron = served.next_cron_run()
        assert cron is not None
        # the worker fetches a run some seconds ahead, and it is pending from then on
        known = served.known() - {cron["id"]}
        time.sleep(seconds_until(cron) - 1)
        served.annotate(2)
        time.sleep(max(0.0, seconds_until(cron)))
        assert wake(served.campaign, served.store)
        served.until(lambda: len(served.runs(known)) >= 2, "the cron and the event each started a run")
        served.finish(generation)
    finally:
        served.schedule(YEARLY)
    first = {creator(run): run for run in reversed(served.runs(known))}
    assert set(first) == {"AUTOMATION", "SCHEDULE"}
    assert first["SCHEDULE"]["id"] == cron["id"]
    begun = [datetime.fromisoformat(run["start_time"]) for run in first.values()]
    assert abs(begun[0] - begun[1]).total_seconds() < 15, "they ran side by side"
    runs = served.runs(known)
    assert all(run["state_type"] == "COMPLETED" for run in runs)
    assert sum(run["state_name"] != "NotDue" for run in runs) == 1, "one of them worked"
    assert served.last() == generation
    assert served.campaign.generations() == list(range(generation + 1))


@pytest.mark.slow
def test_a_client_of_monai_label_starts_a_generation_follows_it_and_stops_one(served: Served, tmp_path: Path) -> None:
    module = pytest.importorskip("monailabel.client.client", reason="MONAI Label's client is not installed")
    known, generation = served.known(), served.last() + 1
    served.annotate(2)  # and nobody calls `wake`
    with annotation_server.served(served.campaign) as url:
        client = module.MONAILabelClient(f"{url}/monai", str(tmp_path), "anna")
        assert not client.train_status(check_if_running=True)
        started = client.train_start("champion", {})
        assert started["status"] in ("SUBMITTED", "RUNNING")
        assert client.train_status(check_if_running=True)
        with pytest.raises(module.MONAILabelClientException):
            client.train_start("champion", {})
        served.finish(generation)
        done = client.train_status()
        assert (done["id"], done["status"]) == (started["id"], "DONE")
        assert done["end_ts"] > done["start_ts"]
        client.train_start("champion", {})
        assert client.train_stop()["status"] in ("STOPPED", "DONE")
        served.until(lambda: all(run["end_time"] for run in served.runs()), "the stopped run has ended")
    assert {run["id"] for run in served.runs(known)} >= {started["id"]}
    assert served.last() == generation


@pytest.mark.slow
def test_deploying_again_leaves_one_schedule_one_automation_and_one_worker(served: Served) -> None:
    served.schedule("0 0 2 2 *")
    deployments = {d["entrypoint"]: d for d in served.post("/deployments/filter")}
    assert len(deployments) == 2
    [schedule] = deployments["flows/generation.py:generation"]["schedules"]
    assert schedule["schedule"]["cron"] == "0 0 2 2 *"
    assert len(served.post("/automations/filter")) == 1
    name = f"{served.campaign.config.name}-worker"
    workers = [p for p in psutil.process_iter(["cmdline"]) if name in (p.info["cmdline"] or [])]
    assert len(workers) == 1


@pytest.mark.slow
def test_up_starts_what_came_due_while_nothing_was_served_and_stops_with_all_its_processes(tmp_path: Path) -> None:
    campaign, store = make_campaign(tmp_path)
    assert SimulatedAnnotator(campaign, store).drain() == 2
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    command = [sys.executable, "-c", "from rescueseg.cli.main import app; app()", "up", campaign.url]
    with (tmp_path / "up.log").open("w") as log:
        up = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=heed_interrupts
        )
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 240
        while (row := store.ledger.last_generation()) is None or row.finished_at is None:
            assert up.poll() is None, (tmp_path / "up.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        family = psutil.Process(up.pid).children(recursive=True)
        assert len(family) >= 4, "Prefect, MLflow, the worker, annotation"
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0
    said = (tmp_path / "up.log").read_text()
    assert "Generation 0 starts: 2 of 2 patches accepted" in said
    assert "Annotate http://127.0.0.1:" in said
    assert said.rstrip().endswith("Stopping…")
    assert psutil.wait_procs(family, timeout=5)[1] == []
