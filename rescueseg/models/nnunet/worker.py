"""The process of one training: ``python -m rescueseg.models.nnunet.worker``, a job on the first line of its input.

It prints its progress as lines of JSON, and ends when its input does: with the process that started it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, TrainingConfig
from rescueseg.errors import RescuesegError, storage_errors
from rescueseg.models import checkpoints
from rescueseg.models.ensemble_training import earlier_plan, earlier_weights
from rescueseg.models.files import model_errors
from rescueseg.models.nnunet.dataset import Dataset, write_dataset
from rescueseg.models.nnunet.folds import choose_folds
from rescueseg.models.nnunet.loop import CampaignTrainer, Report
from rescueseg.models.nnunet.network import load_weights, own_weights
from rescueseg.models.nnunet.plan import DATASET, FORMAT, NAME, PROFILES, Job, NnUNetPlan
from rescueseg.models.nnunet.planner import PLANS, plan_dataset
from rescueseg.models.nnunet.ranks import watch
from rescueseg.models.nnunet.settings import NnUNetSettings
from rescueseg.models.threads import set_threads
from rescueseg.models.trainer import check_gpus, ignore_progress, unlabelled_warnings
from rescueseg.models.weights import join_members
from rescueseg.storage import Storage, write_atomically


class ChannelHandler(logging.Handler):
    """Hands warnings to the process that started this one: what is logged here ends in a file that few people read.

    Parameters
    ----------
    channel : TextIO
        Of this process's progress.
    """

    def __init__(self, channel: TextIO) -> None:
        super().__init__(logging.WARNING)
        self.channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a warning over."""
        print(json.dumps({"warning": record.getMessage()}), file=self.channel)


def main() -> int:
    """Run the job; an error that names its remedy is printed as JSON."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nnU-Net prints: that belongs in the log
    job = Job.model_validate_json(sys.stdin.readline())
    logging.getLogger("rescueseg").addHandler(ChannelHandler(channel))
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        with storage_errors(job.work_dir), _folder_lock(Path(job.work_dir), channel):
            run(job, channel)
    except RescuesegError as error:
        print(json.dumps({"error": [type(error).__name__, error.what, error.where, error.todo]}), file=channel)
        return 1
    return 0


def _end_with_input() -> None:
    while os.read(0, 1):  # past Python's buffer, whose lock a forked child would inherit
        pass
    os._exit(1)


@contextmanager
def _folder_lock(folder: Path, channel: TextIO) -> Iterator[None]:
    """Wait until no other training works in a folder, and say so: one whose parent was killed may take a moment to end."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(json.dumps({"waiting": f"another training in {folder}"}), file=channel)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(job: Job, channel: TextIO) -> None:
    """Write the dataset, plan, train, and commit the model as the last act."""
    start_time = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"=== {start_time}: training {job.identity}, process {os.getpid()}", file=sys.stderr, flush=True)
    write_atomically(Path(job.work_dir, "job.json"), job.model_dump_json(indent=1).encode())
    config = CampaignConfig.model_validate(job.config)
    volumes, training = VolumeFolder(Storage(job.campaign_url)), config.training
    set_threads(training.threads)
    shutil.rmtree(job.folder, ignore_errors=True)  # what an earlier run left there would be unpickled
    raw, preprocessed = (Path(str(folder), DATASET) for folder in (nnUNet_raw, nnUNet_preprocessed))
    preprocessed.mkdir(parents=True)
    dataset = write_dataset(volumes, job.snapshot, job.spacing_um_zyx, raw)
    warnings = unlabelled_warnings(config.classes, dataset.unlabelled_classes)
    folder = Path(job.warm_start) if job.warm_start else None
    found = earlier_plan(folder, NnUNetPlan)
    plan, reason = plan_dataset(job, training, found[0] if found else None, preprocessed)
    check_gpus(training.gpus, job.device, torch.cuda.device_count(), plan.batch_size)
    start = None if reason else folder
    folds = choose_folds(dataset.cases, training.members, volumes.shared_places())
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    trainers, seconds = [], 0.0
    for member in range(training.members):
        trainers.append(_train(job, training, start, member, bool(folds), channel))
        seconds += trainers[-1].seconds  # now: the clock of a network does not stop while the next one trains
    _export(job, plan, dataset, [*warnings, *([reason] if reason else [])], trainers, seconds)
    shutil.rmtree(job.folder)


def _train(
    job: Job, config: TrainingConfig, start: Path | None, member: int, folded: bool, channel: TextIO
) -> CampaignTrainer:
    """Train a network, from the model in `start` if one is named.

    On several GPUs this process is the first of nnU-Net's DDP, and the others are started here.
    """

    def report(step: int, metrics: Mapping[str, float]) -> None:
        first = member * (config.iterations or PROFILES[config.profile].iterations)
        print(json.dumps({"step": first + step, "metrics": dict(metrics)}), file=channel)

    weights = earlier_weights(start, member)
    if config.gpus == 1:
        return _fit(job, config, member, folded, weights, report)
    shared = (job, config, member, folded, weights)
    others = start_processes(_other_rank, shared, config.gpus - 1, join=False)  # type: ignore[no-untyped-call]

    def stop(message: str) -> None:
        print(json.dumps({"error": _lost_rank(job, message)}), file=channel)
        os._exit(1)  # the training here may wait for the lost process for ever

    watcher = watch(others, stop)
    _join_ranks(job, config, member, 0)
    trainer = _fit(*shared, report)
    watcher.join()
    torch.distributed.destroy_process_group()
    return trainer


def _lost_rank(job: Job, message: str) -> list[str]:
    return [
        "TrainingError",
        f"a process of nnU-Net's DDP ended: {message}",
        job.work_dir,
        "Read nnunet.log there, and run again: the last checkpoint is kept",
    ]


def _other_rank(
    index: int, job: Job, config: TrainingConfig, member: int, folded: bool, weights: dict[str, Tensor] | None
) -> None:
    _join_ranks(job, config, member, index + 1)
    _fit(job, config, member, folded, weights, ignore_progress)
    torch.distributed.destroy_process_group()


def _join_ranks(job: Job, config: TrainingConfig, member: int, rank: int) -> None:
    torch.cuda.set_device(rank)
    url = f"file://{job.folder / f'ranks{member}'}"
    torch.distributed.init_process_group("nccl", init_method=url, rank=rank, world_size=config.gpus)


def _fit(
    job: Job, config: TrainingConfig, member: int, folded: bool, weights: dict[str, Tensor] | None, report: Report
) -> CampaignTrainer:
    """Run nnU-Net's training loop over the preprocessed dataset: all of it, or a fold."""
    folder, device = Path(str(nnUNet_preprocessed), DATASET), torch.device(job.device)
    if device.type == "cpu":
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  # augmented here, in order, whatever the clock says
    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False}
    description = json.loads((folder / "dataset.json").read_text())
    fold = member if folded else "all"
    trainer = CampaignTrainer(plans, NnUNetSettings.of(config).configuration, fold, description, device)
    trainer.prepare(job, config, member, report)
    trainer.initialize()
    if weights is not None:
        with model_errors(str(job.warm_start)):
            load_weights(trainer.bare_network, weights)
    trainer.run_training()
    return trainer


def _export(
    job: Job,
    plan: NnUNetPlan,
    dataset: Dataset,
    warnings: list[str],
    trainers: Sequence[CampaignTrainer],
    seconds: float,
) -> None:
    """Commit the finished model."""
    description = checkpoints.describe_model(
        trainer=NAME,
        number=FORMAT,
        request=job.identity,
        plan=plan.to_json(),
        classes=job.config["classes"],
        seed=job.seed,
        snapshot=job.snapshot,
        warnings=warnings,
    )
    log = {
        "seconds": seconds,
        "losses": [entry for trainer in trainers for entry in trainer.history],
        "notes": sorted({trainer.note for trainer in trainers if trainer.note}),
    }
    weights = join_members([own_weights(trainer.bare_network) for trainer in trainers])
    checkpoints.export_model(Path(job.work_dir), weights, description | {"cases": len(dataset.cases)}, log)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # what torch and its threads would still tidy up takes seconds
