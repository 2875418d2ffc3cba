"""What was measured of a way of computing the forward pass, kept in the cache of the user by all that it depends on."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from rescueseg.geometry import ZYX
from rescueseg.models.forward import COMPILED, compiler_name
from rescueseg.models.nnunet.plan import NnUNetNetwork
from rescueseg.models.precision import processor, user_cache
from rescueseg.models.split_network import SplitNetwork
from rescueseg.models.trial import Trial
from rescueseg.models.unet.plan import NetworkPlan
from rescueseg.records import Record
from rescueseg.storage import digest_json, file_digest


@dataclass(frozen=True)
class Subject:
    """The networks of a predictor, and what they compute.

    Parameters
    ----------
    networks : sequence of SplitNetwork
        On their device.
    plan : NetworkPlan or NnUNetNetwork
        Of each.
    window : tuple of int
        In voxels along the networks' own axes.
    batch, eager_batch : int
        Windows that pass together, always; and at most, in the eager pass.
    device : torch.device
        Of the networks.
    dtype : torch.dtype, optional
        Of mixed precision; None where all is float32.
    """

    networks: Sequence[SplitNetwork]
    plan: NetworkPlan | NnUNetNetwork
    window: ZYX
    batch: int
    eager_batch: int
    device: torch.device
    dtype: torch.dtype | None

    @property
    def trial(self) -> Trial:
        """What shapes it has."""
        threads = torch.get_num_threads()
        return Trial(network=self.plan, window=self.window, batches=(self.batch,), threads=threads, backward=False)


@dataclass(frozen=True)
class Work:
    """What a job has to compute.

    Parameters
    ----------
    images : int
        Windows, times networks, times symmetries.
    samples : int
        Dropout samples of each.
    workers : int
        Processes that share it; each sets its networks up.
    """

    images: int
    samples: int
    workers: int = 1


class Speed(Record):
    """Seconds that a window takes."""

    features: float
    head: float

    def seconds(self, work: Work) -> float:
        """Return what a job takes.

        Examples
        --------
        >>> Speed(features=0.5, head=0.25).seconds(Work(images=4, samples=2, workers=2))
        2.0
        """
        return work.images * (self.features + work.samples * self.head) / work.workers


class Measured(Record):
    """What was measured of a way: in turn with the eager pass, since machines are busy at times."""

    setup_seconds: float
    """Until the first window has passed, in a process that finds the code compiled."""
    speed: Speed
    eager: Speed


def speed_file(name: str, subject: Subject) -> Path:
    """Return where the measurement of a way is kept: by all that it depends on."""
    folder = Path(__file__).parent
    device = processor() if subject.device.type == "cpu" else torch.cuda.get_device_name(subject.device)
    key = {
        "sources": [
            file_digest(str(folder / name)) for name in ("forward.py", "forward_choice.py", "forward_speed.py")
        ],
        "way": name,
        "trial": subject.trial.to_json(),
        "eager_batch": subject.eager_batch,
        "device": device,
        "precision": str(subject.dtype),
        "torch": torch.__version__,
        "compiler": _compiler() if name == COMPILED else "",
    }
    return user_cache() / "forward" / f"{digest_json(key)}.json"


def _compiler() -> str:
    """Return path and version of the C++ compiler; empty where there is none."""
    path = shutil.which(compiler_name())
    if path is None:
        return ""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    return f"{path} {told}"


def read_speed(file: Path) -> Measured | None:
    """Return what is stored; a file that cannot be read counts as none."""
    try:
        return Measured.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def store_speed(file: Path, measured: Measured) -> Measured:
    """Store what was measured, readable by this user alone, and return what holds: another's, if it was first."""
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.touch(mode=0o600, exist_ok=False)
        part.write_text(measured.model_dump_json() + "\n")
        os.link(part, file)
    except OSError:
        measured = read_speed(file) or measured
    with suppress(OSError):
        part.unlink()
    return measured
