"""Clusters: threads of the workers, an address, the Slurm job script, clear errors."""

from __future__ import annotations

import builtins
import os
import sys
import types
from typing import Any

import dask
import pytest
from distributed import LocalCluster
from pydantic import ValidationError

from rescueseg.config import ClusterConfig
from rescueseg.errors import ConfigError
from rescueseg.services.dask_cluster import open_cluster, reference, slurm_cluster
from rescueseg.services.dask_credentials import temporary_credentials


def test_a_local_cluster_runs_processes_with_one_thread() -> None:
    with open_cluster(ClusterConfig(workers=1)) as client:
        assert client.submit(os.getpid).result() != os.getpid()
        assert client.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert set(client.nthreads().values()) == {1}


def test_workers_that_are_slow_to_end_do_not_undo_what_was_computed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed = LocalCluster.close

    def slow(cluster: LocalCluster, *args: Any) -> None:
        closed(cluster, *args)
        raise TimeoutError("nanny")

    monkeypatch.setattr(LocalCluster, "close", slow)
    with open_cluster(ClusterConfig(workers=1)) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    assert "too long to close" in caplog.text


def test_an_address_is_used_and_left_running() -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with open_cluster(ClusterConfig(kind="address", address=cluster.scheduler_address)) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        assert cluster.status.name == "running"


def test_an_address_must_be_given() -> None:
    with pytest.raises(ConfigError, match="no scheduler address"), open_cluster(ClusterConfig(kind="address")):
        pass


def job_script(**settings: Any) -> str:
    """Return the script that Slurm would get; it is rendered without Slurm."""
    pytest.importorskip("dask_jobqueue")
    with temporary_credentials() as folder:
        cluster = slurm_cluster(ClusterConfig(kind="slurm", **settings), folder)
        try:
            return str(cluster.job_script()).replace(str(folder), "FOLDER")
        finally:
            cluster.close()


def test_the_slurm_job_asks_for_what_the_config_says() -> None:
    script = job_script(queue="gpu-short", memory="12GiB", walltime="01:30:00", threads_per_worker=3)
    assert "#SBATCH -p gpu-short" in script
    assert "#SBATCH -t 01:30:00" in script
    assert "#SBATCH --cpus-per-task=3" in script
    assert "#SBATCH --mem=12" in script
    assert "export OMP_NUM_THREADS=3" in script
    assert "export DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY=FOLDER/key.pem" in script
    assert "--protocol tls" in script
    assert "gpu:" not in script
    assert "#SBATCH -A" not in script


def test_the_slurm_job_asks_for_gpus_an_account_and_whatever_else_a_cluster_wants() -> None:
    directives = ("--constraint=a100", "--qos=short", "--mail-user=a name@example.org")
    script = job_script(queue="gpu", account="imaging", gpus=1, directives=directives)
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for asked in ("-p gpu", "-A imaging", "--gres=gpu:1", *directives):
        assert f"#SBATCH {asked}" in lines
    code = [i for i, line in enumerate(script.splitlines()) if line and not line.startswith("#")]
    assert max(i for i, line in enumerate(script.splitlines()) if line.startswith("#SBATCH")) < code[0]
    assert "#SBATCH --gres=gpu:4" in job_script(gpus=4)


def test_directives_of_the_site_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    with dask.config.set({"jobqueue.slurm.job-extra-directives": ["--export=NONE"]}):
        script = job_script(gpus=1)
    assert "#SBATCH --export=NONE" in script
    assert "#SBATCH --gres=gpu:1" in script


@pytest.mark.parametrize("directives", [("--gres=gpu:a100:2",), ("--gpus=1",), ("--gpus-per-node=2",), ("-G 1",)])
def test_gpus_are_asked_for_in_one_place(directives: tuple[str, ...]) -> None:
    assert directives[0] in job_script(directives=directives)
    with pytest.raises(ValidationError, match="say the same twice"):
        ClusterConfig(kind="slurm", gpus=1, directives=directives)


@pytest.mark.parametrize("directive", ["constraint=a100", "", "--qos=a\ntouch /tmp/x"])
def test_a_directive_is_one_option(directive: str) -> None:
    with pytest.raises(ValidationError, match="is no option of sbatch"):
        ClusterConfig(kind="slurm", directives=(directive,))


@pytest.mark.parametrize(("kind", "package"), [("slurm", "dask_jobqueue"), ("cuda", "dask_cuda")])
def test_a_missing_package_is_named(kind: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"not installed.*pip install"), open_cluster(ClusterConfig(kind=kind)):
        pass


def test_a_scheduler_of_this_machine_without_tls_is_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with LocalCluster(n_workers=1, processes=False, protocol="tcp://", dashboard_address=None) as cluster:
        config = ClusterConfig(kind="address", address=cluster.scheduler_address)
        with open_cluster(config) as client:
            assert client.submit(sum, [1, 2]).result() == 3
    assert "works without TLS: every user of this machine can run programs" in caplog.text


def test_gpu_workers_are_one_per_gpu_and_are_closed_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in for dask-cuda, which hands what it does not know itself to Dask's own LocalCluster, as this does."""
    package, utils = types.ModuleType("dask_cuda"), types.ModuleType("dask_cuda.utils")
    package.LocalCUDACluster = LocalCluster  # type: ignore[attr-defined]
    utils.get_n_gpus = lambda: 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", package)
    monkeypatch.setitem(sys.modules, "dask_cuda.utils", utils)
    with open_cluster(ClusterConfig(kind="cuda", workers=3)) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert "GPU workers: 1, one for each GPU, not 3" in caplog.text
        workers = client.scheduler_info()["workers"]
        assert len(workers) == 1
        addresses = [client.scheduler.address, *workers, *(w["nanny"] for w in workers.values())]
        assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
        assert all(w["local_directory"].startswith(reference(client).tls_folder) for w in workers.values())
