"""Clusters: threads of the workers, an address, the Slurm job script, clear errors."""

from __future__ import annotations

import builtins
import os
from typing import Any

import pytest
from distributed import LocalCluster

from rescueseg.config import ClusterConfig
from rescueseg.errors import ConfigError
from rescueseg.services.dask_cluster import open_cluster, slurm_cluster


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


def test_the_slurm_job_asks_for_what_the_config_says() -> None:
    pytest.importorskip("dask_jobqueue")
    config = ClusterConfig(kind="slurm", queue="gpu-short", memory="12GiB", walltime="01:30:00", threads_per_worker=3)
    cluster = slurm_cluster(config)
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    assert "#SBATCH -p gpu-short" in script
    assert "#SBATCH -t 01:30:00" in script
    assert "#SBATCH --cpus-per-task=3" in script
    assert "#SBATCH --mem=12" in script
    assert "export OMP_NUM_THREADS=3" in script


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
