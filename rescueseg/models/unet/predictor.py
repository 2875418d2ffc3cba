"""Members of trained `StridedUNet`s: dropout is in the head alone, so that all samples share the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rescueseg.config import InferenceConfig
from rescueseg.models.committed_networks import load_networks
from rescueseg.models.members import NetworkInput, NetworksPredictor
from rescueseg.models.predictor import BORDER_DISTANCE, Output
from rescueseg.models.resample import Resampling, resample, resample_by_multiples
from rescueseg.models.unet.network import StridedUNet, trained_network
from rescueseg.models.unet.plan import TrainingPlan, inference_window
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

_CELL_MEANS = 3
"""Format of the first models that learned from images resampled by `resample`."""


class UNetPredictor(NetworksPredictor):
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
    resampling : callable
        As when the networks learned.
    """

    def __init__(
        self,
        networks: Sequence[StridedUNet],
        plan: TrainingPlan,
        config: InferenceConfig,
        device: str,
        resampling: Resampling = resample,
    ) -> None:
        window = inference_window(plan, config)
        square = plan.square and window[1] == window[2]
        self._border_um = plan.border_um
        network_input = NetworkInput(plan.spacing_um_zyx, window, square=square, resampling=resampling)
        super().__init__(networks, plan.network, config, device, network_input)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The class probabilities; behind them the border distance of a model that has learned it."""
        learned = self._border_um is not None
        border = (Output(name=BORDER_DISTANCE, channels=1, kind="distance"),) if learned else ()
        return (*super().outputs, *border)

    def _outputs_of(self, logits: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """Return the outputs by name; the border distance is in micrometre, so resampling leaves it what it is."""
        outputs = super()._outputs_of(logits[:, : self.n_classes + 1], size)
        if self._border_um is not None:
            share = torch.sigmoid(logits[:, self.n_classes + 1 :])
            outputs[BORDER_DISTANCE] = self._resample(share, size) * self._border_um
        return outputs


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> UNetPredictor:
    """Load a finished model of a campaign; nothing is unpickled.

    Raises
    ------
    InferenceError
        As `load_networks`.
    """
    plan, networks, number = load_networks(
        storage, model, TrainingPlan, lambda plan, weights: trained_network(plan.network, weights)
    )
    resampling = resample if number >= _CELL_MEANS else resample_by_multiples
    return UNetPredictor(networks, plan, config, device, resampling)
