"""What the networks of a predictor are: two functions of tensors, so that they can be traced, compiled and exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SampleKey = tuple[int | str, ...]
"""What a dropout mask derives from: in a prediction window, network, symmetry and sample."""


class SplitNetwork(nn.Module):
    """A network as what all dropout samples share and what each computes anew; nothing in either draws a number."""

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what all samples share, for a batch of images (n, c, z, y, x)."""
        raise NotImplementedError

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits of one sample (n, channels, z, y, x); nothing is dropped without masks."""
        raise NotImplementedError

    def dropout_masks(self, keys: Sequence[SampleKey], device: torch.device) -> tuple[Tensor, ...]:
        """Return the masks of a sample, one row per window, each drawn from the window's own key."""
        raise NotImplementedError
