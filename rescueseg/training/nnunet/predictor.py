"""Members of a trained nnU-Net: mirrored windows outside, dropout samples inside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.inference.predictor import Group
from rescueseg.records import ModelReference
from rescueseg.training.folder import read_committed
from rescueseg.training.network import autocast_dtype, split_members
from rescueseg.training.nnunet.network import build_network, key_dropout, load_weights
from rescueseg.training.nnunet.plan import NnUNetPlan
from rescueseg.training.plan import resampled_shape, round_up
from rescueseg.training.resample import resample
from rescueseg.training.unet_predictor import symmetries


class NnUNetPredictor:
    """The `Predictor` of a model made by `nnunet`.

    Parameters
    ----------
    networks : sequence of nn.Module
        With their weights; more than one for an ensemble.
    plan : NnUNetPlan
        As it was trained.
    config : InferenceConfig
        Samples, symmetries and window.
    device : str
        A torch device.
    """

    def __init__(self, networks: Sequence[nn.Module], plan: NnUNetPlan, config: InferenceConfig, device: str) -> None:
        self._device = torch.device(device)
        self._dropout = [key_dropout(network, plan.network.dropout) for network in networks]
        self._networks = [network.to(self._device).eval().requires_grad_(False) for network in networks]
        self._plan = plan
        self._window = (
            round_up(config.window_zyx, plan.total_stride_zyx) if config.window_zyx else plan.inference_window_zyx
        )
        self.symmetries = symmetries(config.tta_symmetries, square=False)
        self._samples = config.mc_samples if plan.network.dropout > 0 else 1

    @property
    def networks(self) -> int:
        """Number of networks: 1 unless the model is an ensemble."""
        return len(self._networks)

    @property
    def n_classes(self) -> int:
        """Number of foreground classes K."""
        return self._plan.network.n_classes

    @property
    def in_channels(self) -> int:
        """Number of image channels C."""
        return self._plan.network.in_channels

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the window, in voxels of a volume of that spacing, that fills the network's window."""
        return resampled_shape(self._window, self._plan.spacing_um_zyx, spacing_um_zyx)

    def members(
        self, windows: npt.NDArray[np.float32], keys: Sequence[int]
    ) -> Iterator[tuple[Group, npt.NDArray[np.float32]]]:
        """Yield (group, probabilities (n, K + 1, z, y, x)), all dropout samples of a network and symmetry in a row.

        Windows of another size than the network's are resampled to it, and the logits back.
        """
        size = windows.shape[2:]
        images = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to(self._device)
        images = resample(images, self._window)
        for n, index in itertools.product(range(self.networks), range(len(self.symmetries))):
            symmetry = self.symmetries[index]
            turned = self._ordered(symmetry.apply(images))
            for sample in range(self._samples):
                for site in self._dropout[n]:
                    site.keys = [(key, n, index, sample) for key in keys]
                with torch.inference_mode():
                    with self._autocast():
                        logits = self._restored(self._networks[n](turned))
                    probabilities = torch.softmax(resample(symmetry.invert(logits).float(), size), dim=1)
                    member: npt.NDArray[np.float32] = probabilities.cpu().numpy()
                yield Group(n, index), member

    def _ordered(self, images: Tensor) -> Tensor:
        """Return images with z, y, x in the network's order."""
        return images.permute(0, 1, *(2 + axis for axis in self._plan.axes)).contiguous()

    def _restored(self, logits: Tensor) -> Tensor:
        """Return logits with the network's axes in the order z, y, x."""
        return logits.permute(0, 1, *(2 + self._plan.axes.index(axis) for axis in range(3)))

    def _autocast(self) -> torch.autocast:
        dtype = autocast_dtype(self._device)
        return torch.autocast(self._device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def load_predictor(campaign: Campaign, model: ModelReference, config: InferenceConfig, device: str) -> NnUNetPredictor:
    """Load a finished model of a campaign; nothing is unpickled.

    Raises
    ------
    InferenceError
        If the files are not those that the reference's digest names.
    """
    weights, description = read_committed(campaign, model)
    plan = NnUNetPlan.model_validate(description["plan"])
    networks = []
    for own in split_members(safetensors.torch.load(weights), plan.members):
        networks.append(build_network(plan.network))
        load_weights(networks[-1], own)
    return NnUNetPredictor(networks, plan, config, device)
