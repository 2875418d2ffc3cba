"""nnU-Net's batches and dropout on a CPU follow from the number of the step, whoever prepares them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rescueseg.models.nnunet.batches import BatchKey, following_batch, series_of_batches
from rescueseg.models.nnunet.network import build_network
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.nnunet.step_dropout import StepDropout, draw_dropout_from


class Loader:
    """Draws from both global generators, as nnU-Net's loaders and transforms do."""

    def __init__(self) -> None:
        self.data_loader = SimpleNamespace(_data=SimpleNamespace(load_case=lambda case: case))

    def __next__(self) -> dict[str, Any]:
        return {"data": torch.rand(3), "case": int(np.random.randint(10**6))}


def batches_of(beside: bool, first_step: int = 0) -> list[dict[str, Any]]:
    """Return the batches of two epochs of three steps and two validation steps, disturbed between the steps."""
    training, validation = series_of_batches(
        {"training": Loader(), "validation": Loader()},
        lambda key: following_batch(key, steps=6, epoch_steps=3, validation_steps=2),
        lambda key: 1000 * key.number + len(key.part),
        beside=beside,
    )
    training.number, validation.number = first_step, first_step // 3 * 2
    taken = []
    with training.batches:
        for _ in range(first_step // 3, 2):
            for series, count in ((training, 3), (validation, 2)):
                taken += [next(series) for _ in range(count)]
    return taken


def test_batches_are_the_same_ahead_or_not_and_after_a_kill() -> None:
    inline, ahead, resumed = batches_of(beside=False), batches_of(beside=True), batches_of(beside=True, first_step=3)
    cases = [batch["case"] for batch in inline]
    assert len(set(cases)) == 10
    assert [batch["case"] for batch in ahead] == cases
    assert [batch["case"] for batch in resumed] == cases[5:]
    for batches in (ahead, [*inline[:5], *resumed]):
        assert all(torch.equal(a["data"], b["data"]) for a, b in zip(inline, batches, strict=True))


@pytest.mark.parametrize(("steps", "epoch_steps"), [(1, 1), (7, 3), (6, 3), (5, 10)])
def test_the_order_is_that_of_nnunets_loops(steps: int, epoch_steps: int) -> None:
    expected, step, validated = [], 0, 0
    while step < steps:
        for _ in range(min(epoch_steps, steps - step)):
            expected.append(BatchKey("training", step))
            step += 1
        for _ in range(2):
            expected.append(BatchKey("validation", validated))
            validated += 1
    order: list[BatchKey] = []
    key: BatchKey | None = expected[0]
    while key is not None:
        order.append(key)
        key = following_batch(key, steps, epoch_steps, 2)
    assert order == expected


def test_dropout_drops_whole_channels_by_its_own_generator_alone() -> None:
    layer = StepDropout(0.25, torch.Generator())
    features = torch.ones(64, 256, 1, 2, 2)
    layer.generator.manual_seed(7)
    torch.manual_seed(1)
    first = layer(features)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    layer.generator.manual_seed(7)
    assert torch.equal(layer(features), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(layer(features), first), "the next layer drops others"
    assert torch.equal(first, first[..., :1, :1, :1].expand_as(first))
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert float((first > 0).float().mean()) == pytest.approx(0.75, abs=0.015)  # 64 × 256 draws: ± 4 standard errors
    assert layer.eval()(features) is features


def test_every_dropout_layer_of_a_network_draws_from_the_generator() -> None:
    plan = NnUNetNetwork(
        architecture="plain",
        in_channels=1,
        n_classes=1,
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3)),
        encoder_blocks=(2, 2),
        decoder_blocks=(2,),
        dropout=0.5,
    )
    network, generator = build_network(plan).train(), torch.Generator()
    draw_dropout_from(generator, network)
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout3d)]
    assert layers
    assert all(isinstance(layer, StepDropout) and layer.generator is generator and layer.p == 0.5 for layer in layers)
    images = torch.randn(2, 1, 8, 8, 8)
    outputs = []
    for seed in (1, 1, 2):
        generator.manual_seed(seed)
        outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
