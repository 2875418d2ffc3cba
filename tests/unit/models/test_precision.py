"""Whether bfloat16 is trusted: trials in processes of their own, what they say, how they end, and what follows."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rescueseg.config import InferenceConfig, TrainingConfig
from rescueseg.models import members
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.precision import (
    TRIAL_COMMAND,
    autocast_dtype,
    bfloat16_verdict,
    cache_folder,
    choose_precision,
    find_verdict,
    run_trial,
    verdict_key,
)
from rescueseg.models.precision_trial import ConvolutionCheck, compare, difference
from rescueseg.models.survey import Survey
from rescueseg.models.trial import Trial, Verdict
from rescueseg.models.unet.network import build_network
from rescueseg.models.unet.plan import TrainingPlan, make_plan
from rescueseg.models.unet.predictor import UNetPredictor
from tests.contracts.test_trainer import train
from tests.training_rig import BOXES, make_campaign, make_snapshot

CPU = torch.device("cpu")
BFLOAT16 = pytest.mark.skipif(autocast_dtype(CPU) is None, reason="this CPU does not compute in bfloat16")
YES = (sys.executable, "-c", """print('{"holds": true}')""")
NO = (sys.executable, "-c", """print('{"holds": false, "reason": "it is wrong"}')""")


@pytest.fixture(autouse=True)
def _own_memory() -> Iterator[None]:
    """Forget the verdicts of other tests, and let other tests forget those of this one."""
    for forget in (bfloat16_verdict.cache_clear, members._warn_once.cache_clear):
        forget()
    yield
    for forget in (bfloat16_verdict.cache_clear, members._warn_once.cache_clear):
        forget()


def unet_plan(*window: int, dropout: float = 0.2) -> TrainingPlan:
    return make_plan(
        TrainingConfig.model_validate({"window_zyx": window, "dropout": dropout, "unet": {"channels": [4, 8, 16]}}),
        Survey(in_channels=1, spacing_um_zyx=(0.2, 0.1, 0.1), volume_zyx=(8, 32, 32), field_zyx=(8, 32, 32)),
        1,
    )


def nnunet(*strides: tuple[int, int, int]) -> NnUNetNetwork:
    return NnUNetNetwork(
        architecture="plain",
        in_channels=1,
        n_classes=1,
        features=(8, 16, 32),
        strides=strides,
        kernels=((3, 3, 3),) * 3,
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
        dropout=0.1,
    )


FLAT = nnunet((1, 2, 2), (1, 2, 2), (1, 2, 2))


def a_trial(*window: int, **changes: object) -> Trial:
    shape = window or (8, 32, 32)
    fields = {"network": FLAT, "window": shape, "batches": (2,), "threads": 1, "backward": True}
    return Trial.model_validate(fields | changes)


# real trials --------------------------------------------------------------------------------------------------------


@BFLOAT16
@pytest.mark.parametrize("family", ["unet", "nnunet"])
def test_a_healthy_plan_holds_and_is_tried_once(family: str, tmp_path: Path) -> None:
    network = FLAT if family == "nnunet" else unet_plan(8, 32, 32).network
    trial, folder = a_trial(network=network), tmp_path / "cache" / "bfloat16"
    assert find_verdict(trial, folder) == Verdict(holds=True)
    (file,) = folder.iterdir()
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)
    assert find_verdict(trial, folder, NO) == Verdict(holds=True), "no second process"


BRUTE = """
import os, sys, torch
from rescueseg.models.trial import Trial
from rescueseg.models.precision_trial import compute, nnunet_forward
trial = Trial.model_validate_json(sys.argv[1])
torch.set_num_threads(trial.threads)
harmless = True
for seed in range(3):
    network, forward = nnunet_forward(trial.network, seed, True)
    images = torch.randn(2, 1, *trial.window, generator=torch.Generator().manual_seed(seed))
    exact, fast = (
        torch.cat([g.flatten() for g in compute(network, forward, images, True, bfloat16)[1].values()])
        for bfloat16 in (False, True)
    )
    harmless = harmless and bool(torch.isfinite(fast).all()) and bool((exact - fast).norm() < 0.5 * exact.norm())
print(harmless, flush=True)
os._exit(0)
"""


@BFLOAT16
def test_two_planes_are_caught_where_they_do_harm(tmp_path: Path) -> None:
    trial = a_trial(2, 32, 32)
    verdict = find_verdict(trial, tmp_path)
    tunables = {"MALLOC_PERTURB_": "129", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    command = [sys.executable, "-c", BRUTE, trial.model_dump_json()]
    brute = subprocess.run(command, env=os.environ | tunables, capture_output=True, text=True, check=False)
    harmless = brute.returncode == 0 and brute.stdout == "True\n"
    assert harmless or not verdict.holds, verdict
    assert verdict.final
    assert bool(verdict.reason) != verdict.holds


def test_a_trial_ends_with_the_process_that_started_it() -> None:
    command = [*TRIAL_COMMAND, a_trial(64, 256, 256).model_dump_json()]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, b"")


def test_a_trial_that_no_precision_computes_is_no_verdict_on_bfloat16(tmp_path: Path) -> None:
    verdict = find_verdict(a_trial(3, 7, 9), tmp_path)
    assert not verdict.holds
    assert not verdict.final, "float32 fails as well"
    assert not list(tmp_path.iterdir())


# how a trial's process may end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "final"),
    [
        ("os.abort()", "SIGABRT", True),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", True),
        ("os.write(2, b'free(): invalid pointer'); os.abort()", "free(): invalid pointer", True),
        ("os.write(2, b'what(): std::bad_alloc'); os.abort()", "bad_alloc", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", False),
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM", False),
        ("raise ImportError('no torch')", "ended with 1 (ImportError: no torch)", False),
        ("time.sleep(60)", "did not end within 1 s", False),
        ("print('nan')", "nothing that can be read", False),
        ("""print('{"holds": NaN}')""", "nothing that can be read", False),
        ("pass", "nothing that can be read", False),
    ],
)
def test_an_end_without_a_verdict_is_a_no_with_its_reason(code: str, reason: str, final: bool) -> None:
    verdict = run_trial([sys.executable, "-c", f"import os, signal, time; {code}"], threads=1, patience=1.0)
    assert not verdict.holds
    assert reason in verdict.reason
    assert verdict.final == final


def test_a_trial_that_cannot_be_started_is_a_no_for_now() -> None:
    verdict = run_trial(["/no/such/python"], threads=1, patience=1.0)
    assert (verdict.holds, verdict.final) == (False, False)
    assert "could not be started (No such file or directory)" in verdict.reason


def test_memory_is_filled_with_huge_numbers_in_a_trial_alone() -> None:
    code = (
        "import ctypes, json\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "pieces = [ctypes.string_at(libc.malloc(n), 4) for n in (100, 100_000, 10_000_000)]\n"
        "print(json.dumps({'holds': pieces == [b'~~~~'] * 3}))\n"
    )
    assert run_trial([sys.executable, "-c", code], threads=1, patience=30.0).holds
    huge = torch.frombuffer(bytearray(b"~~~~"), dtype=torch.bfloat16)
    assert (huge > 1e37).all()
    assert "MALLOC_PERTURB_" not in os.environ


# what is kept -------------------------------------------------------------------------------------------------------


def test_a_verdict_is_kept_and_one_of_the_moment_is_not(tmp_path: Path) -> None:
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert "SIGKILL" in find_verdict(a_trial(), tmp_path, killed).reason
    assert find_verdict(a_trial(), tmp_path, NO).reason == "it is wrong"
    assert find_verdict(a_trial(), tmp_path, YES).reason == "it is wrong", "the first verdict stays"
    assert find_verdict(a_trial(threads=2), tmp_path, YES).holds


@pytest.mark.parametrize("content", [b"", b"{", b'{"holds": "perhaps"}', b"\xff\xfe\x00"])
def test_a_damaged_file_counts_as_none_and_is_replaced(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"{verdict_key(a_trial())}.json"
    file.write_bytes(content)
    assert find_verdict(a_trial(), tmp_path, NO).reason == "it is wrong"
    assert json.loads(file.read_bytes()) == {"holds": False, "reason": "it is wrong", "final": True}


def test_a_folder_that_cannot_be_written_costs_the_trial_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    assert find_verdict(a_trial(), folder, NO) == Verdict(holds=False, reason="it is wrong")
    assert find_verdict(a_trial(), folder, YES).holds


def test_processes_at_the_same_time_do_no_harm(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda _: find_verdict(a_trial(), tmp_path, NO), range(6)))
    assert set(verdicts) == {Verdict(holds=False, reason="it is wrong")}
    assert [file.name for file in tmp_path.iterdir()] == [f"{verdict_key(a_trial())}.json"]


def test_a_variable_moves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "bfloat16"


def test_the_key_follows_what_decides_a_convolution_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(dropout: float) -> str:
        return verdict_key(a_trial(network=unet_plan(8, 32, 32, dropout=dropout).network))

    assert of(0.2) == of(0.4)
    assert of(0.2) != of(0.0), "masks make other types of the features"
    keys = {verdict_key(a_trial(**{name: value})) for name, value in (("threads", 2), ("batches", (3,)))}
    keys |= {verdict_key(a_trial()), verdict_key(a_trial(backward=False)), verdict_key(a_trial(8, 32, 40))}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    keys.add(verdict_key(a_trial()))
    monkeypatch.setattr("rescueseg.models.precision.processor", lambda: "another")
    keys.add(verdict_key(a_trial()))
    assert len(keys) == 7


# what is compared ---------------------------------------------------------------------------------------------------


def test_a_convolution_that_differs_is_named() -> None:
    class Wrong:
        overloadpacket = SimpleNamespace(__name__="convolution_backward")

        def __call__(self, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
            return gradient, gradient * (0.9 if gradient.dtype == torch.bfloat16 else 1.0), None

    check = ConvolutionCheck()
    check.__torch_dispatch__(Wrong(), (), (torch.ones(2, 3),))
    assert check.reason == "", "in float32 it is not looked at"
    check.__torch_dispatch__(Wrong(), (), (torch.ones(2, 3, dtype=torch.bfloat16),))
    assert check.reason == "convolution_backward of (2, 3): its weight gradient is off by 0.1"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 8e37])
@pytest.mark.parametrize("place", ["output", "weight", "bias"])
def test_one_number_that_is_not_rounding_is_enough(value: float, place: str) -> None:
    def a_pass(**spoilt: float) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        tensors = {"output": torch.ones(9), "weight": torch.ones(9), "bias": torch.full((3,), 1e-9)}
        for name, number in spoilt.items():
            tensors[name][1] = number
        return [tensors.pop("output")], tensors

    assert compare(a_pass(), a_pass()) == ""
    assert compare(a_pass(bias=-1e-8), a_pass()) == "", "where a gradient vanishes, rounding is all"
    assert place in compare(a_pass(**{place: value}), a_pass())
    assert difference(torch.zeros(3), torch.zeros(3)) == 0


# what follows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def dying_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every trial die as one that wrote where it must not."""
    dying = f"import os, sys\nif {TRIAL_COMMAND[-1]!r} in sys.orig_argv:\n    os.abort()\n"
    (tmp_path / "sitecustomize.py").write_text(dying)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path / "cache"))


@BFLOAT16
@pytest.mark.usefixtures("dying_trials")
@pytest.mark.parametrize("trainer", ["monai_unet", pytest.param("nnunet", marks=pytest.mark.slow)])
def test_a_training_whose_trial_fails_is_one_in_float32_and_says_so(
    trainer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = make_campaign(tmp_path, trainer=trainer, iterations=3)
    snapshot = make_snapshot(campaign, BOXES)
    model = train(campaign, snapshot, tmp_path / "work")
    assert np.isfinite([entry["loss"] for entry in model.losses]).all()
    (note,) = model.notes
    assert "training in float32" in note
    assert "SIGABRT" in note
    assert [record.levelno for record in caplog.records if note in record.getMessage()] == [logging.WARNING]
    assert model.warnings == ()
    assert "float32" not in (model.path / "model.json").read_text(), "the machine is no part of the model"
    assert train(campaign, snapshot, tmp_path / "work").notes == model.notes
    again = train(campaign, snapshot, tmp_path / "again")
    assert (again.digest, again.notes) == (model.digest, model.notes)


@BFLOAT16
@pytest.mark.usefixtures("dying_trials")
def test_an_inference_whose_trial_fails_is_one_in_float32_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    plan = unet_plan(8, 32, 32, dropout=0.0)
    network = build_network(plan.network, 1)
    predictor = UNetPredictor([network], plan, InferenceConfig(mc_samples=1, tta_symmetries=1), "cpu")
    windows = np.random.default_rng(0).normal(size=(3, 1, *plan.inference_window_zyx)).astype(np.float32)
    members = [next(iter(predictor.members(windows, [1, 2, 3])))[1]["probability"] for _ in range(2)]
    with torch.inference_mode():
        exact = torch.softmax(network(torch.from_numpy(windows)), dim=1).numpy()
    assert all(np.array_equal(member, exact) for member in members)
    assert len([record for record in caplog.records if "inference in float32" in record.getMessage()]) == 1


@BFLOAT16
def test_in_bfloat16_only_batches_that_were_tried_pass_through_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rescueseg.models.precision.find_verdict", lambda trial, _: find_verdict(trial, tmp_path, YES))
    monkeypatch.setattr(members, "BATCH_VOXELS", 5 * 8 * 32 * 32)
    plan = unet_plan(8, 32, 32)
    network = build_network(plan.network, 1)
    predictor = UNetPredictor([network], plan, InferenceConfig(mc_samples=2, tta_symmetries=1), "cpu")
    sizes: list[int] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    windows = np.random.default_rng(0).normal(size=(11, 1, 8, 32, 32)).astype(np.float32)
    together = [member["probability"] for _, member in predictor.members(windows, list(range(11)))]
    assert sizes == [4, 4, 2, 1]
    alone = [[m["probability"][0] for _, m in predictor.members(windows[i : i + 1], [i])] for i in range(11)]
    for sample, member in enumerate(together):
        np.testing.assert_allclose(member, [members[sample] for members in alone], atol=0.02)


def test_without_bfloat16_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rescueseg.models.precision.find_verdict", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    assert choose_precision(CPU, a_trial()).dtype is None
    assert choose_precision(CPU, a_trial()).note == ""
