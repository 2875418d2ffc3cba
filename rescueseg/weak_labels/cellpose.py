"""A network whose weights Cellpose 3 saved as weak labeller: flows of three orientations, averaged, and our own basins of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rescueseg.errors import WeakLabelError
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.inference.boxes import predict_outputs
from rescueseg.models.cellpose.network import CellposeNetwork
from rescueseg.models.cellpose.published import load_published, published_plan, published_predictor
from rescueseg.models.cellpose.weights_file import CellposeWeights, read_weights
from rescueseg.models.predictor import FLOW, PROBABILITY
from rescueseg.models.registry import resolve_device
from rescueseg.records import VolumeRecord
from rescueseg.weak_labels.base import Float32, Numbers, WeakLabel, WeakLabeller, from_probabilities
from rescueseg.weak_labels.choice import Sources
from rescueseg.weak_labels.flow_objects import PERCENTILES, flow_objects
from rescueseg.weak_labels.intensities import PercentileScaling
from rescueseg.weak_labels.published import CELLPOSE_LICENCE, Published, check_channels

_OVERLAP = 0.25


@dataclass(frozen=True)
class CellposeLabeller:
    """Labels by a network of Cellpose 3 (Stringer et al. 2021, doi:10.1038/s41592-020-01018-x).

    Parameters
    ----------
    network : CellposeNetwork
        With the weights.
    weights : CellposeWeights
        What the file says of them.
    diameter_um : float
        Of a typical object: the image is resampled so that it is as wide as the network expects.
    scaling : PercentileScaling
        Of the volume.
    device : str
        A torch device.
    """

    network: CellposeNetwork
    weights: CellposeWeights
    diameter_um: float
    scaling: PercentileScaling
    device: str

    name = "cellpose"
    n_classes = 1

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return the diameter: an object that touches a block is then seen whole."""
        return zyx(math.ceil(self.diameter_um / s) for s in spacing_um_zyx)

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx) by the cell probability; see `WeakLabeller`."""
        return from_probabilities(self._maps(image, spacing_um_zyx, (PROBABILITY,))[PROBABILITY])

    def label_objects(self, image: Float32, spacing_um_zyx: Spacing) -> tuple[WeakLabel, Numbers]:
        """Label an image and number its objects; see `ObjectLabeller`."""
        maps = self._maps(image, spacing_um_zyx, (PROBABILITY, FLOW))
        return flow_objects(maps[PROBABILITY], maps[FLOW], self.diameter_um, spacing_um_zyx)

    def _maps(self, image: Float32, spacing_um_zyx: Spacing, outputs: tuple[str, ...]) -> dict[str, Float32]:
        scaled = self.scaling.apply(image)
        missing = self.weights.in_channels - len(scaled)
        scaled = np.concatenate([scaled, np.zeros((missing, *scaled.shape[1:]), np.float32)])
        plan = published_plan(self.weights, self.diameter_um, spacing_um_zyx, image.shape[1:])
        predictor = published_predictor(self.network, plan, self.device)
        return predict_outputs(predictor, scaled, spacing_um_zyx, _OVERLAP, self.name, outputs)


def open_weights(sources: Sources, volumes: Sequence[VolumeRecord]) -> Published:
    """Read a weights file; see `rescueseg.weak_labels.published_methods.open_published`."""
    weights = read_weights(sources.weights, WeakLabelError)
    check_channels(volumes, 1, weights.in_channels, sources.weights)
    network, diameter, device = load_published(weights), sources.diameter_um or 0.0, resolve_device("auto")

    def labeller(volume: VolumeRecord, parts: Sequence[Float32]) -> WeakLabeller:
        scaling = PercentileScaling.of(parts, volume.normalisation, *PERCENTILES)
        return CellposeLabeller(network, weights, diameter, scaling, device)

    says, pixels = ("its weights say", None) if weights.says_pixels else ("the name of the file says", weights.pixels)
    seen = f"Objects of {diameter:g} µm are shown to the network {weights.pixels:g} pixels wide, as {says}"
    return Published.of("cellpose", sources, weights.digest, CELLPOSE_LICENCE, seen, labeller, pixels)
