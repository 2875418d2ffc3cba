"""A network with weights that Cellpose 3 saved, as a `Predictor`: planes at the scale that the network has learned from."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from rescueseg.config import InferenceConfig
from rescueseg.geometry import Spacing, resampled_shape, round_up, zyx
from rescueseg.models.cellpose.network import CellposeNetwork, set_weights
from rescueseg.models.cellpose.plan import CellposePlan
from rescueseg.models.cellpose.predictor import CellposePredictor
from rescueseg.models.cellpose.sections import plane_axes
from rescueseg.models.cellpose.weights_file import CellposeWeights

_CUBE, _PLANE, _DEPTH = 112, 224, 16
"""Largest window: as a cube where planes of three orientations are read; as planes, and how many of them, otherwise."""


def published_plan(
    weights: CellposeWeights, diameter_um: float, spacing_um_zyx: Spacing, shape_zyx: Sequence[int]
) -> CellposePlan:
    """Return how a network of a weights file sees an image.

    Parameters
    ----------
    weights : CellposeWeights
        The network's.
    diameter_um : float
        Of a typical object: it becomes as wide as those that the network has learned from.
    spacing_um_zyx : tuple of float
        Voxel size of the image. Where voxels are more than three times as long along one axis as along both others, only
        planes perpendicular to it are read, each as it is.
    shape_zyx : sequence of int
        Of the image: no window is larger.

    Returns
    -------
    CellposePlan
        Without dropout; what trainings alone need is not meant.
    """
    axes, wish = plane_axes(spacing_um_zyx), diameter_um / weights.pixels
    z, y, x = (s if axes == (a,) else wish for a, s in enumerate(spacing_um_zyx))
    plan = CellposePlan(
        in_channels=weights.in_channels,
        channels=weights.channels,
        dropout=0.0,
        diameter_um=diameter_um,
        axes=axes,
        spacing_um_zyx=(z, y, x),
        side=_PLANE,
        inference_window_zyx=(1, 1, 1),
        batch_size=1,
        iterations=1,
        learning_rate=1.0,
    )
    most = [_CUBE if len(axes) > 1 else _DEPTH if axes == (a,) else _PLANE for a in range(3)]
    whole = round_up(resampled_shape(shape_zyx, spacing_um_zyx, plan.spacing_um_zyx), plan.multiple_zyx)
    window = round_up([min(n, m) for n, m in zip(whole, most, strict=True)], plan.multiple_zyx)
    return plan.model_copy(update={"inference_window_zyx": zyx(window)})


def load_published(weights: CellposeWeights) -> CellposeNetwork:
    """Return the network of a weights file, which reads planes of three orientations until a plan says otherwise."""
    network = CellposeNetwork(published_plan(weights, 1.0, (1.0, 1.0, 1.0), (1, 1, 1)))
    set_weights(network, network_weights(weights, network))
    return network


def network_weights(weights: CellposeWeights, network: CellposeNetwork) -> dict[str, Tensor]:
    """Return the weights of a file by the names of our network, which has the diameters too and does not use them."""
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("cpnet.diam_")}
    return own | {f"cpnet.{name}": tensor for name, tensor in weights.tensors.items()}


def published_predictor(network: CellposeNetwork, plan: CellposePlan, device: str) -> CellposePredictor:
    """Return a predictor of one member: no dropout, no symmetries, as Cellpose itself predicts."""
    own = copy.copy(network)  # of the same weights
    own.axes = plan.axes
    return CellposePredictor([own], plan, InferenceConfig(mc_samples=1, tta_symmetries=1), device)
