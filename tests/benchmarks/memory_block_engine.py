"""Peak memory of the block engine on volumes of 16, 128 and 1,024 MiB.

Run ``python tests/benchmarks/memory_block_engine.py``. Each synthetic uint8 volume goes through the engine in a fresh
process, with a network of one convolution and float16 maps. Peak memory is the sum of the kernel's high-water marks
of resident memory over that process and its Dask workers: what they would need should all peak at once. Fails when the
ratio of the largest and the smallest peak exceeds ``--limit``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig, check_config
from rescueseg.geometry import ZYX, Spacing, partition
from rescueseg.inference.engine import infer_volume
from rescueseg.models.predictor import Group, class_probabilities
from rescueseg.records import ModelReference, Normalisation, VolumeRecord
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.storage import Storage
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout

MIB = 2**20
MODEL = ModelReference(generation=0, trainer="one_convolution", path="generations/0000/model", digest="0" * 64)
SPACING = (1.0, 1.0, 1.0)


class OneConvolution:
    """Calls bright voxels foreground, by a network of one convolution."""

    n_classes = 1
    in_channels = 1
    networks = 1
    outputs = (class_probabilities(1),)

    def __init__(self) -> None:
        self.network = torch.nn.Conv3d(1, 2, 3, padding=1).requires_grad_(False)
        for channel, sign in enumerate((-1, 1)):
            self.network.weight[channel] = sign / 27
        self.network.bias[:] = 0  # type: ignore[index]

    def window_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        return (64, 128, 128)

    def members(self, windows: np.ndarray, keys: Sequence[int]) -> Iterator[tuple[Group, dict[str, torch.Tensor]]]:
        yield Group(0, 0), {"probability": torch.softmax(self.network(torch.from_numpy(windows)), dim=1)}


def one_convolution(storage: Storage, model: ModelReference, config: InferenceConfig, device: str) -> OneConvolution:
    """Return the predictor; the block engine imports this by name."""
    return OneConvolution()


def make_campaign(folder: Path, shape: ZYX, workers: int) -> Campaign:
    """Write a synthetic volume, shard by shard, and return its campaign."""
    config = {
        "name": "memory",
        "classes": ["bright"],
        "inference": {"mc_samples": 1, "tta_symmetries": 1, "overlap": 0.125, "map_dtype": "float16"},
        "cluster": {"workers": max(1, workers)},
    }
    campaign = Campaign.create(str(folder), check_config(config))
    array = ome_zarr.create_image(campaign.volumes.image_url("synthetic"), ImageLayout((1, *shape), np.uint8, SPACING))
    tile = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    for box in partition(shape, tile.shape):
        z, y, x = box.shape_zyx
        array[(0, *box.slices)] = tile[:z, :y, :x] + np.uint8(sum(box.offset_zyx) // 64 % 32)
    campaign.volumes.save(
        VolumeRecord(
            volume_id="synthetic",
            domain="synthetic",
            shape_zyx=shape,
            spacing_um_zyx=SPACING,
            channels=1,
            dtype="uint8",
            source="synthetic",
            digest="0" * 64,
            normalisation=Normalisation(low=0, high=255, mean=127.5, std=73.9),
        )
    )
    return campaign


def high_water_mark(process: psutil.Process) -> int:
    """Return the largest resident memory a process ever had, as the kernel keeps it (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def watched() -> Iterator[dict[int, int]]:
    """Keep the high-water mark of this process and of its children, by process id, until they end."""
    marks: dict[int, int] = {}
    stop = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(0.2):
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, StopIteration):
                    marks[process.pid] = high_water_mark(process)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield marks
    finally:
        stop.set()
        thread.join()


def peak_memory(marks: dict[int, int]) -> tuple[int, int]:
    """Return the sum of the high-water marks of this process and of its children, and that of this process alone."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return own + sum(mark for pid, mark in marks.items() if pid != os.getpid()), own


def measure(folder: Path, shape: ZYX, workers: int) -> dict[str, Any]:
    """Run the engine on one volume in this process and return its figures."""
    campaign = make_campaign(folder, shape, workers)
    start = time.monotonic()
    with ExitStack() as stack:
        client = stack.enter_context(open_cluster(campaign.config.cluster)) if workers else None
        marks = stack.enter_context(watched())
        reference = infer_volume(campaign, MODEL, "synthetic", client=client, device="cpu", load=one_convolution)
    return {"peak_bytes": peak_memory(marks)[0], "seconds": time.monotonic() - start, "blocks": reference.blocks}


def measure_in_fresh_process(script: str, shape: ZYX, workers: int, scratch: str | None) -> dict[str, Any]:
    """Return what a script prints that is asked to measure, in a process of its own; its files are removed."""
    with tempfile.TemporaryDirectory(prefix=f"{Path(script).stem}_", dir=scratch) as folder:
        arguments = ["--measure", *map(str, shape), "--workers", str(workers), "--scratch", folder]
        paths = [str(Path(script).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        output = subprocess.run(
            [sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def main() -> int:
    """Compare the peaks and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="Dask worker processes; 0 runs in one process")
    parser.add_argument("--limit", type=float, default=1.15, help="ratio of the largest and the smallest peak at most")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=(256, 512, 1024), help="sides of the cubic volumes, voxels"
    )
    parser.add_argument("--scratch", help="folder for the volumes and maps (about 15 GB)")
    parser.add_argument("--measure", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.scratch) / "campaign", tuple(arguments.measure), arguments.workers)))
        return 0
    peaks = []
    for side in arguments.sides:
        shape = (side, side, side)
        figures = measure_in_fresh_process(__file__, shape, arguments.workers, arguments.scratch)
        peaks.append(figures["peak_bytes"])
        print(
            f"{np.prod(shape, dtype=np.int64) / MIB:7.0f} MiB volume: peak {figures['peak_bytes'] / MIB:6.0f} MiB, "
            f"{figures['blocks']:4d} blocks, {figures['seconds']:5.0f} s",
            flush=True,
        )
    ratio = max(peaks) / min(peaks)
    print(f"ratio of the largest and the smallest peak: {ratio:.3f} (limit {arguments.limit})")
    return 0 if ratio <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
