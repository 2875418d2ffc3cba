"""Members of a trained nnU-Net: dropout is in every layer, so that each sample is a pass of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rescueseg.config import InferenceConfig
from rescueseg.geometry import round_up
from rescueseg.models.committed_networks import load_networks
from rescueseg.models.members import NetworkInput, NetworksPredictor
from rescueseg.models.nnunet.network import MaskedNetwork, trained_network
from rescueseg.models.nnunet.plan import NnUNetPlan
from rescueseg.models.resample import Resampling, resample, resample_by_multiples
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

_CELL_MEANS = 4
"""Format of the first models that learned from images resampled by `resample`."""


class NnUNetPredictor(NetworksPredictor):
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
    resampling : callable
        As when the networks learned.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: NnUNetPlan,
        config: InferenceConfig,
        device: str,
        resampling: Resampling = resample,
    ) -> None:
        window = config.window_zyx
        super().__init__(
            [MaskedNetwork(network, plan.network.dropout) for network in networks],
            plan.network,
            config,
            device,
            NetworkInput(
                plan.spacing_um_zyx,
                round_up(window, plan.total_stride_zyx) if window else plan.inference_window_zyx,
                square=False,
                axes=plan.axes,
                resampling=resampling,
            ),
        )


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> NnUNetPredictor:
    """Load a finished model of a campaign; nothing is unpickled.

    Raises
    ------
    InferenceError
        As `load_networks`.
    """
    plan, networks, number = load_networks(
        storage, model, NnUNetPlan, lambda plan, weights: trained_network(plan.network, weights)
    )
    resampling = resample if number >= _CELL_MEANS else resample_by_multiples
    return NnUNetPredictor(networks, plan, config, device, resampling)
