"""Chooses window, strides, kernels and working spacing from the physics of the data. Imports neither torch nor MONAI.

The rules are those of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), with a strided first level
that makes a CPU fast enough: an axis is halved at a level only while it is about as fine as the finest one, and is
convolved over only once it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, InferenceConfig, TrainingConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import SAME_SPACING, ZYX, Spacing, isotropic_shape, round_up, same_spacing, zyx
from rescueseg.models.inference_window import plan_inference_window
from rescueseg.models.survey import Survey, scratch_reason, survey_snapshot
from rescueseg.models.trainer import Outline
from rescueseg.models.unet.settings import UNetSettings
from rescueseg.records import Record, Snapshot

_POOL_RATIO = 1.5
_KERNEL_RATIO = 2.5
_SMALLEST = 4
_DROPOUT = 0.2
_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Profile:
    """Defaults for a kind of machine.

    `tests/benchmarks/training_profile.py` measured that of a CPU, at four minutes of one core.
    """

    channels: tuple[int, ...]
    window_voxels: int
    batch_size: int
    iterations: int
    inference_scale: float
    """Voxels of the inference window per voxel of the training window."""


PROFILES: dict[str, Profile] = {
    "cpu": Profile((16, 32, 64, 128), 40_000, 2, 2500, 8.0),
    "gpu": Profile((32, 64, 128, 256, 320), 64 * 128 * 128, 2, 3000, 2.0),
}


class NetworkPlan(Record):
    """Everything the network's weights depend on."""

    in_channels: int
    n_classes: int
    channels: tuple[int, ...]
    strides: tuple[ZYX, ...]
    """Of each level; the first is the stem's."""
    kernels: tuple[ZYX, ...]
    dropout: float
    supervised: int = 0
    """Decoder stages below the finest that get a loss of their own."""
    border_distance: bool = False
    """Whether the last layer has one more channel, for the distance to the border of a voxel's own object."""
    more_channels: int = 0
    """Channels behind all others, computed at the stem's resolution: what another family makes outputs of."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the border distance and more channels where there are none, so that older digests stay."""
        fields = _without(handler(self), "border_distance", self.border_distance)
        return _without(fields, "more_channels", self.more_channels)

    @property
    def total_stride_zyx(self) -> ZYX:
        """What a window must be a multiple of."""
        return zyx(math.prod(s[a] for s in self.strides) for a in range(3))


class TopologyPlan(Record):
    """What the loss adds for topology."""

    cldice: float
    """Weight of soft clDice."""
    betti: float
    """Weight of Betti matching."""
    begin: float
    """Share of the steps after which they count: a mask must be there before its topology can be mended."""
    every: int
    """They count, so many times as much, in every so many steps, for they cost more than the network."""


class TrainingPlan(Record):
    """Everything a training depends on beside its data and its seed."""

    network: NetworkPlan
    spacing_um_zyx: Spacing
    """Working spacing; volumes of another spacing are resampled to it."""
    window_zyx: ZYX
    inference_window_zyx: ZYX
    batch_size: int
    iterations: int
    learning_rate: float
    members: int = 1
    """Networks of the ensemble."""
    ema: float = 0.0
    """Decay of the moving average of the weights; 0 for none."""
    balanced: bool = False
    """Whether rare classes weigh more in the cross-entropy."""
    topology: TopologyPlan | None = None
    border_um: float | None = None
    """Largest border distance that is learned; None where none is."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the largest border distance out where there is none, so that older digests stay."""
        return _without(handler(self), "border_um", self.border_um)

    @property
    def square(self) -> bool:
        """Whether y and x may be exchanged: equal spacing and equal window."""
        _, y, x = self.spacing_um_zyx
        windows = (self.window_zyx, self.inference_window_zyx)
        return abs(y - x) <= SAME_SPACING * max(y, x) and all(w[1] == w[2] for w in windows)


def _without(fields: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    """Return fields without the one that is named, unless it has a value."""
    return fields if value else {key: field for key, field in fields.items() if key != name}


def choose_strides(spacing_um_zyx: Spacing, limit_zyx: ZYX, levels: int) -> tuple[tuple[ZYX, ...], tuple[ZYX, ...]]:
    """Return stride and kernel of each level.

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Working spacing.
    limit_zyx : tuple of int
        Training window: no axis is halved below 4 voxels of it.
    levels : int
        Depth of the network.

    Returns
    -------
    strides, kernels : tuple of tuple of int
        Each stride 1 or 2, each kernel 1 or 3.

    Examples
    --------
    Planes four times as far apart as pixels: z is halved, and convolved over, only once y and x are as coarse.

    >>> strides, kernels = choose_strides((0.4, 0.1, 0.1), (32, 128, 128), 3)
    >>> strides
    ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    >>> kernels
    ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    """
    spacing, size = list(spacing_um_zyx), list(limit_zyx)
    strides, kernels = [], []
    for _ in range(levels):
        finest = min(spacing)
        kernels.append(zyx(3 if s <= _KERNEL_RATIO * finest else 1 for s in spacing))
        able = [math.ceil(n / 2) >= _SMALLEST for n in size]
        target = min((s for s, a in zip(spacing, able, strict=True) if a), default=math.inf)
        stride = [2 if a and s <= _POOL_RATIO * target else 1 for s, a in zip(spacing, able, strict=True)]
        strides.append(zyx(stride))
        spacing = [s * t for s, t in zip(spacing, stride, strict=True)]
        size = [math.ceil(n / t) for n, t in zip(size, stride, strict=True)]
    return tuple(strides), tuple(kernels)


def warm_start_network(
    earlier: TrainingPlan, scratch: TrainingPlan, config: TrainingConfig, family: str = UNetSettings.family
) -> tuple[NetworkPlan | None, str]:
    """Return the network of a model to start from, or None and why it does not fit.

    What its weights do not depend on follows the settings; so does its depth along each axis, if they name a window. Only
    the border distance may be learned anew, or no more, by a network that goes on with all other weights.

    Parameters
    ----------
    earlier, scratch : TrainingPlan
        Of the model to start from, and of a training from scratch.
    config : TrainingConfig
        Settings of the training.
    family : str
        Whose table names the channels.
    """
    old, new = earlier.network, scratch.network
    spacings = earlier.spacing_um_zyx, scratch.spacing_um_zyx
    reason = scratch_reason(
        {
            "number of image channels": (old.in_channels, new.in_channels),
            "number of classes": (old.n_classes, new.n_classes),
            f"training.{family}.channels": (old.channels, new.channels),
            "training.unet.deep_supervision": (old.supervised, new.supervised),
            "working spacing": (same_spacing(*spacings), True),
        }
    )
    if not reason and config.window_zyx is not None:
        reason = scratch_reason({"training.window_zyx": ((old.strides, old.kernels), (new.strides, new.kernels))})
    updated = {"dropout": new.dropout, "border_distance": new.border_distance}
    return (None, reason) if reason else (old.model_copy(update=updated), "")


def check_levels(channels: tuple[int, ...] | None, where: str) -> None:
    """Refuse a network of fewer than three levels; None leaves the choice to the plan.

    Raises
    ------
    ConfigError
        It names the setting, `where`.
    """
    if channels is not None and len(channels) < 3:
        raise ConfigError("too few levels", where=where, todo="Name at least three, such as [16, 32, 64]")


def make_plan(
    config: TrainingConfig,
    survey: Survey,
    n_classes: int,
    *,
    settings: UNetSettings | None = None,
    network: NetworkPlan | None = None,
    topology: bool = False,
    border_um: float | None = None,
) -> TrainingPlan:
    """Plan a training.

    Parameters
    ----------
    config : TrainingConfig
        Its settings win over the plan's own choice.
    survey : Survey
        Of the training set. The smallest extent of its volumes bounds the inference window; a training window longer
        than what may be read around a patch would hold padding alone.
    n_classes : int
        Foreground classes.
    settings : UNetSettings, optional
        Likewise; those of the table ``[training.unet]`` when omitted.
    network : NetworkPlan, optional
        The network of a model to start from, used as it is.
    topology : bool
        Whether the loss has terms for topology.
    border_um : float, optional
        Largest border distance to learn; without it, none is.

    Examples
    --------
    Windows are about as long in micrometre along each axis, and multiples of the network's strides:

    >>> config = TrainingConfig.model_validate({"unet": {"channels": [8, 16, 32]}})
    >>> survey = Survey(1, spacing_um_zyx=(0.4, 0.1, 0.1), volume_zyx=(40, 512, 512), field_zyx=(16, 96, 96))
    >>> plan = make_plan(config, survey, n_classes=1)
    >>> plan.window_zyx, plan.inference_window_zyx, plan.network.total_stride_zyx
    ((14, 56, 56), (24, 112, 112), (2, 8, 8))
    """
    profile, spacing = PROFILES[config.profile], survey.spacing_um_zyx
    settings = UNetSettings.of(config) if settings is None else settings
    least_window = config.window_zyx or isotropic_shape(spacing, profile.window_voxels, survey.field_zyx)
    network = network or _plan_network(config, settings, survey, n_classes, least_window)
    network = network.model_copy(update={"border_distance": border_um is not None})
    multiple = network.total_stride_zyx
    window = round_up(least_window, multiple)
    weights = TopologyPlan(cldice=settings.cldice_weight, betti=settings.betti_weight, begin=0.5, every=2)
    return TrainingPlan(
        network=network,
        spacing_um_zyx=spacing,
        window_zyx=window,
        inference_window_zyx=plan_inference_window(survey, window, multiple, profile.inference_scale),
        batch_size=config.batch_size or profile.batch_size,
        iterations=config.iterations or profile.iterations,
        learning_rate=config.learning_rate or _LEARNING_RATE,
        members=config.members,
        ema=settings.ema,
        balanced=settings.balanced_classes,
        topology=weights if topology else None,
        border_um=border_um,
    )


def _plan_network(
    config: TrainingConfig, settings: UNetSettings, survey: Survey, n_classes: int, least_window: ZYX
) -> NetworkPlan:
    """Return the network of a training from scratch."""
    channels = settings.channels or PROFILES[config.profile].channels
    strides, kernels = choose_strides(survey.spacing_um_zyx, least_window, len(channels))
    return NetworkPlan(
        in_channels=survey.in_channels,
        n_classes=n_classes,
        channels=channels,
        strides=strides,
        kernels=kernels,
        dropout=_DROPOUT if config.dropout is None else config.dropout,
        supervised=len(channels) - 2 if settings.deep_supervision else 0,
    )


def outline(settings: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Outline:
    """Return what a training on a snapshot would be; no image is read. Raises as `survey_snapshot` does."""
    config, survey = settings.training, survey_snapshot(settings, volumes, snapshot)
    plan = make_plan(config, survey, snapshot.n_classes)
    steps = plan.iterations * plan.members
    return Outline(len(snapshot.items), plan.window_zyx, steps, plan.members, "every network trains on all patches")


def inference_window(plan: TrainingPlan, config: InferenceConfig) -> ZYX:
    """Return the inference window in voxels of the working spacing: the configured one, or the plan's."""
    if config.window_zyx is None:
        return plan.inference_window_zyx
    return round_up(config.window_zyx, plan.network.total_stride_zyx)
