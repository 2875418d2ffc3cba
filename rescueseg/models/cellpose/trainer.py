"""Cellpose's network on planes of the annotated patches, trained with Cellpose's loss over what is labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rescueseg.models.cellpose.loop import Run
from rescueseg.models.cellpose.plan import CellposePlan, Start, plan_training
from rescueseg.models.cellpose.planes import PlaneSet
from rescueseg.models.cellpose.predictor import load_predictor
from rescueseg.models.cellpose.published import load_published
from rescueseg.models.cellpose.sections import cut_warnings
from rescueseg.models.cellpose.settings import CellposeSettings
from rescueseg.models.cellpose.starting_weights import starting_weights
from rescueseg.models.ensemble_training import earlier_plan
from rescueseg.models.network_run import RunStart
from rescueseg.models.network_trainer import FirstWeights, PlannedTraining, train_networks
from rescueseg.models.survey import scratch_reason
from rescueseg.models.trainer import TrainedModel, TrainerCapabilities, TrainingRequest, unlabelled_warnings
from rescueseg.progress import StepProgress

__all__ = ["CellposeTrainer", "load_predictor"]


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
    format = 1
    """Raised when the same request would train another model."""

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit the model; see `train_networks`."""
        return train_networks(self, request, progress)

    def plan_training(self, request: TrainingRequest) -> PlannedTraining[CellposePlan]:
        """Return the plan, for objects of the size that the model or the weights to start from were made for."""
        settings, volumes, snapshot = request.config, request.volumes, request.snapshot
        weights = starting_weights(request)
        start = Start(weights.channels, weights.pixels) if weights else None
        first = FirstWeights(dict(load_published(weights).state_dict()), weights.digest) if weights else None
        found = earlier_plan(request.warm_start, CellposePlan)
        if found is None:
            return PlannedTraining(plan_training(settings, volumes, snapshot, start=start), first=first)
        earlier, digest = found
        plan = plan_training(settings, volumes, snapshot, earlier.diameter_um, start)
        reason = scratch_reason(
            {
                "number of image channels": (earlier.in_channels, plan.in_channels),
                "training.cellpose.channels": (earlier.channels, plan.channels),
            }
        )
        if reason:
            plan = plan_training(settings, volumes, snapshot, start=start)
            reason = reason.replace("from scratch", "from training.cellpose.weights") if weights else reason
        return PlannedTraining(plan, digest, reason, first)

    def read_data(self, request: TrainingRequest, plan: CellposePlan) -> PlaneSet:
        """Return the planes that are learned from."""
        return PlaneSet(request.volumes, request.snapshot, plan)

    def make_run(self, start: RunStart, data: PlaneSet, plan: CellposePlan) -> Run:
        """Return a network that has not taken a step yet."""
        return Run(start, data, plan)

    def warnings(self, request: TrainingRequest, data: PlaneSet) -> list[str]:
        """Return a sentence for each class without a labelled voxel, and what sections of cut objects may mean."""
        unlabelled = unlabelled_warnings(request.config.classes, data.unlabelled_classes)
        return unlabelled + cut_warnings(request.volumes, request.snapshot)
