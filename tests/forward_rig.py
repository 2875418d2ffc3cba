"""Small networks of both families whose forward pass is computed in one of its ways, for tests."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rescueseg.config import InferenceConfig
from rescueseg.models import members
from rescueseg.models.members import NetworksPredictor
from rescueseg.models.nnunet.network import build_network as build_nnunet
from rescueseg.models.nnunet.plan import NnUNetNetwork, NnUNetPlan
from rescueseg.models.nnunet.predictor import NnUNetPredictor
from rescueseg.models.precision import Precision
from rescueseg.models.unet.predictor import UNetPredictor
from tests.small_unet import SPACING, small_unet

WINDOW = (4, 16, 16)
KEYS = [11, 2**62, 7]
Make = Callable[..., NetworksPredictor]


def make_unet(way: str, networks: int = 2, dropout: float = 0.3, border: bool = True) -> UNetPredictor:
    config = InferenceConfig(mc_samples=2, tta_symmetries=3, forward=way)
    return small_unet(config, WINDOW, networks=networks, dropout=dropout, border=border)


def make_nnunet(way: str, networks: int = 2, dropout: float = 0.3) -> NnUNetPredictor:
    network = NnUNetNetwork(
        architecture="plain",
        in_channels=1,
        n_classes=2,
        features=(4, 8),
        strides=((1, 1, 2), (2, 2, 2)),
        kernels=((3, 3, 1), (3, 3, 3)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        dropout=dropout,
    )
    plan = NnUNetPlan(
        network=network,
        planner="default",
        configuration="3d_fullres",
        spacing_um_zyx=SPACING,
        axes=(1, 2, 0),
        window_zyx=WINDOW,
        inference_window_zyx=WINDOW,
        batch_size=1,
        iterations=1,
    )
    built = []
    for seed in range(networks):
        torch.manual_seed(seed)
        built.append(build_nnunet(network))
    config = InferenceConfig(mc_samples=2, tta_symmetries=3, forward=way)
    return NnUNetPredictor(built, plan, config, "cpu")


def alone_in_float32(monkeypatch: pytest.MonkeyPatch, factory: pytest.TempPathFactory) -> None:
    """Compute in float32, keep what is compiled for this session's tests alone, and nothing that is measured."""
    monkeypatch.setattr(members, "choose_precision", lambda *_: Precision(None))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(factory.getbasetemp() / "compiled"))
    monkeypatch.setenv("RESCUESEG_CACHE", str(factory.mktemp("cache")))
    members._warn_once.cache_clear()


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, *WINDOW)).astype(np.float32)


def members_of(predictor: NetworksPredictor, windows: np.ndarray, keys: list[int]) -> list[dict[str, np.ndarray]]:
    return [dict(member) for _, member in predictor.members(windows, keys)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("rescueseg")]
