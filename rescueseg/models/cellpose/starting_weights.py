"""Weights of Cellpose 3 as the start of a training: whether they fit, and with as many image channels as the volumes have."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rescueseg.errors import TrainingError
from rescueseg.models.cellpose.settings import CellposeSettings
from rescueseg.models.cellpose.weights_file import CellposeWeights
from rescueseg.models.trainer import TrainingRequest

_FIRST = "downsample.down.res_down_0."
_NORM_EPSILON = 1e-5
"""Of Cellpose's batch norms."""


def starting_weights(request: TrainingRequest) -> CellposeWeights | None:
    """Return the weights that `training.cellpose.weights` names, for images of as many channels as the training reads.

    Raises
    ------
    TrainingError
        If they cannot be read, or belong to another network than the settings and the volumes ask for.
    StorageError
        If the file cannot be read.
    """
    settings = CellposeSettings.of(request.config.training)
    weights = settings.read_weights()
    if weights is None:
        return None
    if settings.channels is not None and settings.channels != weights.channels:
        raise TrainingError(
            f"its network has {weights.channels} channels, and training.cellpose.channels asks for {settings.channels}",
            where=str(settings.weights),
            todo="Leave training.cellpose.channels out, or training.cellpose.weights",
        )
    records = (request.volumes.record(item.volume_id) for item in request.snapshot.items)
    channels = max((record.channels for record in records), default=1)
    if channels > weights.in_channels:
        raise TrainingError(
            f"its network takes {weights.in_channels} image channels, and the volumes have {channels}",
            where=str(settings.weights),
            todo="Leave training.cellpose.weights out",
        )
    return with_channels(weights, channels)


def with_channels(weights: CellposeWeights, channels: int) -> CellposeWeights:
    """Return weights for images of fewer channels: they say what they said of images whose other channels are zero.

    Cellpose's networks take two channels, and see an image of one with zeros as the second. What these add goes to the bias; it
    differs only at the border of a plane, beyond which convolutions see another zero.
    """
    if channels == weights.in_channels:
        return weights
    tensors = dict(weights.tensors)
    for block, is_cut in (("proj", False), ("conv.conv_0", True)):
        norm, conv = f"{_FIRST}{block}.0.", f"{_FIRST}{block}.{2 if is_cut else 1}."
        mean, variance = tensors[norm + "running_mean"], tensors[norm + "running_var"]
        zeros = tensors[norm + "bias"] - tensors[norm + "weight"] * mean / torch.sqrt(variance + _NORM_EPSILON)
        said: Tensor = zeros.clamp(min=0) if is_cut else zeros  # of a zero, behind norm and ReLU
        kernel = tensors[conv + "weight"]
        added = (kernel.sum(dim=(2, 3))[:, channels:] * said[channels:]).sum(dim=1)
        tensors[conv + "bias"] = tensors[conv + "bias"] + added
        tensors[conv + "weight"] = kernel[:, :channels].clone()
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[norm + part] = tensors[norm + part][:channels].clone()
    return replace(weights, tensors=tensors, in_channels=channels)
