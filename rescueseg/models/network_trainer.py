"""How every family is trained whose networks learn in this process: what the family supplies, and the order of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import JsonValue
from torch import Tensor

from rescueseg.models import checkpoints
from rescueseg.models.ensemble_training import earlier_weights, fixed_execution, member_seed
from rescueseg.models.files import member_folder, read_trained_model
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.network_run import NetworkRun, RunStart, Schedule
from rescueseg.models.trainer import TrainedModel, Trainer, TrainingRequest, check_request
from rescueseg.models.weights import join_members
from rescueseg.progress import StepProgress
from rescueseg.storage import digest_json


class EnsemblePlan(Schedule, Protocol):
    """What every family's plan says: everything a training depends on beside its data and its seed."""

    @property
    def members(self) -> int:
        """Networks of the ensemble."""

    def to_json(self) -> dict[str, JsonValue]:
        """Return what is stored with the model, and decides its identity."""


Plan = TypeVar("Plan", bound=EnsemblePlan)
Data = TypeVar("Data")


@dataclass(frozen=True)
class FirstWeights:
    """Weights from elsewhere, from which every network starts that starts from no earlier model.

    Parameters
    ----------
    tensors : dict of Tensor
        By the names of the network.
    digest : str
        sha256 of the file that they come from.
    """

    tensors: dict[str, Tensor]
    digest: str


@dataclass(frozen=True)
class PlannedTraining(Generic[Plan]):
    """What a family makes of a request before it trains.

    Parameters
    ----------
    plan : Plan
        Everything the training depends on beside its data and its seed.
    start : str
        Digest of the model that the request names to start from; empty where it names none.
    scratch : str
        Why the training does not start from that model, for people; empty where it does.
    first : FirstWeights, optional
        Weights from elsewhere; drawn by the seed when omitted.
    """

    plan: Plan
    start: str = ""
    scratch: str = ""
    first: FirstWeights | None = None


class NetworkFamily(Trainer, Protocol[Plan, Data]):
    """A trainer whose networks learn in this process; its `train` is `train_networks`."""

    @property
    def format(self) -> int:
        """Number of the models' format: raised when the same request would train another model."""

    def plan_training(self, request: TrainingRequest) -> PlannedTraining[Plan]:
        """Return the plan, which fits the model to start from where that is possible; no image is read."""

    def read_data(self, request: TrainingRequest, plan: Plan) -> Data:
        """Return what is learned from; all networks share it."""

    def make_run(self, start: RunStart, data: Data, plan: Plan) -> NetworkRun[Any, Any]:
        """Return a network that has not taken a step yet."""

    def warnings(self, request: TrainingRequest, data: Data) -> list[str]:
        """Return what a person should know of the data."""


def train_networks(family: NetworkFamily[Plan, Data], request: TrainingRequest, progress: StepProgress) -> TrainedModel:
    """Train, or go on training, and commit `work_dir/model` as the last act.

    Parameters
    ----------
    family : NetworkFamily
        Whose networks.
    request : TrainingRequest
        With `config.training` as settings. Threads are set for the training and then restored.
    progress : callable
        Gets each step (from 1) with its `loss` and `learning_rate`; after a kill it starts again behind the last
        checkpoint.

    Returns
    -------
    TrainedModel
        The same digest for the same request on the same machine, whatever happened in between.

    Raises
    ------
    TrainingError
        If no voxel is labelled, the loss is no longer a number, or the model or the weights to start from are missing or
        damaged; a model of another plan is a warning, and the training starts without it.
    LeakError
        If the snapshot reads from a holdout box.
    StorageError
        If a label array is damaged, or the disk is full; the last checkpoint stays.
    """
    check_request(family, request)
    planned = family.plan_training(request)
    identity = _identity(family.format, request, planned)
    model = read_trained_model(request.work_dir, identity)
    if model is not None:
        return model
    with fixed_execution(request.config.training.threads):
        _train(family, request, planned, identity, progress)
    model = read_trained_model(request.work_dir, identity)
    assert model is not None
    return model


def _identity(number: int, request: TrainingRequest, planned: PlannedTraining[Plan]) -> str:
    """Return the digest of what decides the weights of a training."""
    return digest_json(
        ({"weights": planned.first.digest} if planned.first else {})
        | {
            "format": number,
            "plan": planned.plan.to_json(),
            "snapshot": request.snapshot.digest,
            "seed": request.seed,
            "warm_start": planned.start,
        }
    )


def _train(
    family: NetworkFamily[Plan, Data],
    request: TrainingRequest,
    planned: PlannedTraining[Plan],
    identity: str,
    progress: StepProgress,
) -> None:
    """Train the networks one after the other, then commit the model."""
    plan, every = planned.plan, request.config.training.checkpoint_every
    data = family.read_data(request, plan)
    earlier = None if planned.scratch else request.warm_start
    runs: list[NetworkRun[Any, Any]] = []
    seconds = 0.0
    for member in range(plan.members):
        weights = earlier_weights(earlier, member)
        if weights is None and planned.first is not None:
            weights = planned.first.tensors
        start = RunStart(
            member_folder(request.work_dir, member),
            f"{identity}/{member}",
            member_seed(request.seed, member),
            request.device,
            weights,
        )
        run = family.make_run(start, data, plan)
        run.resume()
        with run.batches:
            while run.step < plan.iterations:
                metrics = run.advance()
                progress(member * plan.iterations + run.step, metrics)
                if run.step % every == 0 or run.step == plan.iterations:
                    run.save()
        runs.append(run)
        seconds += run.seconds  # now: the clock of a network does not stop while the next one trains
    warnings = family.warnings(request, data) + ([planned.scratch] if planned.scratch else [])
    description = checkpoints.describe_model(
        trainer=family.name,
        number=family.format,
        request=identity,
        plan=plan.to_json(),
        classes=request.config.classes,
        seed=request.seed,
        snapshot=request.snapshot,
        warnings=warnings,
    )
    learned = join_members([run.weights for run in runs])
    checkpoints.export_model(request.work_dir, learned, description, _log(runs, plan, seconds))


def _log(runs: Sequence[NetworkRun[Any, Any]], plan: EnsemblePlan, seconds: float) -> dict[str, Any]:
    """Return what is noted of a training beside its model."""
    losses = [
        {
            "step": i + 1.0,
            "loss": loss,
            "learning_rate": cosine_rate(plan.learning_rate, i % plan.iterations, plan.iterations),
        }
        for i, loss in enumerate(loss for run in runs for loss in run.losses)
    ]
    return {"seconds": seconds, "losses": losses, "notes": sorted({run.note for run in runs if run.note})}
