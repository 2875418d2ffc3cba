"""What a training of nnU-Net depends on, as records. Imports neither torch nor nnU-Net."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescueseg.campaign import VolumeFolder
from rescueseg.config import CampaignConfig, TrainingConfig
from rescueseg.geometry import ZYX, Spacing, isotropic_shape, round_up, same_spacing, zyx
from rescueseg.models.inference_window import plan_inference_window
from rescueseg.models.nnunet.folds import Case, choose_folds, group_cases
from rescueseg.models.nnunet.settings import NnUNetSettings
from rescueseg.models.survey import Survey, scratch_reason, survey_snapshot
from rescueseg.models.trainer import Outline
from rescueseg.models.unet.plan import PROFILES as UNET_PROFILES
from rescueseg.records import Record, Snapshot

NAME = "nnunet"
FORMAT = 6
"""Raised when the same request would train another model."""
DATASET = "Dataset001_rescueseg"
ARCHITECTURES = {
    "plain": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "residual": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
PLANNERS = {
    "default": "ExperimentPlanner",
    "resenc_m": "nnUNetPlannerResEncM",
    "resenc_l": "nnUNetPlannerResEncL",
    "resenc_xl": "nnUNetPlannerResEncXL",
}


@dataclass(frozen=True)
class Profile:
    """Defaults for a kind of machine.

    Parameters
    ----------
    iterations : int
        Optimiser steps.
    channels : tuple of int, optional
        Features per level; nnU-Net's own when None.
    strided : bool
        Leave out the level at full resolution, which takes three quarters of a CPU's time; its logits are interpolated,
        before the loss too.
    dropout : float
        Share of every layer's channels; the normalisation behind it makes up for the rest.
    learning_rate : float, optional
        Peak for AdamW with a short warm-up and a cosine; None for nnU-Net's SGD with a polynomial decay, which is made
        for 250,000 steps.
    epoch_steps : int, optional
        Steps of an epoch; those between two checkpoints when None.
    validation_steps : int, optional
        Steps of an epoch's pseudo-validation; a tenth of its training steps when None.
    checkpoint_seconds : float
        The end of an epoch writes no checkpoint before so many seconds have passed since the last.
    """

    iterations: int
    channels: tuple[int, ...] | None
    strided: bool
    dropout: float
    learning_rate: float | None
    epoch_steps: int | None = None
    validation_steps: int | None = None
    checkpoint_seconds: float = 0.0


PROFILES: dict[str, Profile] = {
    "cpu": Profile(2500, (16, 32, 64, 128), True, 0.1, 1e-2),
    "gpu": Profile(250_000, None, False, 0.1, None, epoch_steps=250, validation_steps=50, checkpoint_seconds=180.0),
}


class NnUNetNetwork(Record):
    """Everything the network's weights depend on; axes in the network's order."""

    architecture: str
    """Key of `ARCHITECTURES`."""
    in_channels: int
    n_classes: int
    features: tuple[int, ...]
    strides: tuple[ZYX, ...]
    kernels: tuple[ZYX, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    dropout: float

    @classmethod
    def read(cls, architecture: Mapping[str, Any], in_channels: int, n_classes: int, dropout: float) -> NnUNetNetwork:
        """Return the network of one configuration of nnU-Net's plans."""
        names = {path: name for name, path in ARCHITECTURES.items()}
        kwargs = architecture["arch_kwargs"]
        return cls(
            architecture=names[architecture["network_class_name"]],
            in_channels=in_channels,
            n_classes=n_classes,
            features=tuple(kwargs["features_per_stage"]),
            strides=tuple(zyx(s) for s in kwargs["strides"]),
            kernels=tuple(zyx(k) for k in kwargs["kernel_sizes"]),
            encoder_blocks=tuple(kwargs.get("n_conv_per_stage") or kwargs["n_blocks_per_stage"]),
            decoder_blocks=tuple(kwargs["n_conv_per_stage_decoder"]),
            dropout=dropout,
        )

    def arguments(self) -> dict[str, Any]:
        """Return `arch_kwargs` of nnU-Net's plans: names where nnU-Net imports."""
        blocks = "n_conv_per_stage" if self.architecture == "plain" else "n_blocks_per_stage"
        return {
            "n_stages": len(self.features),
            "features_per_stage": list(self.features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(k) for k in self.kernels],
            "strides": [list(s) for s in self.strides],
            blocks: list(self.encoder_blocks),
            "n_conv_per_stage_decoder": list(self.decoder_blocks),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": "torch.nn.modules.dropout.Dropout3d" if self.dropout else None,
            "dropout_op_kwargs": {"p": self.dropout} if self.dropout else None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }

    @property
    def total_stride(self) -> tuple[int, int, int]:
        """What a window must be a multiple of."""
        return zyx(math.prod(s[a] for s in self.strides) for a in range(3))

    def with_levels(self, strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]) -> NnUNetNetwork:
        """Return the network with the levels of another window; features and blocks go on as nnU-Net's planners do."""
        levels = len(strides)

        def longer(values: tuple[int, ...], count: int) -> tuple[int, ...]:
            return (*values, *[values[-1]] * max(0, count - len(values)))[:count]

        return self.model_copy(
            update={
                "features": longer(self.features, levels),
                "strides": tuple(zyx(s) for s in strides),
                "kernels": tuple(zyx(k) for k in kernels),
                "encoder_blocks": longer(self.encoder_blocks, levels),
                "decoder_blocks": longer(self.decoder_blocks or (1,), levels - 1),
            }
        )

    def cut(self, channels: Sequence[int] | None, strided: bool = False) -> NnUNetNetwork:
        """Return the network with other features, at most as deep as there are, and perhaps without its finest level.

        A network without its finest level keeps at least three others, so that it has coarser outputs beside its own: a
        list, of which `with_full_size` in `loop.py` brings the first to the size of the images.
        """
        depth = min(len(channels or self.features), len(self.features) - 1)
        first = int(strided and depth > 2)
        features = tuple(channels) if channels else self.features[first:]
        levels = min(len(features), len(self.features) - first)
        return self.model_copy(
            update={
                "features": features[:levels],
                "strides": self.strides[first : first + levels],
                "kernels": self.kernels[first : first + levels],
                "encoder_blocks": self.encoder_blocks[first : first + levels],
                "decoder_blocks": self.decoder_blocks[: levels - 1],
            }
        )


class NnUNetPlan(Record):
    """Everything a finished model needs to predict, and how it was trained."""

    network: NnUNetNetwork
    profile: str = ""
    """Key of `PROFILES`; models of format 1 do not say."""
    planner: str
    configuration: str
    spacing_um_zyx: Spacing
    """Working spacing; volumes of another spacing are resampled to it."""
    axes: tuple[int, int, int]
    """Which of z, y, x the network's first, second and third axis are."""
    window_zyx: ZYX
    inference_window_zyx: ZYX
    batch_size: int
    iterations: int
    members: int = 1
    """Networks of an ensemble."""

    @property
    def total_stride_zyx(self) -> ZYX:
        """What a window must be a multiple of."""
        return self.to_zyx(self.network.total_stride)

    def to_zyx(self, ordered: Sequence[int]) -> ZYX:
        """Return three numbers of the network's axes in the order z, y, x."""
        return zyx(ordered[self.axes.index(axis)] for axis in range(3))


class Job(Record):
    """One training, as the worker gets it."""

    identity: str
    campaign_url: str
    config: dict[str, Any]
    """Settings of the campaign."""
    snapshot: Snapshot
    work_dir: str
    seed: int
    device: str
    warm_start: str | None
    spacing_um_zyx: Spacing
    in_channels: int
    volume_zyx: ZYX
    field_zyx: ZYX

    @property
    def folder(self) -> Path:
        """Where nnU-Net's own folders lie; made anew by every run."""
        return Path(self.work_dir, "nnunet")


def peak_rate(config: TrainingConfig) -> float | None:
    """Return the peak of the learning rate; None for nnU-Net's own schedule."""
    return config.learning_rate or PROFILES[config.profile].learning_rate


def dropout(config: TrainingConfig) -> float:
    """Return the share of channels that is dropped."""
    return PROFILES[config.profile].dropout if config.dropout is None else config.dropout


def training_window(config: TrainingConfig, survey: Survey) -> ZYX | None:
    """Return the window to plan for, zyx; None to leave it to nnU-Net."""
    if config.window_zyx is not None or config.profile == "gpu":
        return config.window_zyx
    return isotropic_shape(survey.spacing_um_zyx, UNET_PROFILES[config.profile].window_voxels, survey.field_zyx)


def inference_scale(config: TrainingConfig) -> float:
    """Return the voxels of the inference window per voxel of the training window."""
    return UNET_PROFILES[config.profile].inference_scale


def warm_start_plan(
    earlier: NnUNetPlan, scratch: NnUNetPlan, config: TrainingConfig, survey: Survey
) -> tuple[NnUNetPlan, str]:
    """Return the plan of a training that may start from another model, and why it does not; empty where it does.

    What the weights do not depend on follows the settings, such as the windows and the batch. Where no setting fixes
    the depth of the network, it is the earlier one's, which nnU-Net planned for the images of that training.

    Parameters
    ----------
    earlier, scratch : NnUNetPlan
        Of the model to start from, and of a training from scratch.
    config : TrainingConfig
        Settings of the training.
    survey : Survey
        Of the training set.
    """
    old, new = earlier.network, scratch.network
    fixed = NnUNetSettings.of(config).channels is not None or PROFILES[config.profile].channels is not None
    levels = None if fixed else min(len(old.features), len(new.features))
    spacings = earlier.spacing_um_zyx, scratch.spacing_um_zyx
    reason = scratch_reason(
        {
            "number of image channels": (old.in_channels, new.in_channels),
            "number of classes": (old.n_classes, new.n_classes),
            "training.profile": (earlier.profile, scratch.profile),
            "training.nnunet.planner": (earlier.planner, scratch.planner),
            "training.nnunet.configuration": (earlier.configuration, scratch.configuration),
            "training.nnunet.channels": (old.features[:levels], new.features[:levels]),
            "working spacing": (scratch.configuration == "3d_lowres" or same_spacing(*spacings), True),
        }
    )
    if not reason and config.window_zyx is not None:
        reason = scratch_reason({"training.window_zyx": ((old.strides, old.kernels), (new.strides, new.kernels))})
    if reason:
        return scratch, reason
    window = round_up(scratch.window_zyx, earlier.total_stride_zyx)
    return scratch.model_copy(
        update={
            "network": old.model_copy(update={"dropout": new.dropout}),
            "axes": earlier.axes,
            "window_zyx": window,
            "inference_window_zyx": plan_inference_window(
                survey, window, earlier.total_stride_zyx, inference_scale(config)
            ),
        }
    ), ""


def outline(settings: CampaignConfig, volumes: VolumeFolder, snapshot: Snapshot) -> Outline:
    """Return what a training of nnU-Net on a snapshot would be; no image is read. Raises as `survey_snapshot` does."""
    config = settings.training
    window = training_window(config, survey_snapshot(settings, volumes, snapshot))
    steps = (config.iterations or PROFILES[config.profile].iterations) * config.members
    cases = [Case(i.ticket_id, i.volume_id, i.read_box, i.box.size) for i in snapshot.items]
    places = volumes.shared_places()
    folds, groups = choose_folds(cases, config.members, places), len(group_cases(cases, places))
    text = "every network trains on all patches"
    if folds:
        text = "cross-validation: " + ", ".join(f"{len(f['train'])} train and {len(f['val'])} validate" for f in folds)
    elif config.members > 1:
        text += f": {groups} groups that share no voxel are too few for {config.members} folds"
    return Outline(len(cases), window, steps, config.members, text)
