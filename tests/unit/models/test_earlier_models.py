"""A finished model of an earlier version sees and says what it did then; one of today follows the rule of today."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from rescueseg.config import InferenceConfig
from rescueseg.models import members
from rescueseg.models.members import NetworksPredictor
from rescueseg.models.precision import Precision
from rescueseg.models.predictor import PROBABILITY
from rescueseg.models.registry import load_predictor
from rescueseg.models.resample import Resampling, resample
from rescueseg.models.trainer import model_digest
from rescueseg.records import ModelReference
from rescueseg.storage import Storage

ARCHIVE = Path(__file__).parents[2] / "data" / "older_campaign" / "campaigns.tar.xz"
MODELS = {"monai_unet": "objects/generations/0000/model", "nnunet": "phantom/generations/0000/model"}
"""Folders of models that an earlier version has trained, by family."""
SPACING = (0.25, 0.1, 0.1)
"""Theirs."""


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "choose_precision", lambda *_: Precision(None))


def load(folder: Path, trainer: str, version: int | None = None) -> NetworksPredictor:
    """Load the earlier model, or the same with the format of another version."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(ARCHIVE) as archive:
        weights, text = (
            archive.extractfile(f"{MODELS[trainer]}/model.{kind}").read()  # type: ignore[union-attr]
            for kind in ("safetensors", "json")
        )
    if version is not None:
        text = json.dumps(json.loads(text) | {"format": version}).encode()
    storage = Storage(str(folder))
    storage.write_bytes("model/model.safetensors", weights)
    storage.write_bytes("model/model.json", text)
    reference = ModelReference(generation=0, trainer=trainer, path="model", digest=model_digest(weights, text))
    config = InferenceConfig(mc_samples=1, tta_symmetries=1, window_zyx=(8, 24, 24))
    predictor = load_predictor(storage, reference, config, "cpu")
    assert isinstance(predictor, NetworksPredictor)
    return predictor


def probability(predictor: NetworksPredictor, images: torch.Tensor) -> torch.Tensor:
    [(_, outputs)] = predictor.members(images.numpy(), [5])
    return torch.from_numpy(np.array(outputs[PROBABILITY]))


def between(images: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Interpolate: what earlier versions did at ratios below two."""
    return functional.interpolate(images, tuple(shape), mode="trilinear", align_corners=False)


def between_then_averaged(images: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Interpolate to twice the shape, then average: what they did at ratios from two to three."""
    z, y, x = shape
    return functional.avg_pool3d(between(images, (z, 2 * y, 2 * x)), (1, 2, 2))


@pytest.mark.parametrize(("ratio", "earlier"), [(1.5, between), (2.5, between_then_averaged)])
@pytest.mark.parametrize("trainer", MODELS)
def test_a_finished_model_predicts_as_the_version_that_made_it(
    tmp_path: Path, trainer: str, ratio: float, earlier: Resampling
) -> None:
    predictor = load(tmp_path / "earlier", trainer)
    window = predictor.window_zyx(SPACING)
    finer = (SPACING[0], SPACING[1] / ratio, SPACING[2] / ratio)
    size = predictor.window_zyx(finer)
    assert size == (8, round(24 * ratio), round(24 * ratio))
    images = torch.randn((1, 1, *size), generator=torch.Generator().manual_seed(0))

    def expected(predictor: NetworksPredictor, rule: Resampling) -> torch.Tensor:
        """Return what the network itself says of the resampled image, brought back."""
        [network] = predictor._networks
        with torch.inference_mode():
            prepared = predictor._prepare(network, rule(images, window))
            return torch.softmax(between(predictor._logits(network, prepared, [(5, 0, 0, 0)]), size), dim=1)

    found = probability(predictor, images)
    torch.testing.assert_close(found, expected(predictor, earlier), atol=1e-5, rtol=0)
    today = load(tmp_path / "today", trainer, version=4)
    averaged = probability(today, images)
    torch.testing.assert_close(averaged, expected(today, resample), atol=1e-5, rtol=0)
    assert (averaged - found).abs().max() > 0.01, "the two rules differ"
