"""Members of trained StarDist models: classes, the object's probability and the lengths of rays."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rescueseg.config import InferenceConfig
from rescueseg.models.committed_networks import load_networks
from rescueseg.models.members import NetworkInput, NetworksPredictor, Symmetry
from rescueseg.models.polyhedra import star_directions
from rescueseg.models.predictor import EAGER, OBJECT_PROBABILITY, STAR_DISTANCE, Output
from rescueseg.models.split_network import SampleKey, SplitNetwork
from rescueseg.models.stardist.plan import StarDistPlan
from rescueseg.models.unet.network import StridedUNet, trained_network
from rescueseg.models.unet.plan import inference_window
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

_log = logging.getLogger(__name__)


class StarDistPredictor(NetworksPredictor):
    """The `Predictor` of a model made by `stardist`.

    Parameters
    ----------
    networks : sequence of StridedUNet
        With their weights; several for an ensemble.
    plan : StarDistPlan
        As it was trained.
    config : InferenceConfig
        Samples, symmetries and window.
    device : str
        A torch device.
    """

    def __init__(
        self, networks: Sequence[StridedUNet], plan: StarDistPlan, config: InferenceConfig, device: str
    ) -> None:
        window = inference_window(plan, config)
        self._radius_um = plan.radius_um
        directions = tuple((float(z), float(y), float(x)) for z, y, x in star_directions(plan.rays))
        self._stars = (
            Output(name=OBJECT_PROBABILITY, channels=1, kind="share", sampled=False),
            Output(
                name=STAR_DISTANCE,
                channels=plan.rays,
                kind="distance",
                directions=directions,
                at_peaks_of=OBJECT_PROBABILITY,
                sampled=False,
            ),
        )
        square = plan.square and window[1] == window[2]
        if config.forward not in ("auto", EAGER):
            _log.info("StarDist's forward pass is computed eagerly, not as inference.forward says: %s", config.forward)
        config = config.model_copy(update={"forward": EAGER})  # as `choose_forward` says
        super().__init__(
            networks, plan.network, config, device, NetworkInput(plan.spacing_um_zyx, window, square=square)
        )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The class probabilities, the object's probability, and the lengths of rays."""
        return (*super().outputs, *self._stars)

    def choose_forward(self, windows: int, workers: int = 1) -> str:  # noqa: ARG002
        """Return the eager way: the others compute all channels at full resolution, where the rays would cost the most."""
        return EAGER

    def _logits(self, network: SplitNetwork, prepared: tuple[Tensor, ...], keys: Sequence[SampleKey]) -> Tensor:
        """Return the logits of the classes of one sample."""
        assert isinstance(network, StridedUNet)
        return network.head_parts(prepared, self._masks(network, keys, len(prepared[0])))[0][: len(keys)]

    def _shared(
        self,
        network: SplitNetwork,
        prepared: Sequence[tuple[Tensor, ...]],
        counts: Sequence[int],
        size: Sequence[int],
        symmetry: Symmetry,
    ) -> dict[str, Tensor]:
        """Return the object's probability and the rays; nothing is dropped in them, for samples tell of the classes alone.

        Lengths are in micrometre, so resampling leaves them what they are.
        """
        assert isinstance(network, StridedUNet)
        said = [network.head_parts(of, None)[1] for of in prepared]
        stars = torch.cat([of[:count] for of, count in zip(said, counts, strict=True) if of is not None]).float()
        stars = symmetry.invert(stars)
        lengths = symmetry.turn_directions(functional.softplus(stars[:, 1:]) * self._radius_um, self._stars[1])
        fine = [functional.interpolate(of, self._window, mode="trilinear") for of in (stars[:, :1], lengths)]
        return {
            OBJECT_PROBABILITY: self._resample(torch.sigmoid(fine[0]), size),
            STAR_DISTANCE: self._resample(fine[1], size),
        }


def load_predictor(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> StarDistPredictor:
    """Load a finished model of a campaign; nothing is unpickled.

    Raises
    ------
    InferenceError
        As `load_networks`.
    """
    plan, networks, _ = load_networks(
        storage, model, StarDistPlan, lambda plan, weights: trained_network(plan.network, weights)
    )
    return StarDistPredictor(networks, plan, config, device)
