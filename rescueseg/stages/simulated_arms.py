"""One campaign of a benchmark: its trainings, their scores, and what each strategy chooses after them."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from rescueseg.active_learning.candidates import CandidateTable, score_candidates
from rescueseg.active_learning.strategies import STRATEGIES, Loop, needed_maps
from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.outside_trainings import REQUEST, RESULT, OutsideResult, OutsideTraining
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.route import profile_of
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.errors import EvaluationError, SamplingError, damaged
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.training_scores import TRAINING_EVALUATION, evaluate_training
from rescueseg.geometry import Box
from rescueseg.inference.box_maps import predicted_box_maps
from rescueseg.inference.engine import InferenceJob, infer
from rescueseg.inference.maps import OBJECT_DISAGREEMENT, VolumeMaps
from rescueseg.labels import most_likely
from rescueseg.models.predictor import PROBABILITY
from rescueseg.models.registry import get_trainer
from rescueseg.postprocessing.clean import clean
from rescueseg.progress import Progress
from rescueseg.randomness import keyed_generator
from rescueseg.records import AcceptedAnnotation, ModelReference, Part, QueriedPatch
from rescueseg.sampling.patches import patch_shape
from rescueseg.sampling.starting_patches import all_candidates
from rescueseg.simulation.annotated_volume import VOLUME
from rescueseg.simulation.choices import (
    Choice,
    Pool,
    clear_pieces,
    error_patches,
    foreground_patches,
    label_targets,
    predicted_targets,
)
from rescueseg.simulation.protocol import (
    SHARES,
    START,
    TRUTH_STRATEGIES,
    Arm,
    loops_of,
    needed_loops,
    shared_row,
    training_name,
)
from rescueseg.simulation.rows import FULL_DATA, BoxCounts, SimulationRow, add_row, read_rows
from rescueseg.stages.simulated_campaign import ANNOTATIONS, annotate, guarded_boxes, is_foreground, read_truth
from rescueseg.stages.stage import NOTE_EVERY
from rescueseg.stages.train import train_snapshot, with_changes
from rescueseg.storage import Storage

SPENT = RecordFile("processor_seconds", float)
"""In the folder of a training: its processor time, that before a kill included."""
Say = Callable[[str], object]


@dataclass
class Clock:
    """How many trainings are left, and how long they take.

    Examples
    --------
    >>> clock = Clock(3)
    >>> clock.ended(120.0)
    >>> str(clock)
    '2 trainings left, about 4 min'
    """

    left: int
    seconds: list[float] = field(default_factory=list)

    def ended(self, seconds: float) -> None:
        """Note that a training has ended, with its predictions, after so many seconds."""
        self.left = max(0, self.left - 1)
        self.seconds.append(seconds)

    def __str__(self) -> str:
        many = f"{self.left} training{'' if self.left == 1 else 's'} left"
        if not self.seconds or not self.left:
            return many
        minutes = self.left * float(np.mean(self.seconds)) / 60
        return f"{many}, about {f'{minutes / 60:.1f} h' if minutes >= 90 else f'{math.ceil(minutes)} min'}"


def processor_seconds() -> float:
    """Return the processor time of this process and of the processes that it started and that have ended."""
    return float(sum(os.times()[:4]))


@dataclass
class CampaignRun:
    """Runs what is missing of one campaign's arms.

    Parameters
    ----------
    campaign : Campaign
        From `rescueseg.stages.simulated_campaign.open_or_make`, its starting patches annotated.
    steps : int
        Of every training.
    rows : Path
        File of rows.
    clock : Clock
        Is told of each training.
    say : callable
        Gets a line for each row.
    progress : callable, optional
        Called with a training's name, its steps done and its steps in all.
    """

    campaign: Campaign
    steps: int
    rows: Path
    clock: Clock
    say: Say
    progress: Progress | None

    @cached_property
    def truth(self) -> npt.NDArray[np.uint8]:
        """Classes of the volume, uint8 zyx."""
        return read_truth(self.campaign)

    @cached_property
    def guarded(self) -> list[Box]:
        """The holdout with its guard band."""
        return guarded_boxes(self.campaign)

    @cached_property
    def pool_foreground(self) -> int:
        """Voxels of all classes that may be annotated."""
        inside = is_foreground(self.truth)
        for box in self.guarded:
            inside[box.slices] = False
        return int(inside.sum())

    def arm(self, arm: Arm) -> None:
        """Run what is missing of an arm."""
        self._check_boxes(arm, read_rows(self.rows))
        for loop in loops_of(arm.setting, arm.strategy):
            rows = read_rows(self.rows)
            keys = {row.key for row in rows}
            if arm.key(loop) not in keys and (shared := shared_row(rows, arm, loop)) is not None:
                add_row(self.rows, shared)
                keys.add(shared.key)
            if loop in needed_loops(arm, keys, self._has_annotations):
                self._loop(arm, loop, is_scored=arm.key(loop) in keys)
            if (name := training_name(arm.strategy, loop)) != START:
                self.forget_maps(name)

    def _has_annotations(self, arm: Arm, name: str) -> bool:  # noqa: ARG002  # the campaign is that of the arm
        return self.campaign.training(name).has(ANNOTATIONS)

    def _loop(self, arm: Arm, loop: int, *, is_scored: bool) -> None:
        """Train, score and choose, as far as that is not done."""
        name, began = training_name(arm.strategy, loop), time.monotonic()
        is_new = not self.campaign.training(name).has(RESULT)
        accepted = self._accepted(arm, loop)
        model = self._train(arm, loop, accepted)
        row = None if is_scored else self._row(arm, loop, accepted)
        if row is not None:
            add_row(self.rows, row)
        following = training_name(arm.strategy, loop + 1)
        if loop + 1 < len(loops_of(arm.setting, arm.strategy)) and not self._has_annotations(arm, following):
            chosen = self._choose(arm, loop, model, accepted)
            new = annotate(self.campaign, loop + 1, chosen, self._masks(model, [p.box for p in chosen]))
            self.campaign.training(following).write(ANNOTATIONS, new)
        if is_new:
            self.clock.ended(time.monotonic() - began)
        if row is not None:
            score = "no structure" if row.dice is None else f"test Dice {row.dice:.3f}"
            self.say(f"{arm}, loop {loop}: {row.patches} patches, {score}; {self.clock}")

    # annotations ------------------------------------------------------------------------------------------------------

    def _accepted(self, arm: Arm, loop: int) -> list[AcceptedAnnotation]:
        """Return all that is annotated for a training."""
        if arm.strategy == FULL_DATA:
            return list(self._all_data())
        accepted: list[AcceptedAnnotation] = []
        for number in range(loop + 1):
            folder = self.campaign.training(training_name(arm.strategy, number))
            new = folder.read(ANNOTATIONS)
            if new is None:  # training on less would go unnoticed
                raise damaged(self.campaign.storage.path(ANNOTATIONS.path(folder.folder)), "it is missing")
            accepted += new
        return accepted

    def _all_data(self) -> tuple[AcceptedAnnotation, ...]:
        folder = self.campaign.training(FULL_DATA)
        done = folder.read(ANNOTATIONS)
        if done is None:
            volume = self.campaign.volumes.record(VOLUME)
            shape = patch_shape(self.campaign.config, volume, self.campaign.holdout())
            boxes = clear_pieces(volume.shape_zyx, shape, self.guarded)
            patches = [QueriedPatch(volume_id=VOLUME, box=box, score=0.0, reason="all data") for box in boxes]
            done = annotate(self.campaign, 0, patches, [None] * len(patches))
            folder.write(ANNOTATIONS, done)
        return done

    def _masks(self, model: ModelReference, boxes: Sequence[Box]) -> list[npt.NDArray[np.uint8]]:
        """Return the first masks of queried patches, made as a campaign makes them."""
        volume = self.campaign.volumes.record(VOLUME)
        profile = profile_of(self.campaign.config, None)
        maps = predicted_box_maps(self._job(model), (PROBABILITY,), boxes, volume.shape_zyx)
        return [clean(most_likely(m[PROBABILITY]), volume.spacing_um_zyx, *profile) for m in maps]

    # training and scores ----------------------------------------------------------------------------------------------

    def _train(self, arm: Arm, loop: int, accepted: Sequence[AcceptedAnnotation]) -> ModelReference:
        """Train from scratch, or go on; the seed is the same for all strategies of a seed and loop."""
        name = training_name(arm.strategy, loop)
        folder, trainer = self.campaign.training(name), arm.setting.trainer
        if (done := folder.read(RESULT)) is not None:
            return done.model
        snapshot = make_snapshot(self.campaign, loop, accepted)
        changes: dict[str, JsonValue] = {"iterations": self.steps}
        folder.write(REQUEST, OutsideTraining(name=name, trainer=trainer, snapshot=snapshot, changes=changes))
        get_trainer(trainer)  # so that its import is in no training's time
        before, began = folder.read(SPENT) or 0.0, processor_seconds()

        def note(step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG001
            if step % NOTE_EVERY == 0:
                folder.write(SPENT, before + processor_seconds() - began)
            if self.progress is not None:
                self.progress(f"{arm}, loop {loop}, {self.clock}", step, self.steps)

        seed = int(keyed_generator(arm.seed, "simulated training", loop).integers(2**31))
        config = with_changes(self.campaign.config, changes)
        result, seconds = train_snapshot(
            self.campaign, snapshot, trainer, seed=seed, folder=folder, progress=note, config=config
        )
        folder.write(SPENT, before + processor_seconds() - began)
        folder.write(RESULT, OutsideResult(**dict(result), seconds=seconds))
        shutil.rmtree(folder.work_folder(), ignore_errors=True)
        return result.model

    def _row(self, arm: Arm, loop: int, accepted: Sequence[AcceptedAnnotation]) -> SimulationRow:
        """Score the model of a training, and return its row."""
        name = training_name(arm.strategy, loop)
        folder = self.campaign.training(name)
        evaluation, spent = folder.read(TRAINING_EVALUATION), folder.read(SPENT)
        if evaluation is None:
            evaluation, _ = evaluate_training(self.campaign, name, lambda *_: None)
        return SimulationRow(
            dataset=arm.setting.dataset,
            regime=arm.regime.name,
            strategy=arm.strategy,
            seed=arm.seed,
            loop=loop,
            trainer=arm.setting.trainer,
            patches=len(accepted),
            voxels_drawn=sum(a.box.size for a in accepted),
            foreground_drawn=sum(int(is_foreground(self.truth[a.box.slices]).sum()) for a in accepted),
            pool_foreground=self.pool_foreground,
            voxels_corrected=sum(a.voxels_corrected for a in accepted),
            seconds=round(sum(a.seconds for a in accepted), 1),
            iterations=self.steps,
            cpu_seconds=0.0 if spent is None else round(spent, 1),
            boxes=_counts(evaluation, "test"),
            validation=_counts(evaluation, "validation"),
        )

    def _check_boxes(self, arm: Arm, rows: Sequence[SimulationRow]) -> None:
        """Refuse rows of the same data set and seed that were measured on other boxes."""
        holdout = self.campaign.holdout()
        mine = {str(box.box) for box in holdout.boxes if box.part == "test"} if holdout else set()
        for row in rows:
            if (row.dataset, row.seed) == (arm.setting.dataset, arm.seed) and {box.name for box in row.boxes} != mine:
                raise EvaluationError(
                    f"the rows of seed {arm.seed} were measured on other test boxes",
                    where=str(self.rows),
                    todo="They are of another crop or version: begin a new file of rows, or another name with --name",
                )

    # choosing ---------------------------------------------------------------------------------------------------------

    def _choose(
        self, arm: Arm, loop: int, model: ModelReference, accepted: Sequence[AcceptedAnnotation]
    ) -> list[QueriedPatch]:
        """Let the strategy choose patches by what it may see; it sees the truth where it is a control that does."""
        count = arm.regime.query_size(arm.setting.loops)
        rng = keyed_generator(arm.seed, "simulated query", arm.regime.name, arm.strategy, loop)
        boxes, places = all_candidates(self.campaign, [a.patch for a in accepted])
        n_classes = self.campaign.config.n_classes
        if arm.strategy in STRATEGIES:
            if arm.strategy == "random":  # which looks at no map
                none = np.zeros(len(boxes[VOLUME]))
                ids, classes = (VOLUME,) * len(none), np.zeros((len(none), n_classes))
                table = CandidateTable(ids, tuple(boxes[VOLUME]), {}, classes, none, places)
            else:
                further = needed_maps(arm.strategy)
                table = score_candidates(self._maps(arm, loop, model), boxes, n_classes, places, further=further)
            picks = STRATEGIES[arm.strategy](table, count, rng, Loop(loop, arm.setting.loops))
            chosen = [Choice(table.boxes[pick.index], pick.score, pick.reason) for pick in picks]
        else:
            blocked = (*self.guarded, *(a.box for a in accepted))
            volume = self.campaign.volumes.record(VOLUME)
            patch = patch_shape(self.campaign.config, volume, self.campaign.holdout())
            pool = Pool(volume.shape_zyx, patch, blocked, tuple(boxes[VOLUME]))
            chosen = self._own_choice(arm, loop, model, pool, count, rng)
        if len(chosen) < count:
            raise SamplingError(
                f"{len(chosen)} of {count} patches are left to choose for {arm}, loop {loop + 1}",
                where=self.campaign.url,
                todo="Ask for fewer patches or smaller ones, or take a larger crop",
            )
        return [QueriedPatch(volume_id=VOLUME, box=c.box, score=c.score, reason=c.reason) for c in chosen]

    def _own_choice(
        self, arm: Arm, loop: int, model: ModelReference, pool: Pool, count: int, rng: np.random.Generator
    ) -> list[Choice]:
        """Let a strategy of the benchmark alone choose."""
        n_classes, strategy = self.campaign.config.n_classes, arm.strategy
        if strategy in TRUTH_STRATEGIES and strategy in SHARES:
            return foreground_patches(label_targets(self.truth, n_classes), SHARES[strategy], count, pool, rng)
        maps = VolumeMaps(self._maps(arm, loop, model), VOLUME)
        probability = np.asarray(maps.open(PROBABILITY)[:], np.float32)
        if strategy == "oracle_error":
            return error_patches(most_likely(probability), self.truth, count, pool, rng)
        return foreground_patches(predicted_targets(probability), SHARES[strategy], count, pool, rng)

    def _job(self, model: ModelReference) -> InferenceJob:
        return InferenceJob.of(self.campaign, model, VOLUME)

    def _maps(self, arm: Arm, loop: int, model: ModelReference) -> GenerationFolder:
        """Predict the whole volume, and return the folder of the maps."""
        url = self.campaign.storage.url_of(self.campaign.training(training_name(arm.strategy, loop)).path("pool"))
        further = OBJECT_DISAGREEMENT in needed_maps(arm.strategy)
        infer(replace(self._job(model), maps_url=url, object_disagreement=further))
        return GenerationFolder.of(Storage(url), model.generation)

    def forget_maps(self, name: str) -> None:
        """Remove the maps that strategies chose by after a training: they are large, and can be made again."""
        shutil.rmtree(self.campaign.storage.path(self.campaign.training(name).path("pool")), ignore_errors=True)


def _counts(evaluation: Evaluation, part: Part) -> tuple[BoxCounts, ...]:
    return tuple(BoxCounts(name=str(b.box), counts=b.counts) for b in evaluation.boxes if b.part == part)
