"""A long training compiles its network where that pays, falls back with one line, and resumes as it was begun."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rescueseg.models import compiled_step
from rescueseg.models.compiled_step import DECISION_STEP, compile_forward, measure, worth_trying
from rescueseg.models.layout import lay_channels_last
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.unet.loop import Run
from rescueseg.models.unet.settings import UNetSettings
from rescueseg.models.unet.trainer import plan_training
from tests.training_rig import BOXES, make_campaign, make_snapshot

Forward = compiled_step.Forward


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training be long enough, and keep measurements apart from those of this user."""
    monkeypatch.setattr(compiled_step, "_LEAST_SECONDS", 0.0)
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path / "cache"))


def compiles_to(monkeypatch: pytest.MonkeyPatch, change: Callable[[Forward], Forward]) -> list[int]:
    """Let `torch.compile` return what is given, for its own takes a minute; return how often it is asked for."""
    calls: list[int] = []

    def stand_in(forward: Forward, dynamic: bool) -> Forward:
        calls.append(1)
        return change(forward)

    monkeypatch.setattr(torch, "compile", stand_in)
    return calls


def equal(forward: Forward) -> Forward:
    return lambda images, masks: forward(images, masks)


def wrong(forward: Forward) -> Forward:
    def other(images: Tensor, masks: compiled_step.Masks) -> tuple[Tensor, list[Tensor]]:
        logits, coarse = forward(images, masks)
        return logits.roll(1, dims=-1), coarse

    return other


def no_compiler(forward: Forward) -> Forward:
    def fail(images: Tensor, masks: compiled_step.Masks) -> tuple[Tensor, list[Tensor]]:
        raise RuntimeError("no C++ compiler was found\nand much more")

    return fail


def faster(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let a clock say how long the passes of a measurement take, compiled and plain by turns."""
    ticks = count()
    times = [0.0]

    def clock() -> float:
        n = next(ticks)
        if n % 2:
            times[0] += share if n % 4 == 1 else 1.0
        return times[0]

    monkeypatch.setattr(compiled_step.time, "perf_counter", clock)


def start(folder: Path, **settings: Any) -> Callable[[], Run]:
    campaign = make_campaign(folder, iterations=DECISION_STEP + 4, **settings)
    snapshot = make_snapshot(campaign, BOXES)
    plan = plan_training(campaign.config, campaign.volumes, snapshot)

    def begin() -> Run:
        data = TrainingSet(campaign.volumes, snapshot, plan)
        return Run(folder / "run", "id", data, plan, seed=1, device="cpu", weights=None)

    return begin


def go_on(run: Run, to: int) -> None:
    with run.batches:
        while run.step < to:
            run.advance()


def test_only_a_training_that_lasts_long_tries_it() -> None:
    assert not worth_trying(0.07, 2500)
    assert worth_trying(0.07, 100_000)


def test_a_short_training_never_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compiles_to(monkeypatch, equal)
    run = start(tmp_path)()
    go_on(run, DECISION_STEP + 2)
    assert (calls, run.forward.compiled, run.forward.note) == ([], False, "")


@pytest.mark.usefixtures("tried")
def test_nor_does_one_that_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compiles_to(monkeypatch, equal)
    run = start(tmp_path, unet={"compile": False})()
    go_on(run, DECISION_STEP + 2)
    assert (calls, run.forward.compiled) == ([], False)
    assert run.plan.to_json()["compile"] is False
    assert "compile" not in run.plan.model_copy(update={"compile": True}).to_json(), "as older plans"
    assert UNetSettings(compile=False).identity() != UNetSettings().identity()
    assert "compile" not in UNetSettings().identity()


@pytest.mark.usefixtures("tried")
def test_where_it_pays_it_is_kept_and_resumed_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = compiles_to(monkeypatch, equal)
    faster(monkeypatch, 0.5)
    begin = start(tmp_path)
    run = begin()
    go_on(run, DECISION_STEP)
    assert run.forward.compiled is None
    go_on_from = begin()
    go_on(go_on_from, DECISION_STEP + 1)
    assert go_on_from.forward.compiled is True
    assert len(calls) == 1
    go_on_from.save()
    resumed = begin()
    resumed.resume()
    assert resumed.forward.compiled is True
    go_on(resumed, DECISION_STEP + 3)
    assert resumed.forward.forward is not resumed.forward.plain
    monkeypatch.setattr(compiled_step, "measure", lambda *_: pytest.fail("it was measured already"))
    again = begin()
    go_on(again, DECISION_STEP + 3)
    assert again.forward.compiled is True
    assert again.losses == resumed.losses, "the same request trains the same, killed or not"


@pytest.mark.usefixtures("tried")
def test_where_it_does_not_pay_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiles_to(monkeypatch, equal)
    faster(monkeypatch, 0.99)
    run = start(tmp_path)()
    go_on(run, DECISION_STEP + 2)
    assert (run.forward.compiled, run.forward.note) == (False, "")


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    ("change", "why"), [(wrong, "output 0 of .* is off by"), (no_compiler, "RuntimeError: no C.. compiler was found$")]
)
def test_what_fails_or_says_something_else_is_one_line_and_the_training_goes_on_as_if_it_had_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: object, why: str
) -> None:
    (tmp_path / "a").mkdir()
    begin = start(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(compiled_step, "_LEAST_SECONDS", 1e9)
        plain = begin()
        go_on(plain, DECISION_STEP + 3)
    compiles_to(monkeypatch, change)  # type: ignore[arg-type]
    run = begin()
    go_on(run, DECISION_STEP + 3)
    assert run.forward.compiled is False
    lines = [record.getMessage() for record in caplog.records if "torch.compile" in record.getMessage()]
    assert len(lines) == 1
    assert re.search(why, lines[0])
    assert run.losses == plain.losses


@pytest.mark.usefixtures("tried")
def test_a_resumed_training_that_cannot_compile_any_more_says_that_it_is_not_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = start(tmp_path)
    run = begin()
    run.forward.compiled = True
    run.save()
    compiles_to(monkeypatch, no_compiler)
    resumed = begin()
    resumed.resume()
    go_on(resumed, 2)
    assert resumed.forward.compiled is False
    assert "goes on without torch.compile, not bit for bit: RuntimeError: no C++ compiler" in caplog.text
    assert resumed.forward.note in caplog.text


class Odd(torch.autograd.Function):
    """A layer whose gradient depends on the values of its input, which no compiler can look into."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return torch.from_numpy(x.detach().numpy() * 2)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.slow
def test_the_compiler_of_this_machine_says_what_the_network_says_or_is_not_used() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 2, 1))
    lay_channels_last(network)

    def forward(images: Tensor, masks: compiled_step.Masks) -> tuple[Tensor, list[Tensor]]:
        return network(images), []

    def odd(images: Tensor, masks: compiled_step.Masks) -> tuple[Tensor, list[Tensor]]:
        return Odd.apply(network(images)), []  # type: ignore[no-untyped-call]

    batch = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), None
    for way in (forward, odd):
        found = measure(network, way, compile_forward(way), batch)
        assert (found.share is None) == bool(found.reason)
        assert all(p.grad is None for p in network.parameters())
