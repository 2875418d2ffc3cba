"""The trainer of StarDist: the U-Net's training loop with StarDist's targets and loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from rescueseg.models.files import model_errors, read_warm_start
from rescueseg.models.stardist.losses import StarObjective
from rescueseg.models.stardist.plan import NAME, StarDistPlan, make_stardist_plan
from rescueseg.models.stardist.predictor import load_predictor
from rescueseg.models.stardist.settings import StarDistSettings
from rescueseg.models.stardist.targets import star_targets
from rescueseg.models.survey import scratch_reason, survey_snapshot
from rescueseg.models.trainer import TrainerCapabilities, TrainingRequest
from rescueseg.models.training_items import TrainingSet, measure_objects
from rescueseg.models.unet.plan import TrainingPlan, warm_start_network
from rescueseg.models.unet.trainer import MonaiUNetTrainer

__all__ = ["StarDistTrainer", "load_predictor"]


class StarDistTrainer(MonaiUNetTrainer):
    """Trains `StridedUNet` to say star-convex polyhedra; see `rescueseg.models.stardist`."""

    name = NAME
    format = 1
    capabilities = TrainerCapabilities(partial_labels=True, needs_instances=True, exact_on=("cpu",))
    """On a GPU gradients of interpolated channels are added up in any order."""
    settings = StarDistSettings
    ignored: ClassVar[Mapping[str, str]] = {}

    def plan_request(self, request: TrainingRequest) -> tuple[StarDistPlan, str, str]:
        """Return the plan of a training, the digest of the model named to start from, and why it does not start there."""
        settings, snapshot = request.config, request.snapshot
        survey = survey_snapshot(settings, request.volumes, snapshot)
        radius_um, whole_seen = measure_objects(request.volumes, snapshot, survey.spacing_um_zyx, beyond_volume=True)
        plan = make_stardist_plan(settings, survey, snapshot.n_classes, radius_um=radius_um, whole_seen=whole_seen)
        model = read_warm_start(request.warm_start)
        if model is None:
            return plan, "", ""
        with model_errors(str(request.warm_start)):
            earlier = StarDistPlan.model_validate(model.description["plan"])
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
        return plan, model.digest, reason

    def read_data(self, request: TrainingRequest, plan: TrainingPlan) -> TrainingSet:
        """Return the windows that are learned from, with the objects in them."""
        assert isinstance(plan, StarDistPlan)
        make_targets = star_targets(whole_seen=plan.whole_seen)
        return TrainingSet(request.volumes, request.snapshot, plan, make_targets=make_targets)

    def loss(self, data: TrainingSet, plan: TrainingPlan) -> nn.Module:  # noqa: ARG002  # nothing depends on it
        """Return what is minimised."""
        assert isinstance(plan, StarDistPlan)
        return StarObjective(plan)
