"""Cellpose's network on planes of the annotated patches, trained with Cellpose's loss over what is labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rescueseg.models import checkpoints
from rescueseg.models.cellpose.loop import Run
from rescueseg.models.cellpose.plan import CellposePlan, plan_training
from rescueseg.models.cellpose.planes import PlaneSet
from rescueseg.models.cellpose.predictor import load_predictor
from rescueseg.models.cellpose.sections import cut_warnings
from rescueseg.models.cellpose.settings import CellposeSettings
from rescueseg.models.ensemble_training import earlier_weights, fixed_execution, member_seed
from rescueseg.models.files import member_folder, model_errors, read_trained_model, read_warm_start
from rescueseg.models.learning_rate import cosine_rate
from rescueseg.models.survey import scratch_reason
from rescueseg.models.trainer import (
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
    check_request,
    unlabelled_warnings,
)
from rescueseg.models.weights import join_members
from rescueseg.progress import StepProgress
from rescueseg.storage import digest_json

__all__ = ["CellposeTrainer", "load_predictor"]

FORMAT = 1
"""Raised when the same request would train another model."""


class CellposeTrainer:
    """Trains Cellpose's network; see `rescueseg.models.cellpose.plan` for what it decides by itself.

    References
    ----------
    Stringer et al. 2021, doi:10.1038/s41592-020-01018-x; Pachitariu and Stringer 2022, doi:10.1038/s41592-022-01663-4 (training
    on a person's own few images).
    """

    name = "cellpose"
    capabilities = TrainerCapabilities(partial_labels=True, several_classes=False, needs_instances=True)
    settings = CellposeSettings
    ignored: ClassVar[Mapping[str, str]] = {}

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit `work_dir/model` as the last act.

        Parameters
        ----------
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
            If no voxel is labelled, the loss is no longer a number, or the model to start from is missing or damaged;
            one of another plan is a warning, and the training starts from scratch.
        StorageError
            If a label array is damaged, or the disk is full; the last checkpoint stays.
        """
        check_request(self, request)
        plan, start, reason = _plan_request(request)
        identity = _request_digest(request, plan, start)
        model = read_trained_model(request.work_dir, identity)
        if model is not None:
            return model
        with fixed_execution(request.config.training.threads):
            self._train(request, plan, identity, reason, progress)
        model = read_trained_model(request.work_dir, identity)
        assert model is not None
        return model

    def _train(
        self, request: TrainingRequest, plan: CellposePlan, identity: str, reason: str, progress: StepProgress
    ) -> None:
        """Train the networks one after the other, then commit the model."""
        every = request.config.training.checkpoint_every
        data = PlaneSet(request.volumes, request.snapshot, plan)
        folder = None if reason else request.warm_start
        runs: list[Run] = []
        seconds = 0.0
        for member in range(plan.members):
            run = Run(
                member_folder(request.work_dir, member),
                f"{identity}/{member}",
                data,
                plan,
                seed=member_seed(request.seed, member),
                device=request.device,
                weights=earlier_weights(folder, member),
            )
            run.resume()
            with run.batches:
                while run.step < plan.iterations:
                    metrics = run.advance()
                    progress(member * plan.iterations + run.step, metrics)
                    if run.step % every == 0 or run.step == plan.iterations:
                        run.save()
            runs.append(run)
            seconds += run.seconds  # now: the clock of a network does not stop while the next one trains
        warnings = unlabelled_warnings(request.config.classes, data.unlabelled_classes)
        warnings += cut_warnings(request.volumes, request.snapshot)
        warnings += [reason] if reason else []
        self._export(request, plan, identity, warnings, runs, seconds)

    def _export(
        self,
        request: TrainingRequest,
        plan: CellposePlan,
        identity: str,
        warnings: list[str],
        runs: Sequence[Run],
        seconds: float,
    ) -> None:
        """Commit the finished model."""
        description = {
            "format": FORMAT,
            "trainer": self.name,
            "request": identity,
            "plan": plan.to_json(),
            "classes": list(request.config.classes),
            "seed": request.seed,
            "generation": request.snapshot.generation,
            "snapshot": request.snapshot.digest,
            "warnings": warnings,
        }
        rates = [cosine_rate(plan.learning_rate, step, plan.iterations) for step in range(plan.iterations)]
        losses = [
            {"step": i + 1.0, "loss": loss, "learning_rate": rates[i % plan.iterations]}
            for i, loss in enumerate(loss for run in runs for loss in run.losses)
        ]
        log = {"seconds": seconds, "losses": losses, "notes": []}
        checkpoints.export_model(request.work_dir, join_members([run.weights for run in runs]), description, log)


def _plan_request(request: TrainingRequest) -> tuple[CellposePlan, str, str]:
    """Return the plan of a training, the digest of the model named to start from, and why it does not start there."""
    settings, snapshot = request.config, request.snapshot
    model = read_warm_start(request.warm_start)
    if model is None:
        return plan_training(settings, request.volumes, snapshot), "", ""
    with model_errors(str(request.warm_start)):
        earlier = CellposePlan.model_validate(model.description["plan"])
    plan = plan_training(settings, request.volumes, snapshot, earlier.diameter_um)
    reason = scratch_reason(
        {
            "number of image channels": (earlier.in_channels, plan.in_channels),
            "training.cellpose.channels": (earlier.channels, plan.channels),
        }
    )
    if reason:
        plan = plan_training(settings, request.volumes, snapshot)
    return plan, model.digest, reason


def _request_digest(request: TrainingRequest, plan: CellposePlan, start: str) -> str:
    """Return the identity of a training: what decides its weights."""
    return digest_json(
        {
            "format": FORMAT,
            "plan": plan.to_json(),
            "snapshot": request.snapshot.digest,
            "seed": request.seed,
            "warm_start": start,
        }
    )
