"""OpenMP starts as many threads as an operation asks for: oneDNN's wait for one another, and for ever for one that is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> list[str]:
    """Run code in a process of its own, as what is tested stays with a process, and return what it prints."""
    lines = (
        "import torch",
        "from rescueseg.models.threads import _runtimes, keep_threads, set_threads",
        "def adjusts_threads(): return any(runtime.omp_get_dynamic() for runtime in _runtimes())",
        code,
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_loss_that_brings_opencv_leaves_the_threads_as_they_are() -> None:
    pytest.importorskip("topolosses", reason="the extra 'topology' is not installed")
    code = """
from rescueseg.models.unet.losses import BettiMatchingLoss
print(adjusts_threads())
BettiMatchingLoss()
print(adjusts_threads())
"""
    assert run(code) == ["False", "False"]


def test_opencv_would_let_openmp_start_fewer() -> None:
    """Once this fails, topolosses needs no care any more."""
    pytest.importorskip("topolosses", reason="the extra 'topology' is not installed")
    assert run("import topolosses.losses.betti_matching\nprint(adjusts_threads())") == ["True"]


def test_a_training_has_its_threads_whatever_the_environment_says() -> None:
    code = "print(adjusts_threads()); set_threads(2); print(adjusts_threads(), torch.get_num_threads())"
    assert run(code, OMP_DYNAMIC="true") == ["True", "False", "2"]


def test_they_are_kept_in_every_thread_that_asks() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def both():
    before = adjusts_threads()
    keep_threads()
    return before, adjusts_threads()
with ThreadPoolExecutor(1) as pool:
    print(*pool.submit(both).result())
"""
    assert run(code, OMP_DYNAMIC="true") == ["True", "False"]


def test_passes_are_measured_compared_and_computed_with_all_threads() -> None:
    code = """
from rescueseg.config import InferenceConfig
from rescueseg.models import forward_choice
from tests.small_unet import small_unet
import numpy as np
seen = []
def measure(name, subject):
    seen.append(adjusts_threads())
    raise forward_choice.UnfitError("not here")
forward_choice.measure = measure
forward_choice.measure_speed = lambda *_: seen.append(adjusts_threads()) or forward_choice.Speed(features=1.0, head=1.0)
window = (4, 16, 16)
predictor = small_unet(InferenceConfig(mc_samples=1, tta_symmetries=1), window)
predictor.choose_forward(10**6)
torch.set_num_threads(1)
for runtime in _runtimes():
    runtime.omp_set_dynamic(1)
for _ in predictor.members(np.zeros((1, 1, *window), np.float32), [1]):
    seen.append(adjusts_threads())
print(*seen)
"""
    told = run(code, OMP_DYNAMIC="true")
    assert len(told) >= 3
    assert set(told) == {"False"}
