"""A cluster from outside: who lacks its credentials runs nothing, reads nothing, and its own tasks run as before."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from distributed import Client, LocalCluster

from flows.generation import generation
from rescueseg.campaign import Campaign
from rescueseg.config import ClusterConfig, check_config
from rescueseg.errors import ConfigError
from rescueseg.queue.store import open_queue
from rescueseg.services.dask_cluster import open_cluster, reference
from rescueseg.stages.due import check_ready
from tests.integration.dask_stranger import leave_proof

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
STRANGER = ROOT / "tests/integration/dask_stranger.py"


@pytest.fixture
def proofs(tmp_path: Path) -> Path:
    """A folder where anybody who gets to run something can say so."""
    folder = tmp_path / "proofs"
    folder.mkdir()
    return folder


def listening(pid: int) -> list[str]:
    """Return every address where a process and its descendants listen."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = {c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return sorted(f"{a.ip.replace('0.0.0.0', '127.0.0.1')}:{a.port}" for a in found)


def stranger(addresses: list[str], folder: str, proofs: Path) -> dict[str, Any]:
    """Let another user of this machine try; see `tests.integration.dask_stranger`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    told = json.dumps({"addresses": addresses, "folder": folder, "proofs": str(proofs)})
    done = subprocess.run(
        [sys.executable, str(STRANGER), told],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["uid"] == 65534
    return dict(seen)


def test_the_stranger_would_get_in_without_credentials(proofs: Path) -> None:
    """The attack works: on a cluster as Dask starts it by itself, worker, nanny and scheduler run the function."""
    with LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0") as cluster:
        worker = next(iter(cluster.scheduler_info["workers"].values()))
        addresses = [cluster.scheduler_address, worker["nanny"], *cluster.scheduler_info["workers"]]
        seen = stranger([a.removeprefix("tcp://") for a in addresses], "/nowhere", proofs)
    assert len(seen["ran"]) >= 3
    assert {p.read_text() for p in proofs.iterdir()} == {"0"}


def test_a_stranger_runs_nothing_and_reads_nothing(proofs: Path) -> None:
    others = listening(os.getpid())  # servers of other tests in this process
    with open_cluster(ClusterConfig(workers=1)) as client:
        addresses = [address for address in listening(os.getpid()) if address not in others]
        workers = client.scheduler_info()["workers"]
        known = {client.scheduler.address, *workers, *(w["nanny"] for w in workers.values())}
        assert all(address.startswith("tls://127.0.0.1:") for address in known)
        assert {address.removeprefix("tls://") for address in known} <= set(addresses)
        folder = Path(reference(client).tls_folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {p.stat().st_mode & 0o777 for p in folder.glob("*.pem")} == {0o600}
        secret = (folder / "key.pem").read_text().splitlines()[1]
        seen = stranger(addresses, str(folder), proofs)
        assert client.submit(sum, [1, 2]).result() == 3
        assert client.submit(leave_proof, str(proofs / "ours")).result() == os.getuid()
    assert seen["ran"] == []
    assert seen["read"] == []
    assert secret not in seen["command_lines"]
    assert seen["command_lines"]
    assert [p.name for p in proofs.iterdir()] == ["ours"]
    assert {path.partition("/")[2] for path in seen["pages"]} <= {"sitemap.json", "metrics"}
    assert not any(str(folder) in page or secret in page for page in seen["pages"].values())
    assert not folder.exists()


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_client_without_the_credentials_is_refused(scheme: str) -> None:
    with open_cluster(ClusterConfig(workers=1)) as client:
        address = f"{scheme}://{client.scheduler.address.removeprefix('tls://')}"
        with pytest.raises((OSError, TypeError)):
            Client(address, timeout=3)
        with open_cluster(reference(client)) as other:
            assert other.submit(sum, [1, 2]).result() == 3


def test_what_a_killed_process_leaves_nobody_else_can_read(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from rescueseg.config import ClusterConfig\n"
        "from rescueseg.services.dask_cluster import open_cluster, reference\n"
        "if __name__ == '__main__':\n"
        "    with open_cluster(ClusterConfig(workers=1)) as client:\n"
        "        print(reference(client).tls_folder, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "killed.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.glob("*.pem")} == {0o600}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of sbatch and scancel that run the job here; returns the folder of scripts and outputs."""
    pytest.importorskip("dask_jobqueue")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, does in (
        ("sbatch", f'cp "$1" {folder}/job.sh; setsid bash {folder}/job.sh >{folder}/job.log 2>&1 & echo "job $!"'),
        ("scancel", 'kill -- "-$1"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_slurm_job_joins_by_the_files_alone(slurm: Path, tmp_path: Path, proofs: Path) -> None:
    shared = tmp_path / "a campaign's folder" / "services"
    config = ClusterConfig(kind="slurm", workers=1, memory="1GiB")
    with open_cluster(config, shared) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result() == 3
        assert client.scheduler.address.startswith("tls://")
        [folder] = shared.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert "PRIVATE KEY" not in (slurm / "job.sh").read_text()
        job = next(p for p in psutil.process_iter() if client.scheduler.address in _line(p))
        seen = stranger([*listening(os.getpid()), *listening(job.pid)], str(folder), proofs)
    assert (seen["ran"], seen["read"], list(proofs.iterdir())) == ([], [], [])
    assert list(shared.iterdir()) == []


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.mark.parametrize("address", ["tcp://scheduler:8786", "192.0.2.7:8786", "tcp://127.0.0.1.evil.example:8786"])
def test_an_address_beyond_loopback_without_tls_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"not protected by TLS.*--tls-ca-file"),
        open_cluster(ClusterConfig(kind="address", address=address)),
    ):
        pass


def test_such_an_address_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    settings = {"name": "m", "classes": ["x"], "cluster": {"kind": "address", "address": "tcp://scheduler:8786"}}
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config(settings))
    with pytest.raises(ConfigError, match="not protected by TLS"):
        check_ready(campaign, open_queue(campaign))


def test_a_flow_is_not_pointed_at_such_an_address(campaign: Campaign) -> None:
    with pytest.raises(ConfigError, match="not protected by TLS"):
        generation.fn(campaign.url, scheduler="tcp://scheduler:8786")
    with pytest.raises(ConfigError, match="needs credentials"):
        generation.fn(campaign.url, scheduler="tls://scheduler:8786")


# infra/compose.yaml ---------------------------------------------------------------------------------------------------


def test_only_those_who_need_the_credentials_of_compose_mount_them() -> None:
    services = COMPOSE["services"]
    mounting = {name for name, service in services.items() if any("tls:" in v for v in service.get("volumes", []))}
    assert mounting == {"credentials", "scheduler", "dask-worker", "worker"}
    assert {n for n in mounting for v in services[n]["volumes"] if v.startswith("tls:") and not v.endswith(":ro")} == {
        "credentials"
    }
    assert "ports" not in services["scheduler"]


def _compose_command(service: str, folder: Path, port: int) -> list[str]:
    """Return what a service of compose starts, at a port and with files of this test."""
    told = {"python": sys.executable, "/tls": str(folder), "tls://scheduler:8786": f"tls://127.0.0.1:{port}"}
    told |= {"8786": str(port), "0.0.0.0": "127.0.0.1", "${DASK_MEMORY:-8GiB}": "1GiB"}
    words = [told.get(word, word) for word in shlex.split(COMPOSE["services"][service]["command"])]
    words = [word.replace("/tls/", f"{folder}/", 1) if word.startswith("/tls/") else word for word in words]
    return [sys.executable, "-m", *words] if words[0] == "dask" else words


def test_the_commands_of_compose_make_a_closed_cluster(tmp_path: Path, proofs: Path) -> None:
    folder = tmp_path / "tls"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    made = _compose_command("credentials", folder, port)
    for said in ("made", "kept what is there"):
        done = subprocess.run(made, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
        assert done.stdout.strip().endswith(said)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for service in ("scheduler", "dask-worker"):
            command = _compose_command(service, folder, port)
            started += [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)]
        config = ClusterConfig(kind="address", address=f"tls://127.0.0.1:{port}", tls_folder=str(folder))
        with open_cluster(config) as client:
            client.wait_for_workers(1, timeout=60)
            assert client.submit(sum, [1, 2]).result() == 3
            addresses = [address for process in started for address in listening(process.pid)]
            seen = stranger(addresses, str(folder), proofs)
        assert (seen["ran"], seen["read"], list(proofs.iterdir())) == ([], [], [])
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=60)
