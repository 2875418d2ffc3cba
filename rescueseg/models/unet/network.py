"""A U-Net with a strided stem and dropout in its last stages only, made of MONAI blocks.

`features` is deterministic and does almost all the work; `head` holds every dropout site. Monte-Carlo dropout (Gal
and Ghahramani 2016, arXiv 1506.02142) therefore costs one `features` and, per sample, one cheap `head`. The masks
drop whole channels (Tompson et al. 2015, arXiv 1411.4280) and are drawn from a key, never from a global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from rescueseg.models.split_network import SampleKey, SplitNetwork, draw_channel_masks
from rescueseg.models.unet.plan import NetworkPlan
from rescueseg.models.weights import first_weights, set_all_weights

_NORM = ("instance", {"affine": True})
_ACT = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
_FINE_CHANNELS = 4
_MORE_FEATURES = 48
_SECOND_NAME = ".skip_layers."
_LAST = "fine."


class StridedUNet(SplitNetwork):
    """U-Net whose first level already halves the resolution, and whose last layer sees the image again.

    That last layer is thin: sixteen channels at full resolution cost a CPU as much as a third of all the rest, again
    for every dropout sample, and gain nothing; without the image it learns three times slower.

    Parameters
    ----------
    plan : NetworkPlan
        Channels, strides and kernels per level.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.plan = plan
        width, stem = plan.channels[0], plan.strides[0]
        self.backbone = DynUNet(
            spatial_dims=3,
            in_channels=plan.in_channels,
            out_channels=width,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.channels,
            norm_name=_NORM,
            act_name=_ACT,
        )
        self.coarse = Convolution(3, width, width, kernel_size=plan.kernels[0], norm=_NORM, act=_ACT, bias=False)
        self.upsample = nn.ConvTranspose3d(width, _FINE_CHANNELS, stem, stride=stem)
        self.fine = Convolution(
            3,
            _FINE_CHANNELS + plan.in_channels,
            plan.n_classes + 1 + plan.border_distance,
            kernel_size=plan.kernels[0],
            conv_only=True,
        )
        self.more = _more_head(plan) if plan.more_channels else None
        self.supervised = nn.ModuleList(
            nn.Conv3d(channels, plan.n_classes + 1, kernel_size=1)
            for channels in plan.channels[1 : 1 + plan.supervised]
        )

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what `head` works on: decoder features at the stem's resolution, and the image itself."""
        return self.backbone(image), image

    def coarse_logits(self, image: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return `features`, and the logits of the supervised decoder stages, fine to coarse.

        Supervision of coarser stages: Lee et al. 2015, arXiv 1409.5185.
        """
        skips = [self.backbone.input_block(image)]
        for downsample in self.backbone.downsamples:
            skips.append(downsample(skips[-1]))
        decoded, stages = self.backbone.bottleneck(skips[-1]), []
        for upsample, skip in zip(self.backbone.upsamples, reversed(skips), strict=True):
            decoded = upsample(decoded, skip)
            stages.append(decoded)
        coarse = stages[-2::-1]
        logits = [head(stage) for head, stage in zip(self.supervised, coarse, strict=False)]
        return (self.backbone.output_block(decoded), image), logits

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits, shape (n, K + 1, z, y, x), at the image's resolution; behind them what else the plan names.

        Parameters
        ----------
        features : tuple of Tensor
            From `features`.
        masks : tuple of Tensor, optional
            Channel masks from `dropout_masks`; without them nothing is dropped.
        """
        logits, more = self.head_parts(features, masks)
        if more is None:
            return logits
        finer = nn.functional.interpolate(more, logits.shape[2:], mode="trilinear")
        return torch.cat([logits, finer.to(logits.dtype)], dim=1)

    def head_parts(
        self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `head` puts together: logits at the image's resolution, and at the stem's what lies behind them.

        A training measures some of many channels at a few voxels: at full resolution they would cost it more than all the rest.
        """
        decoded, image = features
        if masks is not None:
            decoded = decoded * masks[0]
        decoded = self.coarse(decoded)
        if masks is not None:
            decoded = decoded * masks[1]
        fine = nn.functional.leaky_relu(self.upsample(decoded), 0.01)
        logits: Tensor = self.fine(torch.cat([fine, image.to(fine.dtype)], dim=1))
        return logits, None if self.more is None else self.more(decoded)

    def forward(self, image: Tensor, masks: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return the logits of a batch of images (n, c, z, y, x)."""
        return self.head(self.features(image), masks)

    def dropout_masks(self, keys: Sequence[SampleKey], device: torch.device) -> tuple[Tensor, ...]:
        """Return the channel masks of a batch, one row per key: 0 or 1 / (1 - dropout).

        Parameters
        ----------
        keys : sequence of tuple
            A row depends on its own key alone, not on its place in the batch.
        device : torch.device
            Where the masks go.

        Returns
        -------
        tuple of Tensor
            Two masks of shape (n, channels, 1, 1, 1); at least one channel of each row stays.
        """
        masks = draw_channel_masks(keys, 2, self.plan.channels[0], self.plan.dropout, device)
        return tuple(mask[..., None, None, None] for mask in masks)


def _more_head(plan: NetworkPlan) -> nn.Module:
    """Return what makes the channels behind all others of the decoder's features: one layer more than a few channels need."""
    width, kernel = plan.channels[0], plan.kernels[0]
    return nn.Sequential(
        Convolution(3, width, _MORE_FEATURES, kernel_size=kernel, norm=_NORM, act=_ACT, bias=False),
        nn.Conv3d(_MORE_FEATURES, plan.more_channels, kernel_size=1),
    )


def build_network(plan: NetworkPlan, seed: int) -> StridedUNet:
    """Return a network whose first weights follow from the seed; the global generator is left as it was."""
    with first_weights(seed):
        return StridedUNet(plan)


def get_weights(network: StridedUNet) -> dict[str, Tensor]:
    """Return the weights once each; `DynUNet` registers every block under a second name."""
    return {name: tensor for name, tensor in network.state_dict().items() if _SECOND_NAME not in name}


def take_over(network: StridedUNet, weights: dict[str, Tensor]) -> None:
    """Start from the weights of a network that may have learned a border distance where this one does not, or not yet.

    The channels of the last layer that both have are taken over; a border distance that is new keeps its first weights.

    Raises
    ------
    ValueError
        As `set_weights`.
    """
    weights = dict(weights)
    for name, own in get_weights(network).items():
        earlier = weights.get(name, own)
        if name.startswith(_LAST) and abs(len(own) - len(earlier)) == 1 and own.shape[1:] == earlier.shape[1:]:
            rows = min(len(own), len(earlier))
            weights[name] = torch.cat([earlier[:rows], own[rows:]])
    set_weights(network, weights)


def set_weights(network: StridedUNet, weights: dict[str, Tensor]) -> None:
    """Load what `get_weights` returned.

    Raises
    ------
    ValueError
        If names or shapes are those of another architecture.
    """
    set_all_weights(network, get_weights(network), weights)


def trained_network(plan: NetworkPlan, weights: dict[str, Tensor]) -> StridedUNet:
    """Return a network with the weights of a model; raises as `set_weights`."""
    network = build_network(plan, seed=0)
    set_weights(network, weights)
    return network
