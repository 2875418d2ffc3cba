"""What the networks of a predictor are: two functions of tensors, so that they can be traced, compiled and exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rescueseg.randomness import keyed_generator

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


def draw_channel_masks(
    keys: Sequence[SampleKey], sites: int, channels: int, rate: float, device: torch.device
) -> tuple[Tensor, ...]:
    """Return masks that drop whole channels (Tompson et al. 2015, arXiv 1411.4280), one row per key: 0 or 1 / (1 - rate).

    Parameters
    ----------
    keys : sequence of tuple
        A row depends on its own key alone, not on its place in the batch.
    sites, channels : int
        How many layers drop channels, and of how many.
    rate : float
        Share of the channels that is dropped.
    device : torch.device
        Where the masks go.

    Returns
    -------
    tuple of Tensor of float32, shape (n, channels)
        One per site; at least one channel of each row stays.

    Examples
    --------
    >>> [mask] = draw_channel_masks([(7, 0), (7, 1)], 1, 6, 0.5, torch.device("cpu"))
    >>> mask.tolist()
    [[2.0, 0.0, 2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]]
    """
    draws = np.stack([keyed_generator(*key, "dropout").random((sites, channels)) for key in keys])
    kept = draws >= rate
    np.put_along_axis(kept, draws.argmax(axis=-1, keepdims=True), True, axis=-1)
    rows = torch.from_numpy((kept / (1.0 - rate)).astype(np.float32))
    return rows.to(device).unbind(1)
