"""OpenMP starts as many threads as an operation asks for: oneDNN's wait for one another, and for ever for one that is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> list[str]:
    """Run code in a process of its own, as what is tested stays with a process, and return what it prints."""
    lines = ("from rescueseg.models.threads import *", "import torch", code)
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
