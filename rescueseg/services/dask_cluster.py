"""The only module that builds Dask clusters: local processes, an address, CUDA, Slurm."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster

from rescueseg.config import ClusterConfig
from rescueseg.errors import ConfigError, ServiceError

CONNECT_SECONDS = 60
_LOG = logging.getLogger(__name__)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


def worker_environment(config: ClusterConfig) -> dict[str, str]:
    """Return the environment of a worker: threads times processes stay within the cores, and freed memory is reused.

    Dask's default returns every freed array to the system at once; a convolution then spends half its time on page
    faults.
    """
    return dict.fromkeys(_THREADS, str(config.threads_per_worker)) | _MALLOC


@contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Client]:
    """Open the cluster that a campaign names, and close what was started for it.

    Parameters
    ----------
    config : ClusterConfig
        ``local`` starts worker processes here, ``address`` connects to a scheduler that runs already, ``cuda`` starts
        a worker per GPU (dask-cuda), ``slurm`` submits worker jobs (dask-jobqueue).

    Yields
    ------
    distributed.Client
        Connected; closed on leaving, with the cluster when it was started here.

    Raises
    ------
    ConfigError
        If the kind needs a package that is not installed, or an address that is not given.
    ServiceError
        If the scheduler does not answer.
    """
    if config.kind == "address":
        if not config.address:
            raise ConfigError(
                "no scheduler address", where="cluster.address", todo="Set it, e.g. 'tcp://scheduler:8786'"
            )
        with _client(config.address) as client:
            yield client
        return
    cluster = _start(config)
    try:
        with _client(cluster) as client:
            yield client
    finally:
        try:
            cluster.close()
        except TimeoutError as error:
            # on a busy machine; the results are safe, and the workers end with this process
            _LOG.warning("The Dask cluster took too long to close: %s", error)


def scheduler_address(client: Client) -> str:
    """Return the address under which other processes reach the client's scheduler."""
    return str(client.scheduler_info(n_workers=0)["address"])


@contextmanager
def _client(target: Any) -> Iterator[Client]:
    try:
        client = Client(target, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ServiceError(
            "the Dask scheduler does not answer", where=str(target), todo="Start it, or mend cluster.address"
        ) from error
    try:
        yield client
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _start(config: ClusterConfig) -> Any:
    before_spawning = "distributed.nanny.pre-spawn-environ"
    with dask.config.set({before_spawning: {**dask.config.get(before_spawning), **worker_environment(config)}}):
        return {"slurm": _slurm, "cuda": _cuda, "local": _local}[config.kind](config)


def _local(config: ClusterConfig) -> Any:
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=min(config.workers, os.cpu_count() or 1),
        threads_per_worker=config.threads_per_worker,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=config.memory,
        env=worker_environment(config),
    )


def _cuda(config: ClusterConfig) -> Any:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise ConfigError(
            "dask-cuda is not installed", where="cluster.kind", todo="Run: pip install 'rescueseg[cuda]'"
        ) from error
    return LocalCUDACluster(
        n_workers=config.workers,
        threads_per_worker=config.threads_per_worker,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=config.memory,
    )


def _slurm(config: ClusterConfig) -> Any:
    cluster = slurm_cluster(config)
    cluster.scale(jobs=config.workers)
    return cluster


def slurm_cluster(config: ClusterConfig) -> Any:
    """Return the Slurm cluster of a config, without any job submitted; ``job_script()`` shows what one would be.

    Raises
    ------
    ConfigError
        If dask-jobqueue is not installed.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise ConfigError(
            "dask-jobqueue is not installed", where="cluster.kind", todo="Run: pip install 'rescueseg[slurm]'"
        ) from error
    exports = [f"export {name}={value}" for name, value in worker_environment(config).items()]
    return SLURMCluster(
        queue=config.queue or None,
        cores=config.threads_per_worker,
        processes=1,
        memory=config.memory,
        walltime=config.walltime,
        job_script_prologue=exports,
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
    )
