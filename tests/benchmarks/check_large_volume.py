"""Seconds, memory and chunks that a command needs for a 4 GiB volume of noise on disk.

Run ``python tests/benchmarks/check_large_volume.py`` (``--command triage`` for another command that takes a campaign).
The volume is written as 12-bit noise in uint16, its files are pushed out of the page cache, and the command runs in a
fresh process. Fails above 60 s or 2 GiB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import ZYX, Spacing, partition
from rescueseg.records import Normalisation, VolumeRecord
from rescueseg.volumes import ome_zarr
from rescueseg.volumes.image_layout import ImageLayout, choose_chunks

GIB = 2**30
SPACING: Spacing = (0.3, 0.1, 0.1)
LIMIT_SECONDS = 60
LIMIT_BYTES = 2 * GIB
CLI = "from rescueseg.cli.main import app; app()"


def make_campaign(folder: Path, shape: ZYX, seed: int) -> Campaign:
    """Write a volume of noise, shard by shard, and return its campaign."""
    campaign = Campaign.create(str(folder), check_config({"name": "noise", "classes": ["object"]}))
    array = ome_zarr.create_image(campaign.volumes.image_url("noise"), ImageLayout((1, *shape), np.uint16, SPACING))
    rng = np.random.default_rng(seed)
    for box in partition(shape, choose_chunks(shape)[1]):
        array[(0, *box.slices)] = rng.integers(0, 4096, box.shape_zyx, dtype=np.uint16)
    campaign.volumes.save(
        VolumeRecord(
            volume_id="noise",
            domain="noise",
            shape_zyx=shape,
            spacing_um_zyx=SPACING,
            channels=1,
            dtype="uint16",
            source="noise.tif",
            digest="0" * 64,
            normalisation=Normalisation(low=20, high=4075, mean=2047.5, std=1182),
        )
    )
    return campaign


def forget(folder: Path) -> int:
    """Push the files of a folder out of the page cache and return their bytes."""
    os.sync()
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            total += path.stat().st_size
    return total


def run(command: list[str]) -> tuple[float, int, str, int]:
    """Run the command line in a fresh process; return seconds, peak bytes, what it printed and its exit status."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", CLI, *command], stdout=output, stderr=subprocess.STDOUT, text=True
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return time.monotonic() - start, usage.ru_maxrss * 1024, output.read(), process.returncode


def main() -> int:
    """Write the volume, run the command, print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", default="check", help="rescueseg command; gets the campaign as argument")
    parser.add_argument("--shape", type=int, nargs=3, default=(1024, 1024, 2048), help="shape zyx of the uint16 volume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", help="folder for the volume (about 4 GB)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check_large_volume_", dir=arguments.scratch) as folder:
        start = time.monotonic()
        campaign = make_campaign(Path(folder, "campaign"), tuple(arguments.shape), arguments.seed)
        written = forget(Path(folder))
        voxels = 2 * int(np.prod(arguments.shape, dtype=np.int64))
        print(
            f"{voxels / GIB:.2f} GiB of voxels, {written / GIB:.2f} GiB on disk, seed {arguments.seed}, "
            f"written in {time.monotonic() - start:.0f} s",
            flush=True,
        )
        seconds, peak, said, code = run([arguments.command, campaign.url])
    print(said)
    print(
        f"rescueseg {arguments.command}: {seconds:.1f} s (limit {LIMIT_SECONDS}), peak {peak / GIB:.2f} GiB "
        f"(limit {LIMIT_BYTES / GIB:g})"
    )
    return code or int(seconds > LIMIT_SECONDS or peak > LIMIT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
