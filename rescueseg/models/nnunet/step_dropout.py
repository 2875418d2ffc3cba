"""nnU-Net's dropout in training, drawn from a generator of its own: the global one belongs to the batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepDropout(nn.Dropout3d):
    """Drops whole channels in training, as `nn.Dropout3d` does, by the numbers of a generator that is set before each step.

    Parameters
    ----------
    rate : float
        Share of the channels that is dropped.
    generator : torch.Generator
        On the processor.
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__(rate)
        self.generator = generator

    def forward(self, features: Tensor) -> Tensor:
        """Drop channels of (n, c, z, y, x); nothing while nothing is trained."""
        if not self.training:
            return features
        kept = features.new_empty(features.shape[:2]).bernoulli_(1.0 - self.p, generator=self.generator)
        return features * kept.div_(1.0 - self.p)[..., None, None, None]


def draw_dropout_from(generator: torch.Generator, network: nn.Module) -> None:
    """Let all dropout layers of a network draw from a generator, in the order in which they compute."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout3d):
                setattr(module, name, StepDropout(child.p, generator))
