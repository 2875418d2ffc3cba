"""The trial of trainers: where nobody named one, the validation boxes choose between the two best of the triage's route.

Both train on the same snapshot, outside the loop: the first as the settings say, the second for as many steps as fit into
the same time, both from scratch. Each predicts the holdout boxes; the score on the validation boxes decides, and the winner's
model is the generation's, so that only the other one's training is an expense. When a trial is held,
`rescueseg.stages.trial_pairing` says.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.outside_trainings import OutsideResult, OutsideTraining
from rescueseg.campaign.stage_results import (
    SNAPSHOT,
    TRAINING,
    TRIAL,
    TRIAL_LENGTH,
    Contestant,
    TrainerTrial,
    TrialLength,
)
from rescueseg.config import CampaignConfig
from rescueseg.delivery.scored_objects import scored_objects
from rescueseg.errors import ConfigError, TrainingError
from rescueseg.evaluation.comparison import Difference, compare_generations
from rescueseg.evaluation.intervals import Interval
from rescueseg.evaluation.metric_table import METRICS, Metric
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.threshold_baseline import threshold_baseline
from rescueseg.evaluation.training_scores import current_training_evaluation
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import check_request
from rescueseg.progress import StepProgress
from rescueseg.queue.due import campaign_lock
from rescueseg.queue.store import QueueStore
from rescueseg.records import Snapshot
from rescueseg.stages import train_outside
from rescueseg.stages.publish import run_tracked
from rescueseg.stages.stage import NOTE_EVERY, commit
from rescueseg.stages.train import training_request, with_changes
from rescueseg.stages.trial_pairing import Pairing, pairing

MEASURED_STEPS = 60
"""Of a whole short training, which tells how long a step takes: some losses begin late in a training, and cost more."""
_SETTLING_STEPS = 10
"""The first of them, which take longer."""
LEAST_STEPS = 10
_CHANGES: Mapping[str, JsonValue] = {"warm_start": False}
"""Settings of both contestants: what an earlier model has learned would be time that only one of them had."""


def try_trainers(campaign: Campaign, store: QueueStore, generation: int) -> TrainerTrial | None:
    """Hold the trial that is due before a generation is trained, or go on with it, and commit it.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    generation : int
        Its snapshot must exist. How far the trial is stands among its notes of progress.

    Returns
    -------
    TrainerTrial or None
        None where none is due; see `pairing`. A finished one is not repeated.

    Raises
    ------
    RescuesegError
        As a training, and the evaluation of one.
    """
    folder = campaign.generation(generation)
    if (held := folder.read(TRIAL)) is not None or folder.has(TRAINING):
        return held
    refused = partial(is_refused, campaign, folder.require(SNAPSHOT))
    pair = pairing(campaign, generation, refused=refused, baseline=threshold_baseline)
    if pair is None:
        return None
    started = time.perf_counter()
    first = train_outside.plan(campaign, store, pair.trainers[0], generation, _CHANGES)
    of_first = _train(campaign, store, folder, first)
    try:
        steps = _steps_within(campaign, first, pair.trainers[1], of_first.seconds)
        second = train_outside.plan(campaign, store, pair.trainers[1], generation, {**_CHANGES, "iterations": steps})
        of_second = _train(campaign, store, folder, second)
    except TrainingError as error:
        trial = _walkover(pair, first, of_first, error)
    else:
        evaluations = _evaluation(campaign, folder, first), _evaluation(campaign, folder, second)
        trial = decide(campaign, pair, ((first, of_first), (second, of_second)), evaluations)
    commit(folder, TRIAL, trial, time.perf_counter() - started)
    return trial


def is_refused(campaign: Campaign, snapshot: Snapshot, name: str) -> bool:
    """Tell whether a trainer cannot do what the settings and the annotations of a snapshot ask for."""
    try:
        check_request(
            get_trainer(name), training_request(campaign, snapshot, name, 0, Path(), _trial_config(campaign))[0]
        )
    except (TrainingError, ConfigError):
        return True
    return False


def nothing_annotated(generation: int, n_classes: int) -> Snapshot:
    """Return a snapshot without a patch: with it `is_refused` asks of the settings alone."""
    return Snapshot(generation=generation, items=(), n_classes=n_classes, holdout_digest="", digest="")


def _trial_config(campaign: Campaign, **changes: JsonValue) -> CampaignConfig:
    return with_changes(campaign.config, {**_CHANGES, **changes})


def _train(campaign: Campaign, store: QueueStore, folder: GenerationFolder, training: OutsideTraining) -> OutsideResult:
    """Train one contestant; nobody else trains the same meanwhile."""
    with campaign_lock(campaign.config, store, name=training.name):
        return run_tracked(campaign, training, _noting(folder, f"trial of {training.trainer}: step"))


def _evaluation(campaign: Campaign, folder: GenerationFolder, training: OutsideTraining) -> Evaluation:
    """Score the objects that a delivery of the model would make: only so are models that say objects compared with others."""
    note = partial(folder.note_progress, f"trial of {training.trainer}: holdout box")

    def note_choice(what: str, done: int, total: int) -> None:
        folder.note_progress(f"trial of {training.trainer}: {what}", done, total)

    return current_training_evaluation(campaign, training.name, scored_objects(note_choice), note)


def _steps_within(campaign: Campaign, against: OutsideTraining, name: str, seconds: float) -> int:
    """Return how many steps a trainer takes on this machine in the time of a training, by a short one; measured once."""
    folder = campaign.generation(against.snapshot.generation)
    length = folder.read(TRIAL_LENGTH)
    if length is not None and (length.trainer, length.against) == (name, against.name):
        return length.iterations
    work_dir = folder.work_folder() / "speed"
    shutil.rmtree(work_dir, ignore_errors=True)
    times: list[float] = []
    say = _noting(folder, f"trial of {name}: step to measure its speed")

    def note(step: int, metrics: Mapping[str, float]) -> None:
        times.append(time.monotonic())
        say(step, metrics)

    config = _trial_config(campaign, iterations=MEASURED_STEPS, members=1)
    request, _ = training_request(campaign, against.snapshot, name, 0, work_dir, config)
    get_trainer(name).train(request, note)
    shutil.rmtree(work_dir, ignore_errors=True)
    steps = steps_within(times, seconds, campaign.config.training.members)
    folder.write(TRIAL_LENGTH, TrialLength(trainer=name, against=against.name, iterations=steps))
    return steps


def _noting(folder: GenerationFolder, what: str) -> StepProgress:
    """Return a progress callback that notes every few steps for people."""

    def note(step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG001
        if step % NOTE_EVERY == 0:
            folder.note_progress(what, step, 0)

    return note


def steps_within(times: Sequence[float], seconds: float, networks: int) -> int:
    """Return how many steps each of several networks takes, all of them within some seconds.

    Parameters
    ----------
    times : sequence of float
        When each step of a short training ended, in seconds; the first ones are passed over.
    seconds : float
        For all networks together.
    networks : int
        How many are trained.

    Examples
    --------
    A step of half a second, after a slow beginning:

    >>> steps_within([5.0 + max(0, 10 - i) + i / 2 for i in range(60)], 60.0, 2)
    60
    """
    after = times[_SETTLING_STEPS:]
    each = (after[-1] - after[0]) / (len(after) - 1)
    return max(LEAST_STEPS, round(seconds / max(each, 1e-6) / networks))


def decide(
    campaign: Campaign,
    pair: Pairing,
    trained: Sequence[tuple[OutsideTraining, OutsideResult]],
    evaluations: tuple[Evaluation, Evaluation],
) -> TrainerTrial:
    """Return the trial with its winner: the second only if its score on the validation boxes is higher.

    Parameters
    ----------
    campaign : Campaign
        Objects are compared where it numbers them, else voxels.
    pair : Pairing
        Who was tried, and why.
    trained : sequence of (OutsideTraining, OutsideResult)
        The two trainings.
    evaluations : (Evaluation, Evaluation)
        Of the two models.
    """
    found, metric = _difference(campaign, evaluations)
    scores = (found.first, found.second) if found else (None, None)
    contestants = tuple(
        Contestant(
            trainer=of.trainer, training=of.name, iterations=result.iterations, seconds=result.seconds, score=score
        )
        for (of, result), score in zip(trained, scores, strict=True)
    )
    winner = contestants[int(_or_least(scores[1]) > _or_least(scores[0]))].trainer
    return TrainerTrial(
        route=pair.route,
        occasion=pair.occasion,
        metric=metric.name,
        contestants=contestants,
        trainer=winner,
        reason=_reason(contestants, found.interval if found else None, metric, winner),
    )


def _walkover(pair: Pairing, training: OutsideTraining, result: OutsideResult, error: TrainingError) -> TrainerTrial:
    """Return the trial whose second trainer failed: the first is taken, and nothing was compared."""
    winner, loser = pair.trainers
    first = Contestant(
        trainer=winner, training=training.name, iterations=result.iterations, seconds=result.seconds, score=None
    )
    second = Contestant(trainer=loser, training="", iterations=0, seconds=0.0, score=None, failure=str(error))
    return TrainerTrial(
        route=pair.route,
        occasion=pair.occasion,
        metric="",
        contestants=(first, second),
        trainer=winner,
        reason=f"The training of {loser} failed ({error}); {winner} is taken",
    )


def _difference(campaign: Campaign, evaluations: tuple[Evaluation, Evaluation]) -> tuple[Difference | None, Metric]:
    """Return the score of both models on the validation boxes, and which score it is; None where the boxes say nothing."""
    names = ("pq", "dice") if campaign.config.annotation.labels == "instance" else ("dice",)
    metrics = {metric.name: metric for metric in METRICS}
    if any(evaluation.validation is None for evaluation in evaluations):
        return None, metrics[names[0]]
    differences = compare_generations(*evaluations, "validation", campaign.config.classes)[0].differences
    name = next(name for name in names if name in differences)
    return differences[name], metrics[name]


def _or_least(score: float | None) -> float:
    return -math.inf if score is None else score


def _reason(contestants: Sequence[Contestant], interval: Interval | None, metric: Metric, winner: str) -> str:
    said = [
        f"{c.trainer} {'–' if c.score is None else f'{c.score:.3f}'} ({c.iterations:,} steps in {c.seconds:.0f} s)"
        for c in contestants
    ]
    change = f", 95 % of the difference {interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""
    return f"{metric.label} on the validation boxes: {said[0]}, {said[1]}{change}; {winner} is taken"
