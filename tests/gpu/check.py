"""What trainings, the block engine and a Dask worker do on this machine's GPU; see `check.sh`, which calls it.

Every part prints its lines as soon as it has them and its time; one that fails does not stop the others, and the exit
code is 1 then. Utilisation and memory are those of the whole GPU, by nvidia-smi five times a second.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import tifffile
import torch

from rescueseg.campaign import Campaign
from rescueseg.config import ClusterConfig, check_config
from rescueseg.geometry import ZYX, partition
from rescueseg.inference.engine import infer_volume
from rescueseg.models.layout import CHANNELS_LAST
from rescueseg.models.precision import autocast_dtype
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import TrainingRequest
from rescueseg.models.unet.network import build_network
from rescueseg.models.unet.trainer import plan_training
from rescueseg.queue.store import make_queue
from rescueseg.records import MapReference, ModelReference, Snapshot
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.volumes.phantom import SPACING, make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.training_rig import make_snapshot

FAMILIES = ("monai_unet", "nnunet")


@dataclass(frozen=True)
class Size:
    """How much is done."""

    device: str
    profile: str
    volume_zyx: ZYX
    patch_zyx: ZYX
    steps: int
    first: int
    """Steps that are not timed: memory is allocated in them, and nnU-Net compiles its network."""
    forwards: int
    training: dict[str, object] = field(default_factory=dict)


GPU = Size("cuda", "gpu", (64, 384, 384), (48, 128, 128), 120, 30, 20)
SHORT = Size(
    "cpu", "cpu", (16, 64, 64), (12, 32, 32), 12, 4, 2,
    {"window_zyx": [8, 32, 32], "unet": {"channels": [8, 16, 32]}, "nnunet": {"channels": [8, 16, 32]}},
)  # fmt: skip


class Watch:
    """Samples utilisation and memory of the GPU while it is entered; without nvidia-smi it has no samples."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> Watch:
        query = [
            "nvidia-smi",
            "--id=0",
            "--query-gpu=utilization.gpu,memory.used",
            "--format=csv,noheader,nounits",
            "-lms",
            "200",
        ]
        self.process = (
            subprocess.Popen(query, stdout=subprocess.PIPE, text=True) if shutil.which("nvidia-smi") else None
        )
        if self.process is not None:
            threading.Thread(target=self._read, daemon=True).start()
        self.began = time.perf_counter()
        return self

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            used, memory = line.split(",")
            self.samples.append((float(used), float(memory)))

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def __str__(self) -> str:
        if not self.samples:
            return "GPU: no samples"
        used, memory = zip(*self.samples, strict=True)
        return f"GPU utilisation mean {mean(used):.0f} %, peak memory {max(memory):.0f} MiB ({len(used)} samples)"


def show_machine(size: Size) -> None:
    """Print what computes."""
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores, device {size.device}"
    )
    if size.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        print(
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    print(f"mixed precision: {autocast_dtype(torch.device(size.device))}")


def make_campaign(folder: Path, size: Size) -> tuple[Campaign, Snapshot]:
    """Make a campaign of a phantom, some of whose patches are annotated with the truth."""
    image, truth, spacing = make_phantom(size.volume_zyx, SPACING)
    tifffile.imwrite(folder / "image.tif", image)
    tifffile.imwrite(folder / "truth.tif", truth)
    training = {
        "threads": 1 if size.device == "cpu" else 4,
        "profile": size.profile,
        "iterations": size.steps,
        **size.training,
    }
    inference = {"mc_samples": 3, "tta_symmetries": 2}
    config = check_config({"name": "check", "classes": ["organelle"], "training": training, "inference": inference})
    campaign = Campaign.create(str(folder / "campaign"), config)
    make_queue(campaign)
    import_volume(
        campaign,
        VolumeImport(str(folder / "image.tif"), volume_id="v", spacing=spacing, truth=str(folder / "truth.tif")),
    )
    boxes = [box for box in partition(size.volume_zyx, size.patch_zyx) if box.shape_zyx == size.patch_zyx][:6]
    return campaign, make_snapshot(
        campaign, boxes, volume_ids=["v"] * len(boxes), halo=[n // 4 for n in size.patch_zyx]
    )


def train(campaign: Campaign, snapshot: Snapshot, trainer: str, size: Size) -> ModelReference:
    """Train a family; print its steps per second."""
    work = Path(campaign.storage.path(f"runs/{trainer}"))
    work.mkdir(parents=True, exist_ok=True)
    times: list[float] = []
    request = TrainingRequest(campaign.config, campaign.volumes, None, snapshot, work, 0, device=size.device)
    with Watch() as watch:
        model = get_trainer(trainer).train(request, lambda *_: times.append(time.perf_counter()))
    rate = (len(times) - size.first) / (times[-1] - times[size.first - 1])
    losses = [entry["loss"] for entry in model.losses]
    tenth = max(1, len(losses) // 10)
    print(
        f"{trainer}: {rate:.2f} training steps/s, loss {mean(losses[:tenth]):.3f} to {mean(losses[-tenth:]):.3f}, "
        f"first {size.first} steps and set-up {watch.seconds - (times[-1] - times[size.first - 1]):.0f} s; {watch}"
    )
    if not np.isfinite(losses).all():
        raise AssertionError(f"{trainer}: a loss is no number")
    relative = str(model.path.relative_to(campaign.storage.path("")))
    return ModelReference(generation=FAMILIES.index(trainer), trainer=trainer, path=relative, digest=model.digest)


def compare_layouts(campaign: Campaign, snapshot: Snapshot, size: Size) -> None:
    """Print forward and backward passes per second of the U-Net as trainings compute it, channels last, and compiled."""
    plan, device = plan_training(campaign.config, campaign.volumes, snapshot), torch.device(size.device)
    dtype, images = autocast_dtype(device), torch.randn(plan.batch_size, 1, *plan.window_zyx).to(device)

    def rate(channels_last: bool, compiled: bool) -> float:
        network = build_network(plan.network, 0).to(device).train()
        layout = CHANNELS_LAST if channels_last else torch.contiguous_format
        network = network.to(memory_format=layout)
        forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network, dynamic=False) if compiled else network
        batch = images.contiguous(memory_format=layout)
        for i in range(3 + size.forwards):
            if i == 3:
                synchronise(device)
                began = time.perf_counter()
            network.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                logits = forward(batch)
            logits.float().square().mean().backward()
        synchronise(device)
        return size.forwards / (time.perf_counter() - began)

    usual = rate(channels_last=False, compiled=False)
    print(f"U-Net {plan.window_zyx} ×{plan.batch_size}, forward and backward: {usual:.2f} per second")
    print(f"  channels last: {rate(channels_last=True, compiled=False) / usual:.2f} times as many")
    if size.device == "cuda":  # on a CPU it takes a minute to compile
        print(f"  torch.compile: {rate(channels_last=False, compiled=True) / usual:.2f} times as many")
        print(f"  both: {rate(channels_last=True, compiled=True) / usual:.2f} times as many")


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def infer(campaign: Campaign, model: ModelReference, size: Size, cluster: ClusterConfig | None = None) -> MapReference:
    """Predict the volume, twice without a cluster: the first time counts as warming up; print voxels per second."""
    voxels = int(np.prod(size.volume_zyx))

    def predict(client: object = None) -> MapReference:
        shutil.rmtree(campaign.storage.path(f"generations/{model.generation:04d}/maps"), ignore_errors=True)
        return infer_volume(campaign, model, "v", client=client, device=size.device)  # type: ignore[arg-type]

    if cluster is not None:
        with open_cluster(cluster) as client, Watch() as watch:
            reference = predict(client)
        print(
            f"{model.trainer}, one worker of a {cluster.kind} cluster: {voxels / watch.seconds:.3g} voxels/s, start of torch counted in; {watch}"
        )
        return reference
    predict()
    if size.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Watch() as watch:
        reference = predict()
    settings = campaign.config.inference
    peak = f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of tensors at most" if size.device == "cuda" else ""
    members = f"{settings.mc_samples} samples × {settings.tta_symmetries} symmetries"
    print(f"{model.trainer}, {members}: {voxels / watch.seconds:.3g} voxels/s{peak}; {watch}")
    return reference


def with_members(campaign: Campaign, samples: int, symmetries: int) -> Campaign:
    """Return the campaign with other members of its inference."""
    inference = campaign.config.inference.model_copy(update={"mc_samples": samples, "tta_symmetries": symmetries})
    return Campaign(campaign.storage, campaign.config.model_copy(update={"inference": inference}))


FAILED: list[str] = []


@contextmanager
def part(name: str) -> Iterator[None]:
    """Print the name and the seconds of a part; what it raises is printed, and the next part goes on."""
    print(f"== {name}", flush=True)
    began = time.perf_counter()
    try:
        yield
    except Exception:
        FAILED.append(name)
        traceback.print_exc(file=sys.stdout)
    print(f"   {time.perf_counter() - began:.0f} s", flush=True)


def check(size: Size, folder: Path) -> None:
    """Run all parts."""
    with part("machine"):
        show_machine(size)
    with part("phantom"):
        campaign, snapshot = make_campaign(folder, size)
    models: list[ModelReference] = []
    for trainer in FAMILIES:
        with part(f"training of {trainer}"):
            models.append(train(campaign, snapshot, trainer, size))
    with part("layouts"):
        compare_layouts(campaign, snapshot, size)
    here: dict[str, MapReference] = {}
    for model in models:
        with part(f"block engine, {model.trainer}"):
            infer(with_members(campaign, 1, 1), model, size)
            here[model.trainer] = infer(campaign, model, size)
    with part("a Dask worker"):
        kind = "cuda" if size.device == "cuda" else "local"
        cluster = ClusterConfig.model_validate(
            {"kind": kind, "workers": 1, "memory": "32GiB" if kind == "cuda" else "4GiB"}
        )
        reference = infer(campaign, models[0], size, cluster)
        same = reference.digest == here[models[0].trainer].digest
        print(f"  maps are {'those' if same else 'not bit for bit those'} of this process")


def main() -> int:
    """Check, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="the short form, without a GPU")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("torch sees no GPU here; --cpu runs the short form")
        return 2
    began = time.perf_counter()
    size = SHORT if options.cpu else GPU
    out = os.environ.get("OUT")
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        check(size, Path(out))
    else:
        with tempfile.TemporaryDirectory() as folder:
            check(size, Path(folder))
    print(
        f"== {time.perf_counter() - began:.0f} s in all; "
        + (f"failed: {', '.join(FAILED)}" if FAILED else "all parts ran")
    )
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
