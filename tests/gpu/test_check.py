"""The GPU check runs to its end in its short form, so that it needs no mending where a GPU is at hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("check.sh")


@pytest.mark.slow
def test_the_short_form_runs_every_part_without_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OUT": str(tmp_path),
    }
    done = subprocess.run([SCRIPT, "--cpu"], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all parts ran" in done.stdout
    for family in ("monai_unet", "nnunet"):
        rate = re.search(rf"^{family}: ([\d.]+) training steps/s", done.stdout, re.MULTILINE)
        assert rate is not None
        assert float(rate[1]) > 0
        assert (
            len(re.findall(rf"^{family}, \d samples × \d symmetries: [\d.e+]+ voxels/s", done.stdout, re.MULTILINE))
            == 2
        )
    assert "monai_unet, one worker of a local cluster" in done.stdout
    assert "maps are those of this process" in done.stdout


@pytest.mark.slow
def test_without_a_gpu_and_without_the_short_form_it_says_so() -> None:
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "--cpu runs the short form" in done.stdout
