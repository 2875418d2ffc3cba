"""Every way of computing the forward pass says what the eager pass says, or leaves the work to it and says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rescueseg.models import forward, forward_choice, members
from rescueseg.models.forward import BUILDS, ChannelsLast, Compiled, replace_layers
from rescueseg.models.members import NetworksPredictor
from rescueseg.models.precision import Precision
from rescueseg.models.split_network import SplitNetwork
from rescueseg.models.unet.network import StridedUNet
from tests.forward_rig import (
    KEYS,
    Make,
    alone_in_float32,
    images,
    make_nnunet,
    make_unet,
    members_of,
    warnings_in,
)

BFLOAT16 = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bfloat16")

FAMILIES = pytest.mark.parametrize("make", [make_unet, make_nnunet])
EACH = pytest.mark.parametrize(
    ("make", "way"),
    [
        (make_unet, "channels_last"),
        (make_nnunet, "channels_last"),
        (make_nnunet, "compiled"),
        pytest.param(make_unet, "compiled", marks=pytest.mark.slow),  # half a minute, for it has two functions
    ],
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    alone_in_float32(monkeypatch, tmp_path_factory)
    yield
    members._warn_once.cache_clear()


# equal output --------------------------------------------------------------------------------------------------------


@EACH
def test_each_way_says_what_the_eager_pass_says(make: Make, way: str, caplog: pytest.LogCaptureFixture) -> None:
    eager, other = (members_of(make(name), images(), KEYS) for name in ("eager", way))
    assert len(eager) == len(other) == 2 * 2 * 3
    for expected, found in zip(eager, other, strict=True):
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=2e-5)
    assert not np.array_equal(other[0]["probability"], other[1]["probability"]), "dropout differs from sample to sample"
    assert warnings_in(caplog) == []


@EACH
def test_the_numbers_of_a_window_do_not_depend_on_which_others_are_with_it(make: Make, way: str) -> None:
    predictor = make(way, networks=1)
    together = members_of(predictor, images(), KEYS)
    for i in (2, 0, 1):
        alone = members_of(predictor, images()[i : i + 1], KEYS[i : i + 1])
        for expected, found in zip(together, alone, strict=True):
            assert all(np.array_equal(found[name][0], expected[name][i]) for name in expected)


@FAMILIES
def test_batches_of_a_fixed_size_are_filled_up(make: Make) -> None:
    eager, filled = make("eager", networks=1), make("eager", networks=1)
    filled._ready[None] = forward_choice.Ready(filled._networks, batch=2)
    for expected, found in zip(*(members_of(p, images(), KEYS) for p in (eager, filled)), strict=True):
        assert found["probability"].shape == expected["probability"].shape
        np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_eager_pass_of_a_gpu_gets_no_more_windows_than_its_memory_should_hold(
    device: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = make_nnunet("eager", networks=1)
    assert predictor._parts(9, Precision(None)) == [slice(0, 9)], "a CPU in float32 gets them as they came"
    predictor._device = torch.device(device)
    monkeypatch.setattr(members, "GPU_BATCH_VOXELS", 5 * 4 * 16 * 16)
    assert predictor._parts(9, Precision(dtype)) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert predictor._parts(3, Precision(dtype)) == [slice(0, 3)]
    assert predictor._parts(3, Precision(dtype), batch=2) == [slice(0, 2), slice(2, 3)]
    monkeypatch.setattr(members, "GPU_BATCH_VOXELS", 1)
    assert predictor._parts(2, Precision(dtype)) == [slice(0, 1), slice(1, 2)]


@FAMILIES
def test_without_dropout_nothing_is_dropped(make: Make) -> None:
    eager, other = (members_of(make(name, dropout=0.0), images(), KEYS) for name in ("eager", "channels_last"))
    assert len(eager) == len(other) == 2 * 3
    for expected, found in zip(eager, other, strict=True):
        np.testing.assert_allclose(found["probability"], expected["probability"], atol=2e-5)


@BFLOAT16
@FAMILIES
def test_in_bfloat16_a_way_is_as_near_to_float32_as_the_eager_pass(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    exact = members_of(make("eager"), images(), KEYS)
    monkeypatch.setattr(members, "choose_precision", lambda *_: Precision(torch.bfloat16))

    def error(way: str) -> float:
        found = members_of(make(way), images(), KEYS)
        gaps = [np.abs(a["probability"] - b["probability"]).mean() for a, b in zip(found, exact, strict=True)]
        return float(np.mean(gaps))

    assert 0 < error("channels_last") <= 1.5 * error("eager") + 1e-4


def test_a_layer_is_replaced_under_every_name_that_it_has() -> None:
    predictor = make_nnunet("channels_last")
    copy = ChannelsLast(predictor._networks[0], torch.device("cpu"), None)
    kinds = {type(module) for module in copy.modules()}
    assert forward.GroupedNorm in kinds
    assert nn.InstanceNorm3d not in kinds
    assert nn.InstanceNorm3d in {type(m) for m in predictor._networks[0].modules()}, "the network itself stays as it is"


@pytest.mark.parametrize("setting", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_convolutions_of_other_kinds_stay(setting: dict[str, object]) -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 3, **setting), nn.Conv3d(1, 1, 3, padding=1))
    replace_layers(network, forward._by_one_dnn)
    assert isinstance(network[0], nn.Conv3d)
    assert isinstance(network[1], forward.OneDnnConvolution)


# what fails ----------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A layer that cannot be compiled: it looks at its numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layer(features)
        return result if float(result.abs().max()) < 1e9 else -result


class Wrong(ChannelsLast):
    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        return super().head(features, masks) * 1.1


class Broken(ChannelsLast):
    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        logits = super().head(features, masks)
        logits[..., 0] = torch.nan
        return logits


class Blind(ChannelsLast):
    """Says the same of every image and everywhere."""

    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        logits = super().head(features, masks)
        return logits.mean(dim=(0, 2, 3, 4), keepdim=True).expand_as(logits).contiguous()


class Shifted(ChannelsLast):
    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        return super().head(features, masks).roll(1, dims=-1)


class WrongInOneVoxel(ChannelsLast):
    def head(self, features: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None) -> Tensor:
        logits = super().head(features, masks)
        logits[:, 1, 2, 8, 8] += 0.1
        return logits


def too_large(network: SplitNetwork, device: torch.device, dtype: torch.dtype | None) -> SplitNetwork:
    raise torch.OutOfMemoryError("no memory for 3 GiB\nand more")


def is_eager_and_says_so(predictor: NetworksPredictor, eager: NetworksPredictor, log: pytest.LogCaptureFixture) -> str:
    """Check that a predictor computes eagerly, and return the one line that it logs in two calls."""
    for _ in range(2):
        for expected, found in zip(*(members_of(p, images(), KEYS) for p in (eager, predictor)), strict=True):
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    [line] = warnings_in(log)
    return line


@FAMILIES
def test_without_a_compiler_the_pass_is_eager_and_one_line_says_so(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    line = is_eager_and_says_so(make("compiled"), make("eager"), caplog)
    assert line == (
        "the forward pass is not computed by 'compiled', which may take longer: there is no C++ compiler (g++) on this machine"
    )


@FAMILIES
def test_an_odd_layer_makes_the_pass_eager_and_one_line_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    predictors = make("compiled"), make("eager")
    for predictor in predictors:
        for network in predictor._networks:
            replace_layers(network, lambda layer: Odd(layer) if isinstance(layer, nn.LeakyReLU) else None)
    assert "'compiled'" in is_eager_and_says_so(*predictors, caplog)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Wrong, r"its probabilities differ by 0\.\d+ on average, not at most 0\.0001$"),
        (WrongInOneVoxel, r"one of its probabilities differs by 0\.0\d+, not at most 0\.01$"),
        (Broken, "it gives numbers that are not finite$"),
        (too_large, "no memory for 3 GiB$"),
    ],
)
def test_a_way_that_fails_here_leaves_the_work_to_the_eager_pass(
    build: forward.Build, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward_choice, "BUILDS", {"channels_last": build})
    line = is_eager_and_says_so(make_unet("channels_last"), make_unet("eager"), caplog)
    assert re.search(reason, line)


def make_sure_of_background(predictor: NetworksPredictor) -> None:
    """Let all networks give the background a probability of nearly 1 everywhere."""
    for network in predictor._networks:
        last = network.fine.conv if isinstance(network, StridedUNet) else network.network.decoder.seg_layers[-1]
        with torch.no_grad():
            last.bias.copy_(10.0 * (torch.arange(len(last.bias)) == 0))


PRECISIONS = pytest.mark.parametrize("dtype", [None, pytest.param(torch.bfloat16, marks=BFLOAT16)])


@pytest.mark.parametrize("make", [partial(make_unet, border=False), make_nnunet])
@PRECISIONS
@pytest.mark.parametrize("build", [Blind, Shifted])
def test_a_way_that_is_wrong_is_refused_where_every_probability_is_nearly_right(
    make: Make, dtype: torch.dtype | None, build: forward.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_choice, "BUILDS", {"channels_last": build})
    predictor = make("eager")
    make_sure_of_background(predictor)
    with pytest.raises(forward_choice.UnfitError, match="its logits differ by"):
        forward_choice.set_up("channels_last", predictor._subject(Precision(dtype)))


@FAMILIES
@PRECISIONS
def test_a_way_that_is_wrong_in_the_second_network_alone_is_refused(make: Make, dtype: torch.dtype | None) -> None:
    subject = make("eager")._subject(Precision(dtype))
    ready = forward_choice.set_up("channels_last", subject)
    for module in ready.networks[1].modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | forward.OneDnnConvolution):
            module.weight.zero_()
    assert forward_choice.difference(subject, ready)


@FAMILIES
@PRECISIONS
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_channels_last_is_refused_neither_by_probabilities_nor_by_logits(
    make: Make, dtype: torch.dtype | None, dropout: float
) -> None:
    for prepare in (lambda _: None, make_sure_of_background):
        predictor = make("eager", networks=4, dropout=dropout)
        prepare(predictor)
        subject = predictor._subject(Precision(dtype))
        assert forward_choice.difference(subject, forward_choice._built("channels_last", subject)) == ""


def test_every_way_is_tested() -> None:
    assert {
        parameters.values[1] if hasattr(parameters, "values") else parameters[1] for parameters in EACH.args[1]
    } == {*BUILDS}


def test_networks_that_differ_in_their_weights_share_compiled_code() -> None:
    predictor = make_nnunet("compiled", networks=2)
    members_of(predictor, images(1), KEYS[:1])
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    members_of(make_nnunet("compiled", networks=2), images(1), KEYS[:1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert all(isinstance(network, Compiled) for network in predictor._ready[None].networks)
