"""A strided MONAI U-Net planned from spacing, trained with Dice and cross-entropy, and with a loss for topology on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, TrainingConfig
from rescueseg.errors import TrainingError
from rescueseg.models.ensemble_training import earlier_plan
from rescueseg.models.network_run import RunStart
from rescueseg.models.network_trainer import PlannedTraining, train_networks
from rescueseg.models.survey import survey_snapshot
from rescueseg.models.trainer import TrainedModel, TrainerCapabilities, TrainingRequest, unlabelled_warnings
from rescueseg.models.training_items import TrainingSet, border_targets, measure_objects
from rescueseg.models.unet.loop import Run
from rescueseg.models.unet.losses import Objective
from rescueseg.models.unet.plan import NetworkPlan, TrainingPlan, check_levels, make_plan, warm_start_network
from rescueseg.models.unet.predictor import load_predictor
from rescueseg.models.unet.settings import UNetSettings
from rescueseg.progress import StepProgress
from rescueseg.records import Snapshot

__all__ = ["MonaiUNetTopologyTrainer", "MonaiUNetTrainer", "load_predictor"]


class MonaiUNetTrainer:
    """Trains `StridedUNet`; see `rescueseg.models.unet.plan` for what it decides by itself."""

    name = "monai_unet"
    topology = False
    """Whether the loss has terms for topology."""
    capabilities = TrainerCapabilities(partial_labels=True)
    settings = UNetSettings
    ignored: ClassVar[Mapping[str, str]] = {
        "unet.cldice_weight": "mind topology",
        "unet.betti_weight": "mind topology",
    }
    format = 5
    """Raised when the same request would train another model."""

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit the model; see `train_networks`."""
        return train_networks(self, request, progress)

    def plan_training(self, request: TrainingRequest) -> PlannedTraining[TrainingPlan]:
        """Return the plan, for the network of the model to start from where that is possible."""
        settings, volumes, snapshot = request.config, request.volumes, request.snapshot
        plan = plan_training(settings, volumes, snapshot, topology=self.topology)
        found = earlier_plan(request.warm_start, TrainingPlan)
        if found is None:
            return PlannedTraining(plan)
        earlier, digest = found
        network, reason = warm_start_network(earlier, plan, settings.training)
        border_um = plan.border_um if network is None else earlier.border_um or plan.border_um
        plan = plan_training(settings, volumes, snapshot, network, topology=self.topology, border_um=border_um)
        return PlannedTraining(plan, digest, reason)

    def read_data(self, request: TrainingRequest, plan: TrainingPlan) -> TrainingSet:
        """Return the windows that are learned from."""
        make_targets = None if plan.border_um is None else border_targets(plan.border_um)
        return TrainingSet(request.volumes, request.snapshot, plan, make_targets=make_targets)

    def make_run(self, start: RunStart, data: TrainingSet, plan: TrainingPlan) -> Run:
        """Return a network that has not taken a step yet."""
        return Run(start, data, plan, Objective(data, plan))

    def warnings(self, request: TrainingRequest, data: TrainingSet) -> list[str]:
        """Return a sentence for each class without a labelled voxel."""
        return unlabelled_warnings(request.config.classes, data.unlabelled_classes)


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
    check_levels(UNetSettings.of(config).channels, "training.unet.channels")
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
