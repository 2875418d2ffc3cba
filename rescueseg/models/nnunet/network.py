"""nnU-Net's networks, built from `NnUNetNetwork`, with dropout drawn from keys."""

from __future__ import annotations

import pydoc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rescueseg.models.nnunet.plan import ARCHITECTURES, NnUNetNetwork
from rescueseg.models.split_network import SampleKey, SplitNetwork
from rescueseg.models.weights import set_all_weights
from rescueseg.randomness import keyed_generator


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights once each; nnU-Net registers every layer under up to four names."""
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load what `own_weights` returned.

    Raises
    ------
    ValueError
        If names or shapes are those of another architecture.
    """
    set_all_weights(network, own_weights(network), weights)


class KeyedDropout(nn.Module):
    """Drops whole channels (Tompson et al. 2015, arXiv 1411.4280) as the keys of the batch say, or as a mask drawn before.

    Parameters
    ----------
    rate : float
        Share of the channels that is dropped.
    site : int
        Number of the layer, part of the key.
    channels : int
        Of the layer's input.
    """

    def __init__(self, rate: float, site: int, channels: int) -> None:
        super().__init__()
        self.rate, self.site, self.channels = rate, site, channels
        self.keys: Sequence[SampleKey] = ()
        self.kept: Tensor | None = None
        """Which channels stay, from `draw`; wins over the keys."""

    def draw(self, keys: Sequence[SampleKey], device: torch.device) -> Tensor:
        """Return which channels stay, boolean (n, channels), one row per key."""
        rows = [keyed_generator(*key, "dropout", self.site).random(self.channels) for key in keys]
        return torch.from_numpy(np.stack(rows) >= self.rate).to(device)

    def forward(self, features: Tensor) -> Tensor:
        """Drop channels of (n, c, z, y, x), one key per sample; nothing without keys and mask."""
        kept = self.kept
        if kept is None:
            if not self.keys:
                return features
            kept = self.draw(self.keys, features.device)
        return features * (kept.to(features) / (1.0 - self.rate))[..., None, None, None]


class MaskedNetwork(SplitNetwork):
    """A network of nnU-Net as functions of an image and of dropout masks: there is a site in every layer, nothing is shared.

    Parameters
    ----------
    network : nn.Module
        From `build_network`; its dropout is replaced.
    rate : float
        Share of the channels that is dropped.
    """

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__()
        self.network = network
        self._sites = key_dropout(network, rate)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the image itself."""
        return (image,)

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits (n, K + 1, z, y, x) at the resolution of the network's first level."""
        for i, site in enumerate(self._sites):
            site.kept = None if masks is None else masks[i]
        logits: Tensor = self.network(features[0])
        return logits

    def dropout_masks(self, keys: Sequence[SampleKey], device: torch.device) -> tuple[Tensor, ...]:
        """Return which channels stay, boolean (n, channels) per dropout site."""
        return tuple(site.draw(keys, device) for site in self._sites)


def build_network(plan: NnUNetNetwork) -> nn.Module:
    """Return the network without deep supervision; only architectures that this package names are built."""
    arguments: dict[str, Any] = plan.arguments()
    for name in ("conv_op", "norm_op", "dropout_op", "nonlin"):
        arguments[name] = pydoc.locate(arguments[name]) if arguments[name] else None
    network: nn.Module = pydoc.locate(ARCHITECTURES[plan.architecture])(  # type: ignore[operator]
        input_channels=plan.in_channels, num_classes=plan.n_classes + 1, deep_supervision=False, **arguments
    )
    return network


def trained_network(plan: NnUNetNetwork, weights: dict[str, Tensor]) -> nn.Module:
    """Return a network with the weights of a model; raises as `load_weights`."""
    network = build_network(plan)
    load_weights(network, weights)
    return network


def key_dropout(network: nn.Module, rate: float) -> tuple[KeyedDropout, ...]:
    """Replace every dropout layer by one that is drawn from keys, and return them in their order."""
    sites: dict[int, KeyedDropout] = {}
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout3d):
                if id(child) not in sites:
                    channels = next(m.out_channels for m in module.modules() if isinstance(m, nn.Conv3d))
                    sites[id(child)] = KeyedDropout(rate, len(sites), channels)
                setattr(module, name, sites[id(child)])
    return tuple(sites.values())
