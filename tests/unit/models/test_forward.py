"""Every way of computing the forward pass says what the eager pass says, or leaves the work to it and says so."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rescueseg.config import InferenceConfig
from rescueseg.models import forward, forward_choice, members
from rescueseg.models.forward import BUILDS, ChannelsLast, Compiled, replace_layers
from rescueseg.models.forward_speed import Measured, Speed, Subject, Work, read_speed, store_speed
from rescueseg.models.members import NetworksPredictor
from rescueseg.models.nnunet.network import build_network as build_nnunet
from rescueseg.models.nnunet.plan import NnUNetNetwork, NnUNetPlan
from rescueseg.models.nnunet.predictor import NnUNetPredictor
from rescueseg.models.precision import Precision
from rescueseg.models.predictor import forward_of
from rescueseg.models.split_network import SplitNetwork
from rescueseg.models.unet.network import StridedUNet
from rescueseg.models.unet.predictor import UNetPredictor
from tests.small_unet import SPACING, small_unet

WINDOW = (4, 16, 16)
KEYS = [11, 2**62, 7]
BFLOAT16 = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bfloat16")


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


Make = Callable[..., NetworksPredictor]
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
    """Compute in float32, keep what is compiled for this file's tests alone, and nothing that is measured."""
    monkeypatch.setattr(members, "choose_precision", lambda *_: Precision(None))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled"))
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path_factory.mktemp("cache")))
    members._warn_once.cache_clear()
    yield
    members._warn_once.cache_clear()


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, *WINDOW)).astype(np.float32)


def members_of(predictor: NetworksPredictor, windows: np.ndarray, keys: list[int]) -> list[dict[str, np.ndarray]]:
    return [dict(member) for _, member in predictor.members(windows, keys)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("rescueseg")]


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


# the choice ----------------------------------------------------------------------------------------------------------


def measured(features: float, setup: float = 0.0, eager: float = 1.0) -> Measured:
    """Return what takes so many seconds per window, and half as many per sample."""
    speeds = (Speed(features=s, head=s / 2) for s in (features, eager))
    return Measured(setup_seconds=setup, speed=next(speeds), eager=next(speeds))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Measured | str]:
    """Stand in for the clock: what a way takes, or why it fails. An eager pass takes a second, and a sample half a one."""
    told: dict[str, Measured | str] = {"channels_last": measured(0.5), "compiled": measured(0.25, setup=7.0)}

    def measure(name: str, _: Subject) -> Measured:
        figure = told[name]
        if isinstance(figure, str):
            raise forward_choice.UnfitError(figure)
        return figure

    monkeypatch.setattr(forward_choice, "measure", measure)
    monkeypatch.setattr(forward_choice, "measure_speed", lambda *_: Speed(features=1.0, head=0.5))
    monkeypatch.setattr(forward_choice, "set_up", lambda name, subject: forward_choice.Ready(subject.networks, 1))
    return told


def test_few_windows_are_not_worth_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_choice, "measure_speed", lambda *_: pytest.fail("measured"))
    assert make_unet("auto", networks=1).choose_forward(3) == "eager"


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_where_nothing_can_be_measured_the_pass_is_eager(device: str, caplog: pytest.LogCaptureFixture) -> None:
    predictor = make_unet("auto")
    predictor._device = torch.device(device)
    assert predictor.choose_forward(10**6) == "eager"
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("windows", "workers", "name"),
    [
        (6, 1, "eager"),  # 36 images
        (7, 1, "channels_last"),  # 84 s, 42 with channels-last: compiling takes 45
        (7, 20, "channels_last"),
        (40, 1, "compiled"),  # 480 s, 240 with channels-last, 127 compiled
        (40, 2, "channels_last"),  # 120 s with channels-last: less than four times 45
    ],
)
def test_a_way_is_tried_once_the_job_is_long_enough_to_gain_from_it(
    figures: dict[str, Measured | str], windows: int, workers: int, name: str
) -> None:
    assert make_unet("auto").choose_forward(windows, workers) == name


def test_a_slow_way_and_one_that_fails_are_not_chosen(
    figures: dict[str, Measured | str], caplog: pytest.LogCaptureFixture
) -> None:
    figures |= {"channels_last": measured(0.96), "compiled": "an odd layer"}
    predictor = make_unet("auto")
    assert [predictor.choose_forward(400) for _ in range(2)] == ["eager", "eager"]
    assert warnings_in(caplog) == [
        "the forward pass is not computed by 'compiled', which may take longer: an odd layer"
    ]


def test_what_was_measured_holds_for_later_jobs_and_counts_what_it_takes_to_set_up(
    figures: dict[str, Measured | str],
) -> None:
    assert make_unet("auto").choose_forward(400) == "compiled"
    figures |= {"channels_last": "measured again", "compiled": "measured again"}
    assert make_unet("auto").choose_forward(8) == "compiled"  # 24 + 7 s, not 48
    assert make_unet("auto").choose_forward(8, workers=4) == "channels_last"  # 12 s, not 6 + 7
    assert make_unet("auto", dropout=0.0).choose_forward(8) == "eager"


def test_the_first_to_measure_wins_and_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    file, first, second = tmp_path / "new" / "way.json", measured(0.5), measured(0.25)
    assert store_speed(file, first) == first
    assert store_speed(file, second) == first
    assert [path.name for path in file.parent.iterdir()] == ["way.json"]
    assert read_speed(file) == first
    file.write_text("{")
    assert read_speed(file) is None
    assert store_speed(tmp_path / "new" / "way.json" / "not-a-folder", second) == second


def test_a_way_that_a_person_names_is_kept_or_the_next_one_that_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_unet("channels_last").choose_forward(1) == "channels_last"
    assert make_unet("eager").choose_forward(10**6) == "eager"
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_unet("compiled").choose_forward(1) == "channels_last"
    assert ["no C++ compiler" in line for line in warnings_in(caplog)] == [True]


def test_a_real_measurement_is_stored_and_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path))
    monkeypatch.setattr(forward_choice, "_COMPILING_SECONDS", float("inf"))
    name = make_nnunet("auto").choose_forward(10_000)
    [file] = (tmp_path / "forward").iterdir()
    stored = Measured.model_validate_json(file.read_bytes())
    work = Work(images=10_000 * 2 * 3, samples=2)
    ratio = stored.speed.seconds(work) / stored.eager.seconds(work)
    assert ratio > 0
    if abs(ratio - 0.95) > 0.05:
        assert (name == "channels_last") == (ratio < 0.95)


def test_every_way_is_tested() -> None:
    assert {
        parameters.values[1] if hasattr(parameters, "values") else parameters[1] for parameters in EACH.args[1]
    } == {*BUILDS}


def test_a_predictor_of_another_family_knows_the_eager_pass_alone() -> None:
    assert forward_of(object(), 10**6, 1) == "eager"


def test_networks_that_differ_in_their_weights_share_compiled_code() -> None:
    predictor = make_nnunet("compiled", networks=2)
    members_of(predictor, images(1), KEYS[:1])
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    members_of(make_nnunet("compiled", networks=2), images(1), KEYS[:1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert all(isinstance(network, Compiled) for network in predictor._ready[None].networks)
