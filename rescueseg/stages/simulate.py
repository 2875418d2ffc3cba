"""A benchmark of query strategies: which trainings it takes, and running them; see `rescueseg.simulation.protocol`.

Whatever is done is kept: a row for each training in the file of rows, and beside that, in the campaign of a regime and a seed, the
models and what was annotated for each. A rerun does what is missing, and a kill loses at most the training that ran.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.layout import TRAINING
from rescueseg.campaign.outside_trainings import RESULT, OutsideResult
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.models.registry import get_trainer
from rescueseg.models.threads import set_threads
from rescueseg.progress import Progress
from rescueseg.records import AcceptedAnnotation, Record
from rescueseg.simulation.annotated_volume import AnnotatedVolume
from rescueseg.simulation.protocol import (
    START,
    Arm,
    Setting,
    arms,
    check_rows,
    check_strategies,
    due,
    loops_of,
    seconds_each,
)
from rescueseg.simulation.rows import SimulationRow, read_rows
from rescueseg.stages.simulated_arms import CampaignRun, Clock, Say, processor_seconds
from rescueseg.stages.simulated_campaign import ANNOTATIONS, annotate, campaign_settings, locked, open_or_make, place_of
from rescueseg.stages.train import training_request, with_changes
from rescueseg.stages.trial import MEASURED_STEPS, steps_within
from rescueseg.storage import Storage


class MeasuredSteps(Record):
    """How many steps fit into the processor time of a training, measured once, so that all trainings take equally many."""

    trainer: str
    cpu_seconds: float
    iterations: int


STEPS = RecordFile("steps", MeasuredSteps)
"""In the folder of a data set."""


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Parameters
    ----------
    trainings : int
        Still to be run.
    rows : int
        That there are in the end.
    steps : int or None
        Of every training; None where they are measured before the first.
    seconds : float or None
        Processor time of a training; None where nobody knows it before the first.
    """

    trainings: int
    rows: int
    steps: int | None
    seconds: float | None

    @property
    def cpu_hours(self) -> float | None:
        """Processor time of all that are still to be run, without their predictions."""
        return None if self.seconds is None else self.trainings * self.seconds / 3600


def plan_setting(setting: Setting, volume: AnnotatedVolume, folder: Path, rows: Path) -> Plan:
    """Return what `run_setting` would do; nothing is written. Parameters as there.

    Raises
    ------
    ConfigError
        If there is no such strategy or trainer, or a setting is not valid.
    EvaluationError
        If there are rows of another trainer or other steps.
    StorageError
        If the file of rows is damaged.
    """
    check_strategies(setting.strategies)
    campaign_settings(setting, setting.regimes[0], setting.seeds[0], volume)
    known = read_rows(rows)
    steps = check_rows(setting, known)
    count = sum(1 for arm in arms(setting) for _ in loops_of(arm.setting, arm.strategy))
    return Plan(len(_due(setting, known, folder)), count, steps, seconds_each(setting, known))


def _due(setting: Setting, rows: Sequence[SimulationRow], folder: Path) -> list[tuple[Arm, int]]:
    def holds(
        arm: Arm, name: str, file: RecordFile[OutsideResult] | RecordFile[tuple[AcceptedAnnotation, ...]]
    ) -> bool:
        place = place_of(folder, setting, arm.regime, arm.seed)
        return (place / "campaign" / file.path(TRAINING.path(training=name))).exists()

    return due(
        setting, rows, lambda arm, name: holds(arm, name, RESULT), lambda arm, name: holds(arm, name, ANNOTATIONS)
    )


def run_setting(
    setting: Setting,
    volume: AnnotatedVolume,
    folder: Path,
    rows: Path,
    say: Say = print,
    progress: Progress | None = None,
) -> None:
    """Run what is missing of a benchmark, on one thread: another process may run other seeds at the same time.

    Parameters
    ----------
    setting : Setting
        The benchmark.
    volume : AnnotatedVolume
        What it runs on; the crop of the setting is made already.
    folder : Path
        Gets a campaign for each regime and seed.
    rows : Path
        File of rows; see `rescueseg.simulation.rows`.
    say : callable
        Gets a line for each row, with what is left.
    progress : callable, optional
        Called with a training's name, its steps done and its steps in all.

    Raises
    ------
    ConfigError
        If there is no such strategy or trainer, or a setting is not valid.
    EvaluationError
        If there are rows or campaigns of another setting, or another process works on a regime and seed.
    SamplingError
        If the volume has too little room.
    RescuesegError
        As a training and a prediction.
    """
    check_strategies(setting.strategies)
    known = read_rows(rows)
    check_rows(setting, known)
    set_threads(1)
    clock = Clock(len(_due(setting, known, folder)))
    for (seed, regime), group in groupby(arms(setting), key=lambda arm: (arm.seed, arm.regime)):
        strategies = list(group)
        place = place_of(folder, setting, regime, seed)
        with locked(place.parent / f"{place.name}.lock"):
            keys = {row.key for row in read_rows(rows)}
            if all(arm.key(loop) in keys for arm in strategies for loop in loops_of(arm.setting, arm.strategy)):
                continue
            campaign = open_or_make(place, setting, regime, seed, volume)
            steps = _frozen_steps(setting, campaign, _annotated_start(campaign), folder, read_rows(rows))
            run = CampaignRun(campaign, steps, rows, clock, say, progress)
            for arm in strategies:
                run.arm(arm)
            run.forget_maps(START)


def _annotated_start(campaign: Campaign) -> tuple[AcceptedAnnotation, ...]:
    """Return the annotations of the starting patches, which are drawn from nothing."""
    start = campaign.training(START)
    done = start.read(ANNOTATIONS)
    if done is None:
        patches = campaign.starting_patches() or []
        done = annotate(campaign, 0, patches, [None] * len(patches))
        start.write(ANNOTATIONS, done)
    return done


def _frozen_steps(
    setting: Setting,
    campaign: Campaign,
    start: Sequence[AcceptedAnnotation],
    folder: Path,
    rows: Sequence[SimulationRow],
) -> int:
    """Return the steps of every training: those asked for, those of the rows there are, or measured once and kept."""
    if (steps := check_rows(setting, rows)) is not None:
        return steps
    kept = RecordFolder(Storage(str(folder / setting.dataset)))
    with locked(folder / setting.dataset / "steps.lock", wait=True):
        measured, wanted = kept.read(STEPS), (setting.trainer, setting.cpu_seconds)
        if measured is None or (measured.trainer, measured.cpu_seconds) != wanted:
            steps = _measured_steps(setting, campaign, start)
            measured = MeasuredSteps(trainer=setting.trainer, cpu_seconds=setting.cpu_seconds, iterations=steps)
            kept.write(STEPS, measured)
    return measured.iterations


def _measured_steps(setting: Setting, campaign: Campaign, accepted: Sequence[AcceptedAnnotation]) -> int:
    """Return how many steps take the processor time asked for, by a short training on the starting patches."""
    folder = campaign.training(START)
    work, times = folder.work_folder() / "speed", list[float]()
    shutil.rmtree(work, ignore_errors=True)
    snapshot = make_snapshot(campaign, 0, accepted)
    config = with_changes(campaign.config, {"iterations": MEASURED_STEPS, "members": 1})
    request, _ = training_request(campaign, snapshot, setting.trainer, 0, work, config)
    get_trainer(setting.trainer).train(request, lambda _step, _metrics: times.append(processor_seconds()))
    shutil.rmtree(work, ignore_errors=True)
    return steps_within(times, setting.cpu_seconds, campaign.config.training.members)
