"""The trainer: starts nnU-Net in a process of its own and watches it. Imports neither torch nor nnU-Net."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from rescueseg import errors
from rescueseg.config import InferenceConfig
from rescueseg.errors import RescuesegError, TrainingError, storage_errors
from rescueseg.models.files import read_trained_model, read_warm_start
from rescueseg.models.nnunet import predictor
from rescueseg.models.nnunet.plan import FORMAT, NAME, Job
from rescueseg.models.nnunet.settings import NnUNetSettings
from rescueseg.models.predictor import Predictor
from rescueseg.models.survey import survey_snapshot
from rescueseg.models.trainer import (
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
    check_gpus,
    check_request,
)
from rescueseg.progress import StepProgress
from rescueseg.records import ModelReference
from rescueseg.storage import Storage, digest_json

_log = logging.getLogger(__name__)

LOG_FILE = "nnunet.log"
_IDENTITY_SETTINGS = {
    *("profile", "iterations", "batch_size", "learning_rate", "window_zyx", "dropout", "members"),
    *("checkpoint_every", "gpus"),
}
"""Shared settings that decide the weights, beside the working spacing."""
_COMPILE_VARIABLE = "nnUNet_compile"
"""Whether nnU-Net compiles on a GPU: the one of its variables that the worker inherits."""


class NnUNetTrainer:
    """Trains nnU-Net v2; see `rescueseg.models.nnunet`."""

    name = NAME
    capabilities = TrainerCapabilities(partial_labels=True, several_gpus=True, exact_on=("cpu",))
    settings = NnUNetSettings
    ignored: ClassVar[Mapping[str, str]] = {}

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit `work_dir/model` as the last act.

        Parameters
        ----------
        request : TrainingRequest
            With `config.training` as settings.
        progress : callable
            Gets each step (from 1) with its `loss` and `learning_rate`, and the last of an epoch with the
            `pseudo_dice` too: nnU-Net's running estimate, here over windows of the training cases. After a kill it
            starts again behind the last checkpoint.

        Returns
        -------
        TrainedModel
            On a CPU the same digest for the same request, whatever happened in between.

        Raises
        ------
        TrainingError
            If no voxel is labelled, the loss is no longer a number, there is no model to start from, or nnU-Net fails;
            its log lies in the work folder.
        LeakError
            If the snapshot reads from a holdout box.
        StorageError
            If a label array is damaged, or the disk is full; the last checkpoint stays.
        """
        check_request(self, request)
        _check_gpus(request)
        job = _make_job(request)
        model = read_trained_model(request.work_dir, job.identity)
        if model is not None:
            return model
        _run_worker(job, progress)
        model = read_trained_model(request.work_dir, job.identity)
        assert model is not None
        return model


def _check_gpus(request: TrainingRequest) -> None:
    config = request.config.training
    if config.gpus > 1:
        check_gpus(config.gpus, request.device, torch.cuda.device_count(), config.batch_size)


def _make_job(request: TrainingRequest) -> Job:
    """Return what the worker needs, with the identity of the training: the digest of all that its weights depend on."""
    config = request.config
    survey = survey_snapshot(config, request.volumes, request.snapshot)
    earlier = read_warm_start(request.warm_start)
    own = NnUNetSettings.of(config.training).flat()
    training = config.training.model_dump(mode="json", include=_IDENTITY_SETTINGS) | own
    identity = {
        "format": FORMAT,
        "training": training,
        "snapshot": request.snapshot.digest,
        "seed": request.seed,
        "warm_start": earlier.digest if earlier else "",
        "spacing": survey.spacing_um_zyx,
    }
    return Job(
        identity=digest_json(identity),
        campaign_url=request.volumes.url,
        config=config.model_dump(mode="json"),
        snapshot=request.snapshot,
        work_dir=str(request.work_dir),
        seed=request.seed,
        device=request.device,
        warm_start=str(request.warm_start) if request.warm_start else None,
        spacing_um_zyx=survey.spacing_um_zyx,
        in_channels=survey.in_channels,
        volume_zyx=survey.volume_zyx,
        field_zyx=survey.field_zyx,
    )


def _run_worker(job: Job, progress: StepProgress) -> None:
    """Run the worker to its end; it ends with this process, or when `progress` raises."""
    folder = Path(job.work_dir)
    log = folder / LOG_FILE
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        storage_errors(str(log)),
        log.open("ab") as file,  # of another process that works here too: each adds a line that says which it is
        subprocess.Popen(
            [sys.executable, "-m", "rescueseg.models.nnunet.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=_environment(job),
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        error: RescuesegError | None = None
        try:
            process.stdin.write(job.model_dump_json() + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = json.loads(line)
                if "error" in message:
                    kind, what, where, todo = message["error"]
                    error = getattr(errors, kind)(what, where=where, todo=todo)
                elif "waiting" in message:
                    _log.warning("waiting for %s", message["waiting"])
                elif "warning" in message:
                    _log.warning("%s", message["warning"])
                else:
                    progress(message["step"], message["metrics"])
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    if error is not None:
        raise error
    if code < 0:
        raise TrainingError(
            f"nnU-Net's process was killed by {signal.Signals(-code).name}",
            where=str(log),
            todo="Look whether the machine ran out of memory, and run again: the last checkpoint is kept",
        )
    if code > 0:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise TrainingError(
            f"nnU-Net failed: {lines[-1] if lines else f'its process ended with {code}'}",
            where=str(log),
            todo="Read the log, and run again: the last checkpoint is kept",
        )


def _environment(job: Job) -> dict[str, str]:
    """Return the worker's environment: nnU-Net's folders are this job's, whatever is set here."""
    threads = str(job.config["training"]["threads"])
    ours = {f"nnUNet_{name}": str(job.folder / name) for name in ("raw", "preprocessed", "results")}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_") or k == _COMPILE_VARIABLE}
    return inherited | ours | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "agg"}


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> Predictor:
    """Load a finished model of a campaign; nothing is unpickled, and nnU-Net is not imported.

    Raises
    ------
    InferenceError
        If the files are not those that the reference's digest names.
    """
    return predictor.load_predictor(storage, model, config, device)
