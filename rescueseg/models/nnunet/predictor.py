"""Members of a trained nnU-Net: dropout is in every layer, so that each sample is a pass of its own."""

from __future__ import annotations

from collections.abc import Sequence

import safetensors.torch
from torch import nn

from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError
from rescueseg.geometry import round_up
from rescueseg.models.files import model_errors, read_committed
from rescueseg.models.members import NetworkInput, NetworksPredictor
from rescueseg.models.nnunet.network import MaskedNetwork, build_network, load_weights
from rescueseg.models.nnunet.plan import NnUNetPlan
from rescueseg.models.resample import Resampling, resample, resample_by_multiples
from rescueseg.models.weights import split_members
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
        If the files are not those that the reference's digest names.
    """
    weights, description = read_committed(storage, model)
    networks = []
    with model_errors(f"{storage.url}/{model.path}", InferenceError):
        plan = NnUNetPlan.model_validate(description["plan"])
        for own in split_members(safetensors.torch.load(weights), plan.members):
            networks.append(build_network(plan.network))
            load_weights(networks[-1], own)
        resampling = resample if description.get("format", 0) >= _CELL_MEANS else resample_by_multiples
    return NnUNetPredictor(networks, plan, config, device, resampling)
