"""The only module that builds Dask clusters: local processes, an address, CUDA, Slurm. They speak TLS.

Whoever reaches a scheduler, a worker or its nanny without credentials runs nothing there; see
`rescueseg.services.dask_credentials`.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Security
from distributed.utils import get_ip

from rescueseg.config import ClusterConfig
from rescueseg.errors import ConfigError, ServiceError
from rescueseg.services.dask_address import check_address, is_unprotected
from rescueseg.services.dask_credentials import credential_settings, read_credentials, temporary_credentials

CONNECT_SECONDS = 60
_LOG = logging.getLogger(__name__)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(128 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}
_BLOCKS_AT_A_TIME = 3
"""Blocks of a GPU's worker: one that is read, one that is computed, one that is written."""
_PROTOCOL = "tls://"
_NO_PAGES = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
"""Dask's scheduler cannot go without a web server: this one shows no tasks, no logs and no call stacks to other users."""
_SCRATCH = "DASK_TEMPORARY_DIRECTORY"


def worker_environment(config: ClusterConfig) -> dict[str, str]:
    """Return the environment of a worker: threads times processes stay within the cores, and freed memory is reused.

    Dask's default returns every freed array to the system at once; a convolution then spends half its time on page
    faults.
    """
    return dict.fromkeys(_THREADS, str(config.threads_per_worker)) | _MALLOC


@contextmanager
def open_cluster(config: ClusterConfig, shared: Path | None = None) -> Iterator[Client]:
    """Open the cluster that a campaign names, and close what was started for it.

    What is started here gets credentials of its own, which are removed when it is closed.

    Parameters
    ----------
    config : ClusterConfig
        ``local`` starts worker processes here, ``address`` connects to a scheduler that runs already, ``cuda`` starts
        a worker per GPU (dask-cuda), ``slurm`` submits worker jobs (dask-jobqueue).
    shared : Path, optional
        A folder that all nodes see, for the credentials of ``slurm``.

    Yields
    ------
    distributed.Client
        Connected; closed on leaving, with the cluster when it was started here.

    Raises
    ------
    ConfigError
        If the kind needs a package that is not installed, or an address that is not given or not safe to speak to.
    ServiceError
        If the scheduler does not answer.
    """
    if config.kind == "address":
        with _client(config.address, _security_of(config)) as client:
            yield client
        return
    with temporary_credentials(shared if config.kind == "slurm" else None) as folder:
        cluster = _start(config, folder)
        try:
            with _client(cluster, read_credentials(folder)) as client:
                yield client
        finally:
            try:
                cluster.close()
            except TimeoutError as error:
                # on a busy machine; the results are safe, and the workers end with this process
                _LOG.warning("The Dask cluster took too long to close: %s", error)


def reference(client: Client) -> ClusterConfig:
    """Return how other processes of this user reach the client's scheduler: its address, and where its credentials lie."""
    credentials = client.security.tls_ca_file
    return ClusterConfig(
        kind="address",
        address=str(client.scheduler_info(n_workers=0)["address"]),
        tls_folder=str(Path(credentials).parent) if credentials else "",
    )


def _security_of(config: ClusterConfig) -> Security | None:
    check_address(config)
    if is_unprotected(config):
        _LOG.warning(
            "The Dask scheduler at %s works without TLS: every user of this machine can run programs as its owner",
            config.address,
        )
    return read_credentials(Path(config.tls_folder)) if config.address.startswith(_PROTOCOL) else None


@contextmanager
def _client(target: Any, security: Security | None) -> Iterator[Client]:
    try:
        client = Client(target, timeout=CONNECT_SECONDS, security=security)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ServiceError(
            "the Dask scheduler does not answer",
            where=str(target),
            todo="Start it, or mend cluster.address and cluster.tls_folder",
        ) from error
    try:
        yield client
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _start(config: ClusterConfig, folder: Path) -> Any:
    before_spawning = "distributed.nanny.pre-spawn-environ"
    settings = {
        before_spawning: {**dask.config.get(before_spawning), **worker_environment(config)},
        "distributed.scheduler.http.routes": ["distributed.http.health"],
    }
    with dask.config.set(settings):
        return {"slurm": _slurm, "cuda": _cuda, "local": _local}[config.kind](config, folder)


def _here(config: ClusterConfig, folder: Path) -> dict[str, Any]:
    """Return what clusters of this machine have in common: on loopback, encrypted, nothing in a folder of others."""
    return {
        "threads_per_worker": config.threads_per_worker,
        "host": "127.0.0.1",
        "protocol": _PROTOCOL,
        "security": read_credentials(folder),
        "local_directory": str(folder),
        "memory_limit": config.memory,
        "scheduler_kwargs": _NO_PAGES,
    }


def _local(config: ClusterConfig, folder: Path) -> Any:
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=min(config.workers, os.cpu_count() or 1),
        processes=True,
        env=worker_environment(config),
        **_here(config, folder),
    )


def _cuda(config: ClusterConfig, folder: Path) -> Any:
    try:
        from dask_cuda import LocalCUDACluster
        from dask_cuda.utils import get_n_gpus
    except ImportError as error:
        raise ConfigError(
            "dask-cuda is not installed", where="cluster.kind", todo="Run: pip install 'rescueseg[cuda]'"
        ) from error
    workers = min(config.workers, get_n_gpus())  # dask-cuda would let a second worker share a GPU's memory
    if workers < config.workers:
        _LOG.warning("GPU workers: %d, one for each GPU, not %d as in cluster.workers", workers, config.workers)
    threads = max(_BLOCKS_AT_A_TIME, config.threads_per_worker)
    return LocalCUDACluster(n_workers=workers, **{**_here(config, folder), "threads_per_worker": threads})


def _slurm(config: ClusterConfig, folder: Path) -> Any:
    cluster = slurm_cluster(config, folder)
    cluster.scale(jobs=config.workers)
    return cluster


def slurm_cluster(config: ClusterConfig, folder: Path) -> Any:
    """Return the Slurm cluster of a config, without any job submitted; ``job_script()`` shows what one would be.

    The scheduler listens at the one address that is told to the jobs. These find the credentials in the folder, whose
    path they get in their environment.

    Parameters
    ----------
    config : ClusterConfig
        Its partition, account, GPUs, memory, walltime and directives are asked for.
    folder : Path
        The credentials, where all nodes see them.

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
    where = {} if dask.config.get("jobqueue.slurm.interface") else {"host": get_ip()}  # type: ignore[no-untyped-call]
    tls = credential_settings(folder)
    environment = worker_environment(config) | {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value) for key, value in tls.items()
    }
    with dask.config.set(tls):  # by name, not as an object: dask-jobqueue would write paths into the job unquoted
        return SLURMCluster(
            queue=config.queue or None,
            cores=config.threads_per_worker,
            processes=1,
            memory=config.memory,
            walltime=config.walltime,
            account=config.account or None,
            job_extra_directives=[
                *dask.config.get("jobqueue.slurm.job-extra-directives"),
                *([f"--gres=gpu:{config.gpus}"] if config.gpus else []),
                *config.directives,
            ],
            protocol=_PROTOCOL,
            job_script_prologue=[
                *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
                f'export {_SCRATCH}="$(mktemp --directory)"',
                f"trap 'rm --recursive --force \"${_SCRATCH}\"' EXIT",
            ],
            worker_extra_args=[
                *dask.config.get("jobqueue.slurm.worker-extra-args"),
                *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
            ],
            scheduler_options=_NO_PAGES | where,
        )
