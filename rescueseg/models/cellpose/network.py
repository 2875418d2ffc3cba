"""Cellpose's network over the planes of a window: planes of up to three orientations, averaged, dropout before the last block.

The network is `cellpose.resnet_torch.CPnet` as it is (Stringer et al. 2021, doi:10.1038/s41592-020-01018-x). `features` is all
of it but its output block, which is cheap and which every Monte-Carlo sample computes anew (Gal and Ghahramani 2016, arXiv
1506.02142), with whole channels dropped by a mask that is drawn from a key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cellpose.resnet_torch import CPnet
from torch import Tensor

from rescueseg.models.cellpose.plan import CellposePlan
from rescueseg.models.split_network import SampleKey, SplitNetwork, draw_channel_masks
from rescueseg.models.threads import keep_threads
from rescueseg.models.weights import first_weights, set_all_weights

keep_threads()  # OpenCV, which Cellpose imports, lets OpenMP start fewer

FLOW_SCALE = 5.0
"""The network says so many times a flow, as Cellpose's models do."""
_KERNEL = 3
_OUTPUTS = 3
"""Flow along the first and the second axis of a plane, and the logit of the cell probability."""
_LOGIT = 3
_PLANE_PIXELS = 1 << 16
"""Pixels that a CPU computes together at most (at least one plane): more is no faster, and takes memory."""


class CellposeNetwork(SplitNetwork):
    """`CPnet`, on planes or on the planes of a window.

    Parameters
    ----------
    plan : CellposePlan
        Channels of the image and of each level, dropout, and what the planes are perpendicular to.
    """

    def __init__(self, plan: CellposePlan) -> None:
        super().__init__()
        self.axes, self.width, self.rate = plan.axes, plan.channels[0], plan.dropout
        self.cpnet = CPnet([plan.in_channels, *plan.channels], _OUTPUTS, _KERNEL)

    def plane_features(self, planes: Tensor) -> Tensor:
        """Return what the output block works on, (n, channels, h, w), for planes (n, c, h, w)."""
        levels = self.cpnet.downsample(planes)
        decoded: Tensor = self.cpnet.upsample(self.cpnet.make_style(levels[-1]), levels)
        return decoded

    def plane_output(self, features: Tensor, masks: Tensor | None) -> Tensor:
        """Return flows, times `FLOW_SCALE`, and logit (n, 3, h, w) of planes.

        Parameters
        ----------
        features : Tensor
            From `plane_features`.
        masks : Tensor, optional
            Shape (n, channels, 1, 1); without them nothing is dropped.
        """
        said: Tensor = self.cpnet.output(features if masks is None else features * masks.to(features.dtype))
        return said

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the features of the planes of each orientation, (n, planes, channels, h, w), for windows (n, c, z, y, x)."""
        found = []
        for axis in self.axes:
            planes = image.movedim(2 + axis, 1)
            flat = planes.flatten(0, 1)
            together = len(flat) if flat.is_cuda else max(1, _PLANE_PIXELS // flat[0, 0].numel())
            parts = [self.plane_features(lay_out(part)).contiguous() for part in torch.split(flat, together)]
            found.append(torch.cat(parts).reshape(*planes.shape[:2], -1, *planes.shape[3:]))
        return tuple(found)

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        """Return flow along z, y, x and logit of the cell probability, shape (n, 4, z, y, x), averaged over the orientations.

        A component that no plane holds is 0.

        Parameters
        ----------
        features : tuple of Tensor
            From `features`.
        masks : tuple of Tensor, optional
            From `dropout_masks`.
        """
        found: dict[int, list[Tensor]] = {channel: [] for channel in range(4)}
        for axis, planes in zip(self.axes, features, strict=True):
            own = None if masks is None else masks[0].repeat_interleave(planes.shape[1], dim=0)
            said = self.plane_output(planes.flatten(0, 1), own).reshape(*planes.shape[:2], _OUTPUTS, *planes.shape[3:])
            first, second = (a for a in range(3) if a != axis)
            for channel, values in zip((first, second, _LOGIT), said.unbind(2), strict=True):
                found[channel].append(values.movedim(1, 1 + axis))
        none = torch.zeros_like(found[_LOGIT][0])
        return torch.stack([torch.stack(parts).mean(dim=0) if parts else none for parts in found.values()], dim=1)

    def forward(self, planes: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return flows and logit (n, 3, h, w) of planes (n, c, h, w): what is trained."""
        return self.plane_output(self.plane_features(planes), masks)

    def dropout_masks(self, keys: Sequence[SampleKey], device: torch.device) -> tuple[Tensor, ...]:
        """Return the channel masks of a batch, one row per key: 0 or 1 / (1 - dropout); at least one channel of each stays.

        Parameters
        ----------
        keys : sequence of tuple
            A row depends on its own key alone, not on its place in the batch.
        device : torch.device
            Where the masks go.

        Returns
        -------
        tuple of Tensor
            One mask of shape (n, channels, 1, 1): all planes of a window drop the same channels.
        """
        [mask] = draw_channel_masks(keys, 1, self.width, self.rate, device)
        return (mask[..., None, None],)


def lay_out(planes: Tensor) -> Tensor:
    """Return planes (n, c, h, w) in the order of memory in which a CPU convolves fastest, channels last; as they are on a GPU."""
    return planes.contiguous() if planes.is_cuda else planes.contiguous(memory_format=torch.channels_last)


def build_network(plan: CellposePlan, seed: int) -> CellposeNetwork:
    """Return a network whose first weights follow from the seed; the global generator is left as it was."""
    with first_weights(seed):
        return CellposeNetwork(plan)


def set_weights(network: CellposeNetwork, weights: dict[str, Tensor]) -> None:
    """Load the weights of a network, which its ``state_dict`` holds.

    Raises
    ------
    ValueError
        If names or shapes are those of another architecture.
    """
    set_all_weights(network, network.state_dict(), weights)


def trained_network(plan: CellposePlan, weights: dict[str, Tensor]) -> CellposeNetwork:
    """Return a network with the weights of a model; raises as `set_weights`."""
    network = build_network(plan, seed=0)
    set_weights(network, weights)
    return network
