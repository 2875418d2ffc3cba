"""A strided MONAI U-Net planned from spacing, trained with Dice and cross-entropy, and with a loss for topology on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, TrainingConfig
from rescueseg.errors import ConfigError, TrainingError
from rescueseg.models import checkpoints
from rescueseg.models.ensemble_training import earlier_weights, fixed_execution, member_seed
from rescueseg.models.files import member_folder, model_errors, read_trained_model, read_warm_start
from rescueseg.models.settings import FamilySettings
from rescueseg.models.survey import survey_snapshot
from rescueseg.models.trainer import (
    TrainedModel,
    TrainerCapabilities,
    TrainingRequest,
    check_request,
    unlabelled_warnings,
)
from rescueseg.models.training_items import TrainingSet, border_targets, measure_objects
from rescueseg.models.unet.loop import Run, learning_rate
from rescueseg.models.unet.losses import Objective
from rescueseg.models.unet.plan import NetworkPlan, TrainingPlan, make_plan, warm_start_network
from rescueseg.models.unet.predictor import load_predictor
from rescueseg.models.unet.settings import UNetSettings
from rescueseg.models.weights import join_members
from rescueseg.progress import StepProgress
from rescueseg.records import Snapshot
from rescueseg.storage import digest_json

__all__ = ["MonaiUNetTopologyTrainer", "MonaiUNetTrainer", "load_predictor"]

FORMAT = 5
"""Of the models of this family."""


class MonaiUNetTrainer:
    """Trains `StridedUNet`; see `rescueseg.models.unet.plan` for what it decides by itself.

    A family whose network is the same, and learns more or something else, overrides `plan_request`, `read_data` and `loss`.
    """

    name = "monai_unet"
    topology = False
    """Whether the loss has terms for topology."""
    format = FORMAT
    """Raised when the same request would train another model."""
    capabilities = TrainerCapabilities(partial_labels=True)
    settings: type[FamilySettings] = UNetSettings
    ignored: ClassVar[Mapping[str, str]] = {
        "unet.cldice_weight": "mind topology",
        "unet.betti_weight": "mind topology",
    }

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
        plan, start, reason = self.plan_request(request)
        identity = _request_digest(request, self.format, plan, start)
        model = read_trained_model(request.work_dir, identity)
        if model is not None:
            return model
        config = request.config.training
        with fixed_execution(config.threads):
            self._train(request, plan, identity, reason, progress)
        model = read_trained_model(request.work_dir, identity)
        assert model is not None
        return model

    def plan_request(self, request: TrainingRequest) -> tuple[TrainingPlan, str, str]:
        """Return the plan of a training, the digest of the model named to start from, and why it does not start there."""
        return _plan_request(request, self.topology)

    def read_data(self, request: TrainingRequest, plan: TrainingPlan) -> TrainingSet:
        """Return the windows that are learned from."""
        make_targets = None if plan.border_um is None else border_targets(plan.border_um)
        return TrainingSet(request.volumes, request.snapshot, plan, make_targets=make_targets)

    def loss(self, data: TrainingSet, plan: TrainingPlan) -> nn.Module:
        """Return what is minimised."""
        return Objective(data, plan)

    def _train(
        self, request: TrainingRequest, plan: TrainingPlan, identity: str, reason: str, progress: StepProgress
    ) -> None:
        """Train the networks one after the other, then commit the model."""
        every = request.config.training.checkpoint_every
        data = self.read_data(request, plan)
        folder = None if reason else request.warm_start
        runs: list[Run] = []
        seconds = 0.0
        for member in range(plan.members):
            run = Run(
                member_folder(request.work_dir, member),
                f"{identity}/{member}",
                data,
                plan,
                self.loss(data, plan),
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
        warnings += [reason] if reason else []
        self._export(request, plan, identity, warnings, runs, seconds)

    def _export(
        self,
        request: TrainingRequest,
        plan: TrainingPlan,
        identity: str,
        warnings: list[str],
        runs: Sequence[Run],
        seconds: float,
    ) -> None:
        """Commit the finished model."""
        description = {
            "format": self.format,
            "trainer": self.name,
            "request": identity,
            "plan": plan.to_json(),
            "classes": list(request.config.classes),
            "seed": request.seed,
            "generation": request.snapshot.generation,
            "snapshot": request.snapshot.digest,
            "warnings": warnings,
        }
        losses = [
            {"step": i + 1.0, "loss": loss, "learning_rate": learning_rate(plan, i % plan.iterations)}
            for i, loss in enumerate(loss for run in runs for loss in run.losses)
        ]
        log = {"seconds": seconds, "losses": losses, "notes": sorted({run.note for run in runs if run.note})}
        checkpoints.export_model(request.work_dir, join_members([run.weights for run in runs]), description, log)


class MonaiUNetTopologyTrainer(MonaiUNetTrainer):
    """The same network, trained with soft clDice and, on request, Betti matching beside Dice and cross-entropy."""

    name = "monai_unet_topology"
    topology = True
    capabilities = TrainerCapabilities(partial_labels=True, exact_on=("cpu",))
    """On a GPU soft clDice's max-pooling adds up its gradients in any order."""
    ignored: ClassVar[Mapping[str, str]] = {}


def plan_training(
    settings: CampaignConfig,
    volumes: VolumeFolder,
    snapshot: Snapshot,
    network: NetworkPlan | None = None,
    *,
    topology: bool = False,
    border_um: float | None = None,
) -> TrainingPlan:
    """Plan the training of a snapshot, with or without terms for topology, for an earlier network or a new one.

    Where a border distance is learned, `border_um` is the largest; it is chosen from the snapshot's objects when omitted.

    Raises
    ------
    TrainingError
        If the snapshot is empty, its volumes differ in their number of channels, or border distances are asked for where
        no object is numbered.
    ConfigError
        If `training.unet.channels` names fewer than three levels.
    """
    config = settings.training
    channels = UNetSettings.of(config).channels
    if channels is not None and len(channels) < 3:
        where = "training.unet.channels"
        raise ConfigError("too few levels", where=where, todo="Name at least three, such as [16, 32, 64]")
    survey = survey_snapshot(settings, volumes, snapshot)
    if not _learns_border(config, snapshot):
        border_um = None
    elif border_um is None:
        border_um, _ = measure_objects(volumes, snapshot, survey.spacing_um_zyx)
    return make_plan(config, survey, snapshot.n_classes, network=network, topology=topology, border_um=border_um)


def _learns_border(config: TrainingConfig, snapshot: Snapshot) -> bool:
    """Tell whether a training learns the distance to the border of each voxel's own object."""
    wish, numbered = UNetSettings.of(config).border_distance, any(item.instances for item in snapshot.items)
    if wish and not numbered:
        raise TrainingError(
            "no object is numbered, so no border distance can be learned",
            where="training.unet.border_distance",
            todo='Annotate objects (annotation.labels = "instance"), or leave the setting out',
        )
    return wish


def _plan_request(request: TrainingRequest, topology: bool) -> tuple[TrainingPlan, str, str]:
    """Return the plan of a training, the digest of the model named to start from, and why it does not start there."""
    settings, snapshot = request.config, request.snapshot
    plan = plan_training(settings, request.volumes, snapshot, topology=topology)
    model = read_warm_start(request.warm_start)
    if model is None:
        return plan, "", ""
    with model_errors(str(request.warm_start)):
        earlier = TrainingPlan.model_validate(model.description["plan"])
    network, reason = warm_start_network(earlier, plan, settings.training)
    border_um = plan.border_um if network is None else earlier.border_um or plan.border_um
    plan = plan_training(settings, request.volumes, snapshot, network, topology=topology, border_um=border_um)
    return plan, model.digest, reason


def _request_digest(request: TrainingRequest, number: int, plan: TrainingPlan, start: str) -> str:
    """Return the identity of a training: what decides its weights."""
    return digest_json(
        {
            "format": number,
            "plan": plan.to_json(),
            "snapshot": request.snapshot.digest,
            "seed": request.seed,
            "warm_start": start,
        }
    )
