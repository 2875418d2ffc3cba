"""A network that has learned all that it is taught predicts in its place, whatever its cells: nothing is shifted or in doubt."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from rescueseg.config import InferenceConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.models import members
from rescueseg.models.nnunet.loop import CampaignTrainer, with_full_size
from rescueseg.models.nnunet.plan import ARCHITECTURES, NnUNetNetwork, NnUNetPlan
from rescueseg.models.nnunet.predictor import NnUNetPredictor
from rescueseg.models.precision import Precision
from rescueseg.models.predictor import PROBABILITY
from rescueseg.models.resample import resample, resample_labels
from tests.puncta import puncta

WINDOW: ZYX = (24, 24, 24)
SURE = 20.0
"""Logit of a network without doubt."""


def ball(radius: float, shape: ZYX = WINDOW, centre: tuple[float, float, float] = (11.2, 11.9, 12.3)) -> np.ndarray:
    z, y, x = (np.arange(n) - middle for n, middle in zip(shape, centre, strict=True))
    return z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def shift(a: np.ndarray, b: np.ndarray) -> float:
    """Return by how many voxels two centroids differ, along the axis where they differ most."""
    return float(np.abs(np.argwhere(a).mean(axis=0) - np.argwhere(b).mean(axis=0)).max())


class Cells(nn.Module):
    """A network with one free logit per cell and class: it can learn whatever its resolution allows."""

    def __init__(self, shape: ZYX) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, 2, *shape))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.logits]


class LearnsWhatItSees(nn.Module):
    """A perfect network: its image is the truth, and its cells are trained on it by nnU-Net's loss as the trainer has it."""

    def __init__(self, strides: ZYX, steps: int = 200) -> None:
        super().__init__()
        self.strides, self.steps = strides, steps
        self.loss = DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            ignore_label=2,
            dice_class=MemoryEfficientSoftDiceLoss,
        )

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            cells = Cells(tuple(n // s for n, s in zip(WINDOW, self.strides, strict=True)))
            network, image = with_full_size(cells), images.clone()
            optimiser = torch.optim.Adam(network.parameters(), lr=0.5)
            for _ in range(self.steps):
                optimiser.zero_grad()
                self.loss(network(image)[0], image).backward()
                optimiser.step()
        return cells.logits.detach()


class Thresholds(nn.Module):
    """A network that says what `resample_labels` made of the truth, which its image shows, without any doubt."""

    def forward(self, images: Tensor) -> Tensor:
        foreground = torch.where(images >= 0.5 - 1e-5, SURE, -SURE)
        return torch.cat([-foreground, foreground], dim=1)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "choose_precision", lambda *_: Precision(None))


def predict(
    network: nn.Module, truth: np.ndarray, window: ZYX = WINDOW, spacing: Spacing = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Return what the identity and the half turn make of an image of the truth at (1, 1, 1) µm: (2, K + 1, z, y, x)."""
    plan = NnUNetPlan(
        network=plain_network((1, 1, 1), dropout=0.0),
        planner="default",
        configuration="3d_fullres",
        spacing_um_zyx=spacing,
        axes=(0, 1, 2),
        window_zyx=window,
        inference_window_zyx=window,
        batch_size=1,
        iterations=1,
    )
    predictor = NnUNetPredictor([network], plan, InferenceConfig(tta_symmetries=2), "cpu")
    assert predictor.window_zyx((1.0, 1.0, 1.0)) == truth.shape
    outputs = [m[PROBABILITY] for _, m in predictor.members(truth[None, None].astype(np.float32), [0])]
    assert len(outputs) == 2
    return np.concatenate(outputs).astype(np.float64)


def plain_network(stem: ZYX, dropout: float) -> NnUNetNetwork:
    return NnUNetNetwork(
        architecture="plain",
        in_channels=1,
        n_classes=1,
        features=(4, 4, 4),
        strides=(stem, (1, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 3,
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
        dropout=dropout,
    )


def entropy(probability: np.ndarray) -> np.ndarray:
    return -(probability * np.log(np.clip(probability, 1e-300, None))).sum(axis=-4)


# strides of a network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_nnunet_without_its_finest_level_is_taught_the_voxels_themselves(strides: ZYX) -> None:
    for radius in (3, 5, 8):
        truth = ball(radius)
        members = predict(LearnsWhatItSees(strides), truth)
        mean = members.mean(axis=0)
        for mask in (members[0].argmax(axis=0) == 1, mean.argmax(axis=0) == 1):  # without and with the half turn
            assert dice(mask, truth) >= (1.0 if strides == (1, 1, 1) else 0.999)
            assert shift(mask, truth) < 0.01
        assert members.var(axis=0).max() < 1e-6
        assert (entropy(mean) - entropy(members).mean(axis=0)).max() < 1e-6


def nnunet_parts(stem: ZYX, ignore: int = 2) -> tuple[nn.Module, nn.Module]:
    """Return network and loss as the trainer builds them, without its folders and plans."""
    plan = plain_network(stem, dropout=0.1)
    trainer = CampaignTrainer.__new__(CampaignTrainer)
    trainer.configuration_manager = SimpleNamespace(
        network_arch_class_name=ARCHITECTURES["plain"],
        network_arch_init_kwargs=plan.arguments(),
        network_arch_init_kwargs_req_import=["conv_op", "norm_op", "dropout_op", "nonlin"],
        pool_op_kernel_sizes=plan.strides,
        batch_dice=False,
    )
    trainer.label_manager = SimpleNamespace(has_regions=False, ignore_label=ignore)
    trainer.device, trainer.is_ddp, trainer.enable_deep_supervision = torch.device("cpu"), False, True
    network = CampaignTrainer.build_network_architecture(None, trainer.configuration_manager, 1, 2, True)
    return network, trainer._build_loss()


@pytest.mark.parametrize("stem", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_the_trainer_builds_a_network_whose_finest_output_is_taught_the_windows_own_voxels(stem: ZYX) -> None:
    network, loss = nnunet_parts(stem)
    images = torch.randn(1, 1, 8, 16, 16)
    finest, second = network(images)
    assert finest.shape[2:] == images.shape[2:]
    strides = np.cumprod(plain_network(stem, 0.0).strides, axis=0)
    pipeline = CampaignTrainer.get_validation_transforms([list(1 / s) for s in strides[:2]], ignore_label=2)
    labels = torch.randint(-1, 3, (1, 8, 16, 16), dtype=torch.int16)
    targets = pipeline(image=images[0], segmentation=labels.clone())["segmentation"]
    assert [t.dtype for t in targets] == [torch.int16]
    assert torch.equal(targets[0], torch.where(labels < 0, 2, labels))
    value = loss([finest, second], [t[None] for t in targets]).detach()
    assert torch.isfinite(value)
    worse = [finest, second * 10]
    assert torch.equal(loss(worse, [t[None] for t in targets]).detach(), value), "nnU-Net gives the coarsest no weight"


def test_a_coarser_output_of_nnunet_is_taught_the_share_of_structure_smaller_than_its_cells() -> None:
    _, truth = puncta((8, 32, 32), 0.005, 150)
    labels = torch.from_numpy(truth.astype(np.int16))[None, None]
    labels[..., :5] = 2
    shares, known = (
        t.double() for t in (nn.functional.avg_pool3d(m.float(), (2, 4, 4)) for m in (labels == 1, labels != 2))
    )
    share = (shares / known.clamp(min=1e-9)).clamp(1e-7, 1 - 1e-7)
    assert 0 < share.max() < 0.5
    _, loss = nnunet_parts((1, 2, 2))
    loss.weights = [2 / 3, 1 / 3, 0.0]
    finest = SURE * torch.cat([1 - 2.0 * (labels == 1), 2.0 * (labels == 1) - 1], dim=1)
    coarsest = torch.zeros(1, 2, 4, 4, 4)
    exact = torch.cat([1 - share, share], dim=1).log().float()
    least = float(loss([finest, exact, coarsest], [labels]))
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        for _ in range(10):
            other = exact + size * torch.randn(exact.shape, generator=generator)
            assert float(loss([finest, other, coarsest], [labels])) > least
    flat = torch.cat([torch.full_like(share, 0.99), torch.full_like(share, 0.01)], dim=1).log().float()
    flat.requires_grad_()
    loss([finest, flat, coarsest], [labels]).backward()
    assert flat.grad is not None
    assert (flat.grad[:, 1:][share > 0.02] < 0).all(), "nothing pulls a punctum down"
    assert not flat.grad[:, 1:][known == 0].any(), "cells that nobody labelled count for nothing"


def test_a_batch_of_logits_is_not_taken_for_a_list_of_outputs() -> None:
    alone = with_full_size(nn.Conv3d(1, 2, kernel_size=1))
    with pytest.raises(AssertionError, match="deep supervision"):
        alone(torch.zeros(2, 1, 4, 4, 4))


# a working spacing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "volume"), [((1, 2, 2), 1.081), ((2, 2, 2), 1.020), ((1, 1.5, 1.5), 0.925), ((1, 0.5, 0.5), 1.0)]
)
def test_what_is_taught_at_another_spacing_comes_back_in_its_place(
    ratio: tuple[float, float, float], volume: float
) -> None:
    """Its volume, as measured, is off by up to 8 % at two voxels to a cell: a cell is foreground as a whole or not."""
    field = (24, 48, 48)
    window = tuple(round(n / r) for n, r in zip(field, ratio, strict=True))
    shifts, volumes = [], []
    for step in range(8):  # as many places of the ball within a cell
        truth = ball(7, field, (11 + 0.5 * (step & 1), 22 + 0.5 * (step >> 1 & 1), 23.25 + 0.5 * (step >> 2)))
        labels = resample_labels(truth.astype(int), window, ignore=255)
        shares = resample(torch.from_numpy(truth)[None, None].float(), window)[0, 0].numpy()
        if min(ratio) >= 1:
            assert np.array_equal(labels == 1, shares >= 0.5 - 1e-5), "images and labels lie on one grid"
        members = predict(Thresholds(), truth, window, ratio)
        mask = members.mean(axis=0).argmax(axis=0) == 1
        assert members.var(axis=0).max() < 1e-6
        shifts.append(np.argwhere(mask).mean(axis=0) - np.argwhere(truth).mean(axis=0))
        assert dice(mask, truth) > 0.92
        volumes.append(mask.sum() / truth.sum())
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.05
    assert np.mean(volumes) == pytest.approx(volume, abs=0.002), "cells of which half is foreground are foreground"
