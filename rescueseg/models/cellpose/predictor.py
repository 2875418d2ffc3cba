"""Members of trained Cellpose networks: dropout is in the head alone, so that all samples share the features."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing, resampled_shape
from rescueseg.models.cellpose.network import FLOW_SCALE, CellposeNetwork, trained_network
from rescueseg.models.cellpose.plan import CellposePlan, inference_window
from rescueseg.models.committed_networks import load_networks
from rescueseg.models.members import GPU_BATCH_VOXELS, batch_sizes, symmetries
from rescueseg.models.precision import autocast, autocast_dtype
from rescueseg.models.predictor import AXES, FLOW, PROBABILITY, Group, Output, class_probabilities
from rescueseg.models.resample import resample
from rescueseg.models.threads import keep_threads
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

FLOWS = Output(name=FLOW, channels=3, kind="flow", directions=AXES)


class CellposePredictor:
    """The `Predictor` of a model made by `cellpose`.

    Parameters
    ----------
    networks : sequence of CellposeNetwork
        With their weights; several for an ensemble.
    plan : CellposePlan
        As it was trained.
    config : InferenceConfig
        Samples, symmetries and window.
    device : str
        A torch device.
    """

    n_classes = 1

    def __init__(
        self, networks: Sequence[CellposeNetwork], plan: CellposePlan, config: InferenceConfig, device: str
    ) -> None:
        self._device = torch.device(device)
        self._networks = [network.to(self._device).eval().requires_grad_(False) for network in networks]
        if self._device.type == "cpu":
            self._networks = [network.to(memory_format=torch.channels_last) for network in self._networks]
        self._plan, self.in_channels = plan, plan.in_channels
        self._window = inference_window(plan, config)
        square = plan.square and self._window[1] == self._window[2]
        self.symmetries = symmetries(config.tta_symmetries, square, self.outputs)
        self._samples = config.mc_samples if plan.dropout > 0 else 1  # without dropout all samples are the same
        self._dtype = None if self._device.type == "cpu" else autocast_dtype(self._device)

    @property
    def networks(self) -> int:
        """Number of networks: 1 unless the model is an ensemble."""
        return len(self._networks)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The class probabilities, background and cell, and the flow."""
        return class_probabilities(self.n_classes), FLOWS

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the window, in voxels of a volume of that spacing, that fills the networks' window."""
        return resampled_shape(self._window, self._plan.spacing_um_zyx, spacing_um_zyx)

    def members(
        self, windows: npt.NDArray[np.float32], keys: Sequence[int]
    ) -> Iterator[tuple[Group, Mapping[str, Tensor]]]:
        """Yield (group, outputs by name, each (n, channels, z, y, x)), all dropout samples of a network and symmetry in a row.

        Windows of another size than the networks' are resampled to it, and what they say back. On a CPU they pass one by one.
        """
        keep_threads()
        size = windows.shape[2:]
        images = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to(self._device)
        images = resample(images, self._window)
        together = 1 if self._device.type == "cpu" else batch_sizes(self._window, GPU_BATCH_VOXELS)[-1]
        parts = [slice(start, start + together) for start in range(0, len(images), together)]
        for (n, network), (index, symmetry) in itertools.product(enumerate(self._networks), enumerate(self.symmetries)):
            with torch.inference_mode(), autocast(self._device, self._dtype):
                prepared = [network.features(symmetry.apply(images[part]).contiguous()) for part in parts]
            for sample in range(self._samples):
                with torch.inference_mode():
                    sites = [(key, n, index, sample) for key in keys]
                    with autocast(self._device, self._dtype):
                        said = [self._head(network, p, sites[s]) for p, s in zip(prepared, parts, strict=True)]
                    values = torch.cat(said).float()
                    flow = symmetry.invert(values[:, :3], FLOWS) / FLOW_SCALE
                    cell = torch.sigmoid(resample(symmetry.invert(values[:, 3:]), size))
                    member = {PROBABILITY: torch.cat([1 - cell, cell], dim=1), FLOW: resample(flow, size)}
                yield Group(n, index), member

    def _head(self, network: CellposeNetwork, prepared: tuple[Tensor, ...], keys: Sequence[tuple[int, ...]]) -> Tensor:
        """Return what the networks say in one sample, dropout drawn from each window's own key."""
        masks = network.dropout_masks(keys, self._device) if self._plan.dropout > 0 else None
        return network.head(prepared, masks)


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> CellposePredictor:
    """Load a finished model of a campaign; nothing is unpickled.

    Raises
    ------
    InferenceError
        As `load_networks`.
    """
    plan, networks, _ = load_networks(storage, model, CellposePlan, trained_network)
    return CellposePredictor(networks, plan, config, device)
