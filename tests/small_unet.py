"""Untrained U-Nets of a few channels, for the tests of predictions."""

from __future__ import annotations

from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX
from rescueseg.models.unet.network import build_network
from rescueseg.models.unet.plan import NetworkPlan, TrainingPlan
from rescueseg.models.unet.predictor import UNetPredictor

SPACING = (0.2, 0.1, 0.1)


def small_unet(
    config: InferenceConfig, window: ZYX, *, networks: int = 1, dropout: float = 0.3, border: bool = False
) -> UNetPredictor:
    """Return a predictor of two classes on the CPU, with a border distance where that is asked for."""
    network = NetworkPlan(
        in_channels=1,
        n_classes=2,
        channels=(4, 4, 8),
        strides=((1, 2, 2), (2, 2, 2), (1, 1, 1)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        dropout=dropout,
        border_distance=border,
    )
    plan = TrainingPlan(
        network=network,
        spacing_um_zyx=SPACING,
        window_zyx=window,
        inference_window_zyx=window,
        batch_size=1,
        iterations=1,
        learning_rate=0.1,
        border_um=0.5 if border else None,
    )
    return UNetPredictor([build_network(network, seed) for seed in range(networks)], plan, config, "cpu")
