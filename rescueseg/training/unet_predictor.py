"""Members of trained `StridedUNet`s: networks outside, then symmetries, dropout samples inside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.inference.predictor import Group
from rescueseg.records import ModelReference
from rescueseg.training.folder import read_committed
from rescueseg.training.network import StridedUNet, autocast_dtype, build_network, set_weights, split_members
from rescueseg.training.plan import TrainingPlan, inference_window, resampled_shape
from rescueseg.training.resample import resample


@dataclass(frozen=True)
class Symmetry:
    """A turn of the window that costs no interpolation: y and x exchanged or not, then flips."""

    transposed: bool
    flipped_axes: tuple[int, ...]
    """Of a tensor (n, c, z, y, x)."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Turn a tensor (n, c, z, y, x)."""
        turned = tensor.transpose(3, 4) if self.transposed else tensor
        return turned.flip(self.flipped_axes) if self.flipped_axes else turned

    def invert(self, tensor: Tensor) -> Tensor:
        """Turn it back."""
        turned = tensor.flip(self.flipped_axes) if self.flipped_axes else tensor
        return turned.transpose(3, 4) if self.transposed else turned


def symmetries(count: int, square: bool) -> tuple[Symmetry, ...]:
    """Return up to `count` symmetries: the identity, the half turn in the plane, then the others.

    Parameters
    ----------
    count : int
        Wanted.
    square : bool
        Whether y and x may be exchanged; 16 symmetries with it, 8 without.
    """
    flips = [(), (3, 4), (2,), (2, 3, 4), (4,), (3,), (2, 4), (2, 3)]
    exchanges = (False, True) if square else (False,)
    every = [Symmetry(transposed, axes) for transposed, axes in itertools.product(exchanges, flips)]
    return tuple(every[:count])


class UNetPredictor:
    """The `Predictor` of a model made by `monai_unet` or `monai_unet_topology`.

    Parameters
    ----------
    networks : sequence of StridedUNet
        With their weights; several for an ensemble.
    plan : TrainingPlan
        As it was trained.
    config : InferenceConfig
        Samples, symmetries and window.
    device : str
        A torch device.
    """

    def __init__(
        self, networks: Sequence[StridedUNet], plan: TrainingPlan, config: InferenceConfig, device: str
    ) -> None:
        self._device = torch.device(device)
        self._networks = [network.to(self._device).eval().requires_grad_(False) for network in networks]
        self._plan = plan
        self._window = inference_window(plan, config)
        square = plan.square and self._window[1] == self._window[2]
        self.symmetries = symmetries(config.tta_symmetries, square)
        self._samples = config.mc_samples if plan.network.dropout > 0 else 1

    @property
    def networks(self) -> int:
        """Number of networks of the ensemble."""
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
        """Yield (group, probabilities (n, K + 1, z, y, x)), all dropout samples of a symmetry in a row.

        Windows of another size than the network's are resampled to it, and the logits back.
        """
        size = windows.shape[2:]
        images = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to(self._device)
        images = resample(images, self._window)
        for (n, network), (index, symmetry) in itertools.product(enumerate(self._networks), enumerate(self.symmetries)):
            with torch.inference_mode(), self._autocast():
                features = network.features(symmetry.apply(images).contiguous())
            for sample in range(self._samples):
                with torch.inference_mode():
                    masks = None
                    if self._plan.network.dropout > 0:
                        rows = [(key, index, n * self._samples + sample) for key in keys]
                        masks = network.dropout_masks(rows, self._device)
                    with self._autocast():
                        logits = network.head(features, masks)
                    probabilities = torch.softmax(resample(symmetry.invert(logits).float(), size), dim=1)
                    member: npt.NDArray[np.float32] = probabilities.cpu().numpy()
                yield Group(n, index), member

    def _autocast(self) -> torch.autocast:
        dtype = autocast_dtype(self._device)
        return torch.autocast(self._device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def load_predictor(campaign: Campaign, model: ModelReference, config: InferenceConfig, device: str) -> UNetPredictor:
    """Load a finished model of a campaign; nothing is unpickled.

    Raises
    ------
    InferenceError
        If the files are not those that the reference's digest names.
    """
    weights, description = read_committed(campaign, model)
    plan = TrainingPlan.model_validate(description["plan"])
    networks = []
    for own in split_members(safetensors.torch.load(weights), plan.members):
        networks.append(build_network(plan.network, seed=0))
        set_weights(networks[-1], own)
    return UNetPredictor(networks, plan, config, device)
