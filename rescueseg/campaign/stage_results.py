"""What the stages of a generation write, as far as it is known here.

What is evaluated and reported stands where that is done: the judgement in `rescueseg.evaluation.champion`, scores and
calibration beside it, the row of the table in `rescueseg.reports.generation_table`.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from rescueseg.campaign.record_file import RecordFile
from rescueseg.records import MapReference, ModelReference, QueriedPatch, Record, Snapshot


class StageResult(Record):
    """A record in a generation's folder; keys that versions before or after this one wrote are passed over."""

    model_config = ConfigDict(extra="ignore")


class Effort(StageResult):
    """What accepted labels cost."""

    voxels_corrected: int
    annotation_seconds: float


class PatchEffort(Effort):
    """What the labels of one patch cost."""

    annotator: str


class GenerationEffort(Effort):
    """What the labels cost that are new in a generation: in all, by person, by ticket."""

    annotators: dict[str, Effort] = Field(default_factory=dict)
    patches: dict[str, PatchEffort] = Field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Tickets that the snapshot leaves out, as they lie in a holdout box of another volume, which shows the same."""


class Choice(StageResult):
    """Trainer and query strategy of a generation, frozen with its snapshot."""

    trainer: str
    strategy: str
    route: str = ""
    """Name of the triage's route that the trainer follows; empty where a person named it, or nothing was triaged."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the route where there is none, as versions before it was kept."""
        return {key: value for key, value in handler(self).items() if key != "route" or value}


class Contestant(StageResult):
    """One trainer in a trial."""

    trainer: str
    training: str
    """Name of its training outside the loop."""
    iterations: int
    seconds: float
    """Of the training, on the clock."""
    score: float | None
    """On the validation boxes; None where it says nothing, or the training failed."""
    failure: str = ""
    """Why the training failed; empty where it did not."""


class TrainerTrial(StageResult):
    """Trainers that were trained on a generation's snapshot for equal seconds, and the one that the validation boxes chose."""

    route: str
    """Name of the triage's route whose trainers they are."""
    occasion: str
    """Why there was a trial, for people."""
    metric: str
    """Name of the score that decided."""
    contestants: tuple[Contestant, ...]
    """In the order of the route."""
    trainer: str
    """The one that is taken."""
    reason: str
    """The figures, in one sentence for people."""

    @property
    def winner(self) -> Contestant:
        """The contestant that is taken."""
        return next(c for c in self.contestants if c.trainer == self.trainer)


class TrialLength(StageResult):
    """How many steps a trainer gets in a trial, measured once, so that a rerun trains the same."""

    trainer: str
    against: str
    """Name of the training whose time it gets."""
    iterations: int


class TrainingResult(StageResult):
    """A finished training. No clock enters it, and its losses lie beside it, in `LOSSES`."""

    model: ModelReference
    iterations: int
    """Optimiser steps taken, those before a kill included."""
    warnings: tuple[str, ...] = ()
    """What a person should know."""


class QueryResult(StageResult):
    """The patches that a generation asks for."""

    strategy: str
    candidates: int
    """Patches that could have been asked for."""
    patches: tuple[QueriedPatch, ...]
    uncertainty: float | None
    """Mean predictive entropy of the patches, in nats; None without any."""


class TicketsResult(StageResult):
    """The tickets that were made of the queried patches."""

    tickets: tuple[str, ...]
    """Their ids."""
    stop: str
    """Why the campaign should stop; empty when it goes on."""


Losses = tuple[dict[str, float], ...]
"""One entry per optimiser step: `step`, `loss`, `learning_rate`."""

SNAPSHOT = RecordFile("snapshot", Snapshot)
EFFORT = RecordFile("effort", GenerationEffort)
CHOICE = RecordFile("choice", Choice)
TRIAL_LENGTH = RecordFile("trial_length", TrialLength)
TRIAL = RecordFile("trial", TrainerTrial)
TRAINING = RecordFile("training", TrainingResult)
LOSSES = RecordFile("losses", Losses)
INFERENCE = RecordFile("inference", tuple[MapReference, ...])
QUERY = RecordFile("query", QueryResult)
TICKETS = RecordFile("tickets", TicketsResult)
PROGRESS = RecordFile("progress", tuple[str, int, int])
"""What is counted, how many are done, and how many there are; 0 where that is not known."""


class _OlderTraining(StageResult):
    """A training of a version that kept the losses in it."""

    losses: Losses = ()


OLDER_LOSSES = RecordFile("training", _OlderTraining)
