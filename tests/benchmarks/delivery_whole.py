"""The whole way of a delivery at several sizes: seconds of each step, peak memory, and the disk that was told before.

Run ``python tests/benchmarks/delivery_whole.py``. Each synthetic uint8 volume, full of balls of which many touch, goes in a
fresh process through a predictor that costs nothing, and then through all that a delivery does: mask with clean-up,
objects by a watershed on distances, pyramids, table, TIFF. Peak memory is the sum of the kernel's high-water marks of
resident memory over that process and its Dask workers. Fails when the largest volume's peak is more than ``--limit`` times
that of the smallest, or when more disk was used than was told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from memory_block_engine import MIB, measure_in_fresh_process, one_convolution, peak_memory, watched

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import TRAINING, TrainingResult
from rescueseg.config import check_config
from rescueseg.delivery.estimate import estimate
from rescueseg.delivery.records import RULE, CleanUp, DeliveryRule
from rescueseg.delivery.request import SegmentRequest
from rescueseg.geometry import ZYX, Box, partition
from rescueseg.inference.engine import InferenceJob, infer
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.queue.store import make_queue, open_queue
from rescueseg.records import ModelReference, Normalisation, VolumeRecord
from rescueseg.services.dask_cluster import open_cluster
from rescueseg.stages.segment import deliver, finish, prepare
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout

SPACING = (1.0, 1.0, 1.0)
PITCH = 24
"""Voxels between the centres of balls, along each axis."""
LOOK_EVERY = 5.0
"""Seconds between two looks at the disk."""
SHAPES: dict[float, ZYX] = {0.25: (512, 512, 1024), 1.0: (1024, 1024, 1024), 2.0: (1024, 1024, 2048)}
"""By GiB."""
MODEL = ModelReference(generation=0, trainer="monai_unet", path="generations/0000/model", digest="0" * 64)
WHOLE_RULE = DeliveryRule(
    model_digest=MODEL.digest,
    truth_digest="",
    cleanup=(CleanUp(bridge_um=3, bridge_probability=0.3, spurs_um=4, smallest_um3=40, cavities_um3=40),),
    objects=ObjectRule(source="distance", smoothing_um=1, depth=1, smallest_um3=100),
)


def balls(box: Box) -> np.ndarray:
    """Return a part of an endless pattern of bright balls of 8 to 14 voxels radius, uint8, the same whichever part is asked."""
    cells = [range(o // PITCH - 1, (o + n) // PITCH + 2) for o, n in zip(box.offset_zyx, box.shape_zyx, strict=True)]
    image = np.full(box.shape_zyx, 40, np.uint8)
    for cell in itertools.product(*cells):
        rng = np.random.default_rng([c + 1000 for c in cell])
        centre = (np.asarray(cell) + rng.uniform(0.3, 0.7, 3)) * PITCH - box.offset_zyx
        radius = rng.uniform(8, 14)
        starts = np.clip(np.floor(centre - radius).astype(int), 0, box.shape_zyx)
        stops = np.clip(np.ceil(centre + radius).astype(int) + 1, 0, box.shape_zyx)
        part = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
        z, y, x = np.ogrid[part]
        inside = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2
        image[part][inside] = 220
    return image


def make_campaign(folder: Path, shape: ZYX, workers: int) -> None:
    """Write a campaign of a synthetic volume, shard by shard, with a model that is none and its rule."""
    config = {
        "name": "delivery",
        "classes": ["ball"],
        "inference": {"mc_samples": 1, "tta_symmetries": 1, "overlap": 0.125, "map_dtype": "float16"},
        "cluster": {"workers": workers},
    }
    campaign = Campaign.create(str(folder), check_config(config))
    make_queue(campaign)
    array = ome_zarr.create_image(campaign.volumes.image_url("balls"), ImageLayout((1, *shape), np.uint8, SPACING))
    tile: ZYX = (8 * PITCH, 16 * PITCH, 16 * PITCH)
    pattern = balls(Box((0, 0, 0), tile))
    for part in partition(shape, tile):
        z, y, x = part.shape_zyx
        array[(0, *part.slices)] = pattern[:z, :y, :x]
    ome_zarr.add_pyramid(campaign.volumes.image_url("balls"))
    campaign.volumes.save(
        VolumeRecord(
            volume_id="balls",
            domain="balls",
            shape_zyx=shape,
            spacing_um_zyx=SPACING,
            channels=1,
            dtype="uint8",
            source="balls",
            digest="0" * 64,
            normalisation=Normalisation(low=0, high=255, mean=130, std=45),
        )
    )
    campaign.generation(0).write(TRAINING, TrainingResult(model=MODEL, iterations=1))
    campaign.generation(0).write(RULE, WHOLE_RULE)


def measure(folder: Path, shape: ZYX, workers: int) -> dict[str, Any]:
    """Deliver one volume with this process as the driver, and return its figures; another process makes the volume."""
    with ProcessPoolExecutor(1, get_context("spawn")) as maker:
        maker.submit(make_campaign, folder / "campaign", shape, workers).result()
    campaign = Campaign.open(str(folder / "campaign"))
    request = SegmentRequest(
        out=str(folder / "out"), volumes=("balls",), generation=0, objects="yes", formats=("tiff",)
    )
    told = estimate(campaign, request).bytes
    seconds: dict[str, float] = defaultdict(float)
    last = looked = time.monotonic()
    before = most = used(folder)

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last, looked, most
        now = time.monotonic()
        if now - looked > LOOK_EVERY:
            looked, most = now, max(most, used(folder))
        seconds[what.split(": ")[-1]] += now - last
        last = now

    start = time.monotonic()
    with open_cluster(campaign.config.cluster) as client, watched() as marks:
        job = replace(InferenceJob.of(campaign, MODEL, "balls"), load=one_convolution, device="cpu")
        infer(job, client, lambda done, total: progress("maps", done, total))
        request = prepare(campaign, request, progress).request
        volume = deliver(campaign, open_queue(campaign), request, "balls", client, progress)
        finish(campaign, open_queue(campaign), request, progress)
    peak, own = peak_memory(marks)
    return {
        "peak_bytes": peak,
        "driver_bytes": own,
        "seconds": time.monotonic() - start,
        "steps": seconds,
        "objects": volume.objects,
        "told_bytes": told,
        "used_bytes": max(most, used(folder)) - before,
    }


def used(folder: Path) -> int:
    """Return the bytes on the disk below a folder."""
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


def main() -> int:
    """Compare the peaks and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="Dask worker processes")
    parser.add_argument("--limit", type=float, default=1.15, help="largest ratio of the peaks")
    parser.add_argument("--gib", type=float, nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--scratch", help="folder for volumes and deliveries (about 40 GB for 2 GiB)")
    parser.add_argument("--measure", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.scratch), tuple(arguments.measure), arguments.workers)))
        return 0
    peaks, within = [], True
    for gib in arguments.gib:
        figures = measure_in_fresh_process(__file__, SHAPES[gib], arguments.workers, arguments.scratch)
        peaks.append(figures["peak_bytes"])
        within = within and figures["used_bytes"] <= figures["told_bytes"]
        print(
            f"{gib:5.2f} GiB: peak {figures['peak_bytes'] / MIB:6.0f} MiB (driver {figures['driver_bytes'] / MIB:.0f}), "
            f"{figures['seconds']:6.0f} s, {figures['objects']:,} objects, disk {figures['used_bytes'] / MIB:,.0f} MiB "
            f"of {figures['told_bytes'] / MIB:,.0f} told",
            flush=True,
        )
        print("    " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in figures["steps"].items()), flush=True)
    ratio = peaks[-1] / peaks[0]
    print(f"ratio of the peaks: {ratio:.3f} (limit {arguments.limit})")
    return 0 if ratio <= arguments.limit and within else 1


if __name__ == "__main__":
    sys.exit(main())
