"""The trainer of StarDist: the U-Net's training loop with StarDist's targets and loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rescueseg.models.ensemble_training import earlier_plan
from rescueseg.models.network_run import RunStart
from rescueseg.models.network_trainer import PlannedTraining, train_networks
from rescueseg.models.stardist.losses import StarObjective
from rescueseg.models.stardist.plan import NAME, StarDistPlan, make_stardist_plan
from rescueseg.models.stardist.predictor import load_predictor
from rescueseg.models.stardist.settings import StarDistSettings
from rescueseg.models.stardist.targets import star_targets
from rescueseg.models.survey import scratch_reason, survey_snapshot
from rescueseg.models.trainer import TrainedModel, TrainerCapabilities, TrainingRequest, unlabelled_warnings
from rescueseg.models.training_items import TrainingSet, measure_objects
from rescueseg.models.unet.loop import Run
from rescueseg.models.unet.plan import warm_start_network
from rescueseg.progress import StepProgress

__all__ = ["StarDistTrainer", "load_predictor"]


class StarDistTrainer:
    """Trains `StridedUNet` to say star-convex polyhedra; see `rescueseg.models.stardist`."""

    name = NAME
    capabilities = TrainerCapabilities(partial_labels=True, needs_instances=True, exact_on=("cpu",))
    """On a GPU gradients of interpolated channels are added up in any order."""
    settings = StarDistSettings
    ignored: ClassVar[Mapping[str, str]] = {}
    format = 1
    """Raised when the same request would train another model."""

    def train(self, request: TrainingRequest, progress: StepProgress) -> TrainedModel:
        """Train, or go on training, and commit the model; see `train_networks`."""
        return train_networks(self, request, progress)

    def plan_training(self, request: TrainingRequest) -> PlannedTraining[StarDistPlan]:
        """Return the plan, for network and radius of the model to start from where that is possible."""
        settings, snapshot = request.config, request.snapshot
        survey = survey_snapshot(settings, request.volumes, snapshot)
        radius_um, whole_seen = measure_objects(request.volumes, snapshot, survey.spacing_um_zyx, beyond_volume=True)
        plan = make_stardist_plan(settings, survey, snapshot.n_classes, radius_um=radius_um, whole_seen=whole_seen)
        found = earlier_plan(request.warm_start, StarDistPlan)
        if found is None:
            return PlannedTraining(plan)
        earlier, digest = found
        network, reason = warm_start_network(earlier, plan, settings.training, self.settings.family)
        reason = reason or scratch_reason({"training.stardist.rays": (earlier.rays, plan.rays)})
        if not reason:
            plan = make_stardist_plan(
                settings,
                survey,
                snapshot.n_classes,
                radius_um=earlier.radius_um,
                whole_seen=whole_seen,
                network=network,
            )
        return PlannedTraining(plan, digest, reason)

    def read_data(self, request: TrainingRequest, plan: StarDistPlan) -> TrainingSet:
        """Return the windows that are learned from, with the objects in them."""
        make_targets = star_targets(whole_seen=plan.whole_seen)
        return TrainingSet(request.volumes, request.snapshot, plan, make_targets=make_targets)

    def make_run(self, start: RunStart, data: TrainingSet, plan: StarDistPlan) -> Run:
        """Return a network that has not taken a step yet."""
        return Run(start, data, plan, StarObjective(plan))

    def warnings(self, request: TrainingRequest, data: TrainingSet) -> list[str]:
        """Return a sentence for each class without a labelled voxel."""
        return unlabelled_warnings(request.config.classes, data.unlabelled_classes)
