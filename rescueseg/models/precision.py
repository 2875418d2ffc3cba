"""Whether a processor may compute a network in bfloat16: the very plan is tried against float32, in a process of its own.

oneDNN 3.12 (torch 2.14) returns uninitialised memory as the weight gradient of a bfloat16 3×3×3 convolution over two
planes on processors with AVX512-BF16, and writes where it must not for windows of one plane on those with AMX. A rule
about shapes would be wrong again on the next processor, so each plan is tried on each, once, before it is used: see
`rescueseg.models.precision_trial` for what is compared. The verdict is stored in the cache of the user; one that may be
due to the moment, such as a lack of memory, holds for this process alone.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pooch
import torch

from rescueseg.models.trial import OUT_OF_MEMORY, Trial, Verdict
from rescueseg.storage import digest_json, file_digest, replace_atomically

_log = logging.getLogger(__name__)

_SOURCES = (
    *("trial.py", "precision.py", "precision_trial.py", "layout.py", "split_network.py"),
    *("unet/network.py", "nnunet/network.py"),
)
"""Files of this package that decide what is tried and how it is judged."""
_START = "import gc, runpy; gc.disable(); runpy.run_module('rescueseg.models.precision_trial', run_name='__main__')"
TRIAL_COMMAND = (sys.executable, "-c", _START)
"""The process of a trial; looking for garbage while it imports would take a fifth of its time."""
_MEMORY_SIGNALS = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""Signals by which a process ends that wrote where it must not; any other came from outside."""
_FILL = 0x81
"""Freed memory is filled with this byte, fresh memory with its complement 0x7e: 8e37 in bfloat16 and in float32."""
_PATIENCE_SECONDS = 300.0
_VOXELS_PER_SECOND = 1000.0
"""Slower than any processor that computes in bfloat16: a trial that takes longer hangs."""
_CPU_FIELDS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)
_SWITCHES = ("ONEDNN_", "DNNL_", "ATEN_CPU_", "TORCH_MKLDNN", "MKLDNN_")
"""Beginnings of the environment variables that change which code computes a convolution."""


@dataclass(frozen=True)
class Precision:
    """What a network computes in.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Of mixed precision; None where all is float32.
    note : str
        What a person should know of it; empty where nothing is out of the ordinary.
    """

    dtype: torch.dtype | None
    note: str = ""


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type for mixed precision: bfloat16 where the hardware computes in it, float16 on older GPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the context in which a network computes in a type of mixed precision; None for none: all is float32."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def choose_precision(device: torch.device, trial: Trial) -> Precision:
    """Return what a network computes in on a device; on a CPU with bfloat16 this may take the seconds of a trial."""
    dtype = autocast_dtype(device)
    if dtype is None or device.type != "cpu":
        return Precision(dtype)
    verdict = bfloat16_verdict(trial)
    if verdict.holds:
        return Precision(dtype)
    what = "training" if trial.backward else "inference"
    return Precision(
        None, f"{what} in float32, which takes longer: bfloat16 failed its trial on this processor: {verdict.reason}"
    )


@lru_cache(maxsize=1024)
def bfloat16_verdict(trial: Trial) -> Verdict:
    """Return whether this processor computes a trial in bfloat16 as it does in float32, but for rounding.

    Any failure, of the trial or of its process, counts as no; nothing is raised.
    """
    return find_verdict(trial, cache_folder())


def user_cache() -> Path:
    """Return the cache of the user; the variable `RESCUESEG_CACHE` moves it."""
    return Path(os.environ.get("RESCUESEG_CACHE") or pooch.os_cache("rescueseg"))


def cache_folder() -> Path:
    """Return where verdicts are stored."""
    return user_cache() / "bfloat16"


def find_verdict(trial: Trial, folder: Path, command: Sequence[str] = TRIAL_COMMAND) -> Verdict:
    """Return the verdict stored in a folder, or run the trial.

    Parameters
    ----------
    trial : Trial
        What is tried.
    folder : Path
        Of the verdicts; one that cannot be written to costs the trial again next time.
    command : sequence of str
        The process; the trial as JSON is its last argument.
    """
    file = folder / f"{verdict_key(trial)}.json"
    verdict = _read_verdict(file)
    if verdict is None:
        patience = _PATIENCE_SECONDS + trial.voxels / _VOXELS_PER_SECOND
        verdict = run_trial([*command, trial.model_dump_json()], trial.threads, patience)
        if verdict.final:
            _write_verdict(file, verdict)
    return verdict


def verdict_key(trial: Trial) -> str:
    """Return the sha256 of a trial and of all else that its verdict depends on: processor, libraries, switches."""
    switches = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SWITCHES)}
    return digest_json(
        {
            "sources": [file_digest(str(Path(__file__).parent / name)) for name in _SOURCES],
            "trial": trial.to_json(),
            "processor": processor(),
            "torch": [torch.__version__, torch.__config__.show()],
            "networks": [version(name) for name in ("monai", "dynamic-network-architectures")],
            "switches": switches,
        }
    )


@lru_cache(maxsize=1)
def processor() -> str:
    """Return what tells this processor from others: its name and what it can do."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    fields = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    features = [f"{name.strip()}: {value.strip()}" for name, value in fields if name.strip() in _CPU_FIELDS]
    return "\n".join(
        [platform.machine(), *(features or [platform.processor(), torch.backends.cpu.get_cpu_capability()])]
    )


def run_trial(command: Sequence[str], threads: int, patience: float) -> Verdict:
    """Run a trial in its process and return its verdict, or one that follows from how it ended.

    Parameters
    ----------
    command : sequence of str
        Prints a `Verdict` as the last line of its output. Its input ends with this process: then it should end too.
    threads : int
        CPU threads.
    patience : float
        Seconds after which it is killed.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.run(
            command,
            stdin=reading,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            env=_environment(threads),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict(holds=False, reason=f"the trial did not end within {patience:.0f} s", final=False)
    except OSError as error:
        return Verdict(holds=False, reason=f"the trial could not be started ({error.strerror})", final=False)
    finally:
        os.close(reading)
        os.close(writing)
    return _verdict_of_end(process.returncode, process.stdout, process.stderr)


def _verdict_of_end(code: int, output: str, errors: str) -> Verdict:
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    if code < 0:
        name = signal.Signals(-code).name
        final = -code in _MEMORY_SIGNALS and not any(sign in errors for sign in OUT_OF_MEMORY)
        return Verdict(holds=False, reason=f"the trial died of {name} ({last})", final=final)
    if code > 0:
        return Verdict(holds=False, reason=f"the trial ended with {code} ({last})", final=False)
    try:
        return Verdict.model_validate_json(output.strip().rpartition("\n")[2])
    except ValueError:
        return Verdict(holds=False, reason="the trial said nothing that can be read", final=False)


def _environment(threads: int) -> dict[str, str]:
    """Return an environment in which glibc fills memory, small pieces too, so that uninitialised numbers are huge."""
    tunables = [os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.tcache_count=0"]
    return os.environ | {
        "MALLOC_PERTURB_": str(_FILL),
        "GLIBC_TUNABLES": ":".join(filter(None, tunables)),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _read_verdict(file: Path) -> Verdict | None:
    """Return a stored verdict; a file that cannot be read counts as none."""
    try:
        return Verdict.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def _write_verdict(file: Path, verdict: Verdict) -> None:
    """Store a verdict, whole or not at all, readable by this user alone."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_atomically(file) as part:
            part.touch(mode=0o600, exist_ok=False)
            part.write_text(verdict.model_dump_json() + "\n")
    except OSError as error:
        _log.info("the verdict on bfloat16 is not kept: %s", error)
