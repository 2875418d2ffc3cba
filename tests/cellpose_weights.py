"""Weights of Cellpose's network, written as Cellpose 3 writes them: random ones, and ones worked out by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from cellpose.resnet_torch import CPnet

CHANNELS = (6, 6)


def save_random(path: Path, channels: tuple[int, ...] = CHANNELS, seed: int = 0, in_channels: int = 2) -> str:
    """Save random weights, their batch norms as after a training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CPnet([in_channels, *channels], 3, 3)
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.2)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2)
    network.save_model(str(path))
    return str(path)


def save_without_diameter(path: Path, like: str) -> str:
    """Save the weights of another file as Cellpose once did, without how wide objects are."""
    state = torch.load(like, weights_only=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("diam")}, path)
    return str(path)


def save_climbing(path: Path, pixels: float, slope: float = 1.0, threshold: float = 0.5) -> str:
    """Save a network that says where the image is above a threshold, and as flow, times 5, its gradient times `slope`.

    The image passes the first level; the 3 × 3 kernels behind it give its gradient, in parts above and below zero since what
    follows cuts off below zero.
    """
    network = CPnet([2, *CHANNELS], 3, 3, diam_mean=pixels)
    weights = network.state_dict()
    for name, value in weights.items():
        if "running_var" in name or name.endswith(".0.weight"):  # of batch norms
            value.fill_(1)
        elif not name.startswith("diam"):
            value.zero_()
    weights["downsample.down.res_down_0.proj.1.weight"][0, 0] = 1
    weights["downsample.down.res_down_1.proj.1.bias"][0] = 1  # the style is divided by its length
    kernels = weights["upsample.up.res_up_0.conv.conv_1.conv.2.weight"]
    kernels[0, 0, 1, 1] = 1
    for channel, sign in ((1, 0.5), (2, -0.5)):
        kernels[channel, 0, 2, 1], kernels[channel, 0, 0, 1] = sign, -sign
        kernels[channel + 2, 0, 1, 2], kernels[channel + 2, 0, 1, 0] = sign, -sign
    said = weights["output.2.weight"][:, :, 0, 0]
    said[0, 1:3], said[1, 3:5] = (torch.tensor([1.0, -1.0]) * 5 * slope for _ in range(2))
    said[2, 0], weights["output.2.bias"][2] = 20.0, -20.0 * threshold
    network.save_model(str(path))
    return str(path)
