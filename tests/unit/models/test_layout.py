"""The layout that a CPU trains in changes nothing but rounding."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from rescueseg.models.layout import as_channels_last, lay_channels_last, lay_moments_as_weights
from rescueseg.models.nnunet.network import build_network as build_nnunet
from rescueseg.models.nnunet.network import own_weights
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.unet.network import build_network, get_weights, set_weights
from rescueseg.models.unet.plan import NetworkPlan

UNET = NetworkPlan(
    in_channels=2,
    n_classes=2,
    channels=(8, 16, 32),
    strides=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    dropout=0.2,
)
NNUNET = NnUNetNetwork(
    architecture="residual",
    in_channels=2,
    n_classes=2,
    features=(8, 16, 32),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1),
    dropout=0.0,
)


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [build_network(UNET, 3), build_nnunet(NNUNET)]


def images() -> torch.Tensor:
    return torch.randn(2, 2, 8, 16, 16, generator=torch.Generator().manual_seed(1))


def way_through_memory(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Return length and stride of each axis that is longer than one."""
    return [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]


@pytest.mark.parametrize("index", [0, 1])
def test_outputs_and_gradients_are_those_of_the_other_layout(index: int) -> None:
    usual = networks()[index].double()
    laid = deepcopy(usual)
    lay_channels_last(laid)
    batch = images().double()
    expected, found = usual(batch), laid(as_channels_last(batch))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for logits in (expected, found):
        logits.square().sum().backward()
    gradients = [{n: p.grad for n, p in network.named_parameters()} for network in (usual, laid)]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-7)


def test_weights_keep_names_shapes_and_values() -> None:
    unet, nnunet = networks()
    before = [{n: w.clone() for n, w in weights.items()} for weights in (get_weights(unet), own_weights(nnunet))]  # type: ignore[arg-type]
    for network in (unet, nnunet):
        lay_channels_last(network)
    after = [get_weights(unet), own_weights(nnunet)]  # type: ignore[arg-type]
    assert [list(weights) for weights in after] == [list(weights) for weights in before]
    assert all(torch.equal(w, after[i][n]) for i, weights in enumerate(before) for n, w in weights.items())
    other = build_network(UNET, 4)
    set_weights(other, after[0])
    torch.testing.assert_close(other(images()), unet(as_channels_last(images())), rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def test_a_fused_optimiser_steps_as_the_plain_one_does_whatever_the_layout_of_the_gradients() -> None:
    """Fused AdamW walks through memory: weights, gradients and moments must lie alike."""
    usual = build_network(UNET, 3)
    laid = build_network(UNET, 3)
    lay_channels_last(laid)
    optimisers = [
        torch.optim.AdamW(usual.parameters(), lr=1e-2, weight_decay=1e-4),
        torch.optim.AdamW(laid.parameters(), lr=1e-2, weight_decay=1e-4, fused=True),
    ]
    draw = torch.Generator().manual_seed(2)
    for _ in range(3):
        for own, theirs in zip(usual.parameters(), laid.parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=draw)
            theirs.grad = torch.empty_like(theirs).copy_(own.grad)
            assert theirs.grad.stride() == theirs.stride()
        for optimiser in optimisers:
            optimiser.step()
    for own, theirs in zip(usual.parameters(), laid.parameters(), strict=True):
        torch.testing.assert_close(theirs, own, rtol=1e-5, atol=1e-6)


def test_gradients_lie_as_their_weights_do() -> None:
    for network in networks():
        lay_channels_last(network)
        network(as_channels_last(images())).square().sum().backward()
        with_gradient = [weight for weight in network.parameters() if weight.grad is not None]
        assert len(with_gradient) >= len(list(network.parameters())) - 2, "all but nnU-Net's head for supervision"
        for weight in with_gradient:
            assert weight.grad is not None
            assert way_through_memory(weight.grad) == way_through_memory(weight)


def test_moments_of_another_layout_are_laid_as_the_weights() -> None:
    """A training that began on a GPU goes on on a CPU."""
    usual, laid = build_network(UNET, 3), build_network(UNET, 3)
    first = torch.optim.AdamW(usual.parameters(), lr=1e-2, fused=True)
    second = torch.optim.AdamW(laid.parameters(), lr=1e-2, fused=True)
    lay_channels_last(laid)

    def step(network: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for weight in network.parameters():
            weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=draw))
        optimiser.step()

    step(usual, first, 1)
    set_weights(laid, get_weights(usual))
    second.load_state_dict(deepcopy(first.state_dict()))
    lay_moments_as_weights(second)
    step(usual, first, 2)
    step(laid, second, 2)
    for own, theirs in zip(usual.parameters(), laid.parameters(), strict=True):
        assert torch.equal(own, theirs)
