"""What a training of StarDist depends on, from the sizes of the annotated objects. Imports neither torch nor StarDist."""

from __future__ import annotations

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.models.stardist.settings import StarDistSettings
from rescueseg.models.survey import Survey, survey_snapshot
from rescueseg.models.trainer import Outline
from rescueseg.models.unet.plan import NetworkPlan, TrainingPlan, check_levels, make_plan
from rescueseg.models.unet.settings import UNetSettings
from rescueseg.records import Snapshot

NAME = "stardist"


class StarDistPlan(TrainingPlan):
    """Everything a training depends on beside its data and its seed."""

    rays: int
    """Of a polyhedron; behind the classes the network has a channel for the object's probability and one for each ray."""
    radius_um: float
    """Median radius of the largest ball in each object: lengths of rays are learned in multiples of it."""
    whole_seen: bool
    """Whether one object at least is seen as far as its largest ball; if none is, the objects count as if they were whole."""


def make_stardist_plan(
    settings: CampaignConfig,
    survey: Survey,
    n_classes: int,
    *,
    radius_um: float,
    whole_seen: bool,
    network: NetworkPlan | None = None,
) -> StarDistPlan:
    """Plan a training.

    Parameters
    ----------
    settings : CampaignConfig
        Of the campaign.
    survey : Survey
        Of the training set.
    n_classes : int
        Foreground classes.
    radius_um : float
        Median radius of the objects, see `StarDistPlan`.
    whole_seen : bool
        Whether one of them is whole.
    network : NetworkPlan, optional
        The network of a model to start from, used as it is.

    Raises
    ------
    ConfigError
        If `training.stardist.channels` names fewer than three levels.
    """
    own = StarDistSettings.of(settings.training)
    check_levels(own.channels, "training.stardist.channels")
    base = make_plan(
        settings.training, survey, n_classes, settings=UNetSettings(channels=own.channels), network=network
    )
    more = base.network.model_copy(update={"more_channels": 1 + own.rays})
    fields = {name: getattr(base, name) for name in TrainingPlan.model_fields} | {"network": more}
    return StarDistPlan(**fields, rays=own.rays, radius_um=radius_um, whole_seen=whole_seen)


def outline(settings: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Outline:
    """Return what a training on a snapshot would be; no image is read. Raises as `survey_snapshot` does."""
    survey = survey_snapshot(settings, volumes, snapshot)
    plan = make_stardist_plan(settings, survey, snapshot.n_classes, radius_um=1.0, whole_seen=True)
    steps = plan.iterations * plan.members
    return Outline(len(snapshot.items), plan.window_zyx, steps, plan.members, "every network trains on all patches")
