"""Chooses planes, working spacing and windows from the objects' size and the data. Imports neither torch nor Cellpose.

Cellpose learns from planes, and sees a volume as planes of three orientations (Stringer et al. 2021,
doi:10.1038/s41592-020-01018-x). Images are resampled so that the median object is as wide as the network expects; along z
too, so that planes of every orientation look alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, InferenceConfig, TrainingConfig
from rescueseg.errors import ConfigError
from rescueseg.geometry import SAME_SPACING, ZYX, Spacing, round_up, zyx
from rescueseg.models.cellpose.sections import measure_diameter, plane_axes
from rescueseg.models.cellpose.settings import CellposeSettings
from rescueseg.models.inference_window import plan_inference_window
from rescueseg.models.survey import Survey, survey_snapshot
from rescueseg.models.trainer import Outline
from rescueseg.records import Record, Snapshot

_NEAR = 1.25
"""An axis whose voxels are at most so many times as long or short as asked for stays as it is."""
_DROPOUT = 0.2
_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Profile:
    """Defaults for a kind of machine.

    Those of a CPU: on touching nuclei (12 patches, 240 s of processor time) objects 12 pixels wide and half of the channels
    gave the same objects as 17 pixels and (16, 32, 64, 128), for a sixth of the inference's time; one seed, three boxes. Those
    of a GPU are Cellpose's own.

    Parameters
    ----------
    channels : tuple of int
        Per level.
    pixels : float
        Width of the median object, in pixels.
    side : int
        Of a training plane, in pixels.
    batch_size, iterations : int
        Planes of a step, and steps.
    inference_voxels : int
        About how many voxels an inference window holds.
    """

    channels: tuple[int, ...]
    pixels: float
    side: int
    batch_size: int
    iterations: int
    inference_voxels: int


PROFILES: dict[str, Profile] = {
    "cpu": Profile((8, 16, 32, 64), 12.0, 64, 8, 2000, 300_000),
    "gpu": Profile((32, 64, 128, 256), 30.0, 224, 8, 3000, 2_000_000),
}


@dataclass(frozen=True)
class Start:
    """What weights that a training starts from decide of its plan.

    Parameters
    ----------
    channels : tuple of int
        Per level.
    pixels : float
        Width of an object, in pixels, in the images that they have learned from.
    """

    channels: tuple[int, ...]
    pixels: float


class CellposePlan(Record):
    """Everything a training depends on beside its data and its seed."""

    in_channels: int
    channels: tuple[int, ...]
    dropout: float
    diameter_um: float
    """Of a typical object in a plane."""
    axes: tuple[int, ...]
    """Which of z, y, x the planes are perpendicular to: one, or all three."""
    spacing_um_zyx: Spacing
    """Working spacing; volumes of another spacing are resampled to it."""
    side: int
    """Of a training plane, in pixels of the working spacing."""
    inference_window_zyx: ZYX
    batch_size: int
    """Planes of a step, as many of each orientation."""
    iterations: int
    learning_rate: float
    members: int = 1
    """Networks of the ensemble."""

    @property
    def n_classes(self) -> int:
        """One: cells."""
        return 1

    @property
    def multiple_zyx(self) -> ZYX:
        """What a window must be a multiple of: every level but the first halves the axes of the planes."""
        return zyx(1 if self.axes == (a,) else 2 ** (len(self.channels) - 1) for a in range(3))

    @property
    def square(self) -> bool:
        """Whether y and x may be exchanged: equal spacing, equal windows, and as many planes along both."""
        _, y, x = self.spacing_um_zyx
        equal = self.inference_window_zyx[1] == self.inference_window_zyx[2]
        return abs(y - x) <= SAME_SPACING * max(y, x) and equal and self.axes in ((0,), (0, 1, 2))

    @property
    def window_zyx(self) -> ZYX:
        """The training window: a plane, or the cube that planes of all three orientations are as long as."""
        return zyx(1 if self.axes == (a,) else self.side for a in range(3))


def working_spacing(spacing_um_zyx: Spacing, wish_um: float, axes: tuple[int, ...]) -> Spacing:
    """Return the working spacing: as wished in the planes, but nowhere finer than the finest voxel.

    Parameters
    ----------
    spacing_um_zyx : tuple of float
        Of the data.
    wish_um : float
        The wish.
    axes : tuple of int
        What the planes are perpendicular to; a single one keeps its spacing.

    Examples
    --------
    >>> working_spacing((0.5, 0.2, 0.2), 0.3, (0, 1, 2)), working_spacing((1.0, 0.2, 0.2), 0.1, (0,))
    ((0.3, 0.3, 0.3), (1.0, 0.2, 0.2))
    """
    in_plane = [s for a, s in enumerate(spacing_um_zyx) if axes != (a,)]
    wish = max(wish_um, min(in_plane))
    z, y, x = (s if axes == (a,) or 1 / _NEAR <= s / wish <= _NEAR else wish for a, s in enumerate(spacing_um_zyx))
    return z, y, x


def make_plan(
    config: TrainingConfig,
    survey: Survey,
    diameter_um: float,
    axes: tuple[int, ...],
    data_um_zyx: Spacing | None = None,
    start: Start | None = None,
) -> CellposePlan:
    """Plan a training.

    Parameters
    ----------
    config : TrainingConfig
        Its settings, and those of the family in it, win over the plan's own choice.
    survey : Survey
        Of the training set, at the working spacing.
    diameter_um : float
        Of a typical object.
    axes : tuple of int
        What the planes are perpendicular to.
    data_um_zyx : tuple of float, optional
        Spacing of the data, where it is not the working spacing.
    start : Start, optional
        Where weights from elsewhere are the start.

    Raises
    ------
    ConfigError
        If `training.cellpose.channels` names fewer than two levels.
    """
    profile, settings = PROFILES[config.profile], CellposeSettings.of(config)
    channels = settings.channels or (start.channels if start else profile.channels)
    if len(channels) < 2:
        where = "training.cellpose.channels"
        raise ConfigError("too few levels", where=where, todo="Name at least two, such as [16, 32]")
    free = [a for a in range(3) if axes != (a,)]
    longest = max(survey.field_zyx[a] for a in free)
    wish = min(profile.side, longest) if config.window_zyx is None else max(config.window_zyx[a] for a in free)
    multiple = 2 ** (len(channels) - 1)
    plan = CellposePlan(
        in_channels=survey.in_channels,
        channels=channels,
        dropout=_DROPOUT if config.dropout is None else config.dropout,
        diameter_um=diameter_um,
        axes=axes,
        spacing_um_zyx=survey.spacing_um_zyx,
        side=math.ceil(wish / multiple) * multiple,
        inference_window_zyx=(1, 1, 1),
        batch_size=config.batch_size or profile.batch_size,
        iterations=config.iterations or profile.iterations,
        learning_rate=config.learning_rate or _LEARNING_RATE,
        members=config.members,
    )
    return plan.model_copy(update={"inference_window_zyx": _inference_window(plan, survey, profile, data_um_zyx)})


def _inference_window(plan: CellposePlan, survey: Survey, profile: Profile, data_um_zyx: Spacing | None) -> ZYX:
    """Return the inference window; in voxels of the data it is rounded, so it is planned for two of them more."""
    if data_um_zyx is not None and data_um_zyx != survey.spacing_um_zyx:
        ratios = [d / s for d, s in zip(data_um_zyx, survey.spacing_um_zyx, strict=True)]
        longer = zyx(n + (math.ceil(2 * r) if r != 1 else 0) for n, r in zip(survey.volume_zyx, ratios, strict=True))
        survey = replace(survey, volume_zyx=longer)
    least = zyx(min(n, round_up(survey.volume_zyx, plan.multiple_zyx)[a]) for a, n in enumerate(plan.window_zyx))
    scale = max(1.0, profile.inference_voxels / math.prod(least))
    return plan_inference_window(survey, least, plan.multiple_zyx, scale)


def plan_training(
    settings: CampaignConfig,
    volumes: VolumeFolder,
    snapshot: Snapshot,
    diameter_um: float | None = None,
    start: Start | None = None,
) -> CellposePlan:
    """Plan the training of a snapshot.

    Parameters
    ----------
    settings : CampaignConfig
        Of the campaign.
    volumes : VolumeFolder
        Its volumes.
    snapshot : Snapshot
        The training set; its labels are read, no image is.
    diameter_um : float, optional
        Of a typical object, where the settings name none; measured when omitted.
    start : Start, optional
        Where weights from elsewhere are the start.

    Raises
    ------
    TrainingError
        If the snapshot is empty, or its volumes differ in their number of channels.
    ConfigError
        If `training.cellpose.channels` names fewer than two levels.
    StorageError
        If a label array is damaged.
    """
    config, survey = settings.training, survey_snapshot(settings, volumes, snapshot)
    pixels, finest = start.pixels if start else PROFILES[config.profile].pixels, min(survey.spacing_um_zyx)
    diameter = CellposeSettings.of(config).diameter_um or diameter_um or measure_diameter(volumes, snapshot)
    diameter = diameter or pixels * finest
    axes, data_um_zyx = choose_axes(survey, diameter), survey.spacing_um_zyx
    if config.spacing_um_zyx is None:
        spacing = working_spacing(survey.spacing_um_zyx, float(f"{diameter / pixels:.4g}"), axes)
        named = settings.training.model_copy(update={"spacing_um_zyx": spacing})
        survey = survey_snapshot(settings.model_copy(update={"training": named}), volumes, snapshot)
    return make_plan(config, survey, diameter, axes, data_um_zyx, start)


def choose_axes(survey: Survey, diameter_um: float) -> tuple[int, ...]:
    """Return what the planes are perpendicular to: z, y and x, unless planes along one axis would hold too little.

    Where voxels are more than three times as long along one axis as along both others, interpolation between them would show
    what nobody has seen; where a volume is less deep than an object is wide, planes along that axis hold no whole one. Then all
    planes are perpendicular to it: what Cellpose's users do who segment a stack plane by plane.

    Examples
    --------
    >>> from dataclasses import replace
    >>> stack = Survey(1, spacing_um_zyx=(0.5, 0.2, 0.2), volume_zyx=(40, 512, 512), field_zyx=(24, 60, 60))
    >>> choose_axes(stack, 5.0), choose_axes(replace(stack, volume_zyx=(8, 512, 512)), 5.0)
    ((0, 1, 2), (0,))
    """
    depths = [n * s for n, s in zip(survey.volume_zyx, survey.spacing_um_zyx, strict=True)]
    if min(depths) < diameter_um:
        return (depths.index(min(depths)),)
    return plane_axes(survey.spacing_um_zyx)


def outline(settings: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Outline:
    """Return what a training on a snapshot would be; no image is read.

    Raises as `plan_training` does, and where the weights to start from cannot be used. Only then torch is imported.
    """
    weights = CellposeSettings.of(settings.training).read_weights()
    start = Start(weights.channels, weights.pixels) if weights else None
    plan = plan_training(settings, volumes, snapshot, start=start)
    steps = plan.iterations * plan.members
    return Outline(len(snapshot.items), plan.window_zyx, steps, plan.members, "every network trains on all patches")


def inference_window(plan: CellposePlan, config: InferenceConfig) -> ZYX:
    """Return the inference window in voxels of the working spacing: the configured one, or the plan's."""
    return plan.inference_window_zyx if config.window_zyx is None else round_up(config.window_zyx, plan.multiple_zyx)
