"""What is asked of people before the first model, and how much of it shows the structure.

    python -m tests.benchmarks.first_asked DATA_FOLDER

Each volume is sampled as a user's, without its truth, at seed 0: a row for the sampling without a hint, and one with the hint of
one annotated patch, simulated from the truth: a patch around a foreground voxel that is drawn at random, with at least 1 %
foreground. The last volume is synthetic and never stored: 1024³ voxels with 400 bright balls (0.3 % foreground) and as many
dim look-alikes in noise.

- hours: 90 s a box and 40 s a plane of 80×80 pixels by its area, at least 5 s.
- holds: boxes with more than 1 % foreground by the truth; empty: those with none; of how many. The example counts as a patch.

The file runs in a clone of an earlier version too, there without the hint (copy it, and say ``--no-hint``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box, Patch, zyx
from rescueseg.records import Normalisation, VolumeRecord
from rescueseg.sampling import patches, starting_patches
from rescueseg.sampling.holdout import plan_holdout
from rescueseg.volumes.normalise import normalise
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

SIDE, BALLS, RADIUS = 1024, 400, 12
Reader = Callable[[Box], np.ndarray]


def hours(boxes: Sequence[Box]) -> float:
    """Return how long annotating takes, as `rescueseg.sampling.effort` assumes it."""
    return sum(90 + b.shape_zyx[0] * max(5, 40 * b.shape_zyx[1] * b.shape_zyx[2] / 6400) for b in boxes) / 3600


class Balls:
    """The synthetic volume: balls at random places, read box by box."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.places = rng.integers(RADIUS, SIDE - RADIUS, (2 * BALLS, 3))
        self.noise = rng.normal(0, 20, 99_991).astype(np.float32)

    def _inside(self, box: Box, places: np.ndarray) -> np.ndarray:
        mask = np.zeros(box.shape_zyx, bool)
        near = ((places > np.array(box.offset_zyx) - RADIUS) & (places < np.array(box.stop_zyx) + RADIUS)).all(axis=1)
        grid = np.ogrid[box.slices]
        for place in places[near]:
            mask |= sum((g - p) ** 2 for g, p in zip(grid, place, strict=True)) <= RADIUS**2
        return mask

    def truth(self, box: Box) -> np.ndarray:
        """Return the mask of a box."""
        return self._inside(box, self.places[:BALLS])

    def image(self, box: Box) -> np.ndarray:
        """Return a box as acquired, czyx."""
        clean = 100.0 + 60 * self.truth(box) + 25 * self._inside(box, self.places[BALLS:])
        return (clean + np.resize(self.noise, box.shape_zyx))[None].astype(np.float32)


def example(truth: Reader, voxels: np.ndarray, shape_zyx: Sequence[int], volume: VolumeRecord) -> Patch:
    """Return a patch around a random foreground voxel, with at least 1 % foreground, not all of it."""
    rng = np.random.default_rng(1)
    while True:
        middle = voxels[rng.integers(len(voxels))]
        start = [
            min(max(0, int(m) - n // 2), s - n) for m, n, s in zip(middle, shape_zyx, volume.shape_zyx, strict=True)
        ]
        box = Box(zyx(start), zyx(shape_zyx))
        if truth(box).mean() >= 0.01:
            return Patch(volume.volume_id, box)


def hint(campaign: Campaign, patch: Patch, image: Reader, truth: Reader) -> Any:
    """Return the hint of a patch and keep it as the campaign's example; None where it is foreground alone."""
    from rescueseg.errors import SamplingError
    from rescueseg.stages.hints import hint_from
    from rescueseg.weak_labels.methods import AnnotatedPatch

    volume = campaign.volumes.record(patch.volume_id)
    voxels, labels = normalise(image(patch.box), volume.normalisation), truth(patch.box).astype(np.uint8)
    campaign.save_example_patches([patch])
    try:
        return hint_from(campaign, [AnnotatedPatch("t", patch.volume_id, voxels, labels, volume.spacing_um_zyx)])
    except SamplingError:
        return None


def report(name: str, how: str, holdout: Any, starting: Any, truth: Reader, seconds: float) -> None:
    """Print a row."""
    cells = []
    for boxes in ([b.box for b in holdout.boxes], [p.box for p in starting]):
        shares = np.array([truth(box).mean() for box in boxes])
        planes, voxels = sum(b.shape_zyx[0] for b in boxes), sum(b.size for b in boxes)
        counted = f"{len(boxes):3} {planes:5} {voxels:11,} {hours(boxes):6.2f}"
        cells.append(f"{counted}  {(shares > 0.01).sum():2} {(shares == 0).sum():2}")
    total = hours([b.box for b in holdout.boxes] + [p.box for p in starting])
    print(f"{name[:22]:22} {how:7} {cells[0]}   {cells[1]}   {total:7.2f}   {seconds:4.0f}", flush=True)


def sample(name: str, campaign: Campaign, image: Reader, truth: Reader, voxels: np.ndarray, hinted: bool) -> None:
    """Print the rows of a volume."""
    volume, shape = campaign.volumes.record("v"), zyx((1, 1, 1))
    for how in ("none", "example")[: 1 + hinted]:
        started, extra = time.time(), {}
        if how == "example":
            extra = {"hint": hint(campaign, example(truth, voxels, shape, volume), image, truth)}
        plan = plan_holdout(campaign, **extra)
        starting = starting_patches.starting_patches(campaign, holdout=plan, **extra)
        shape = plan.patch_zyx["v"]
        report(name, how, plan, starting, truth, time.time() - started)


def real(folder: Path, hinted: bool) -> None:
    """Print the rows of a volume of the folder."""
    spacing = json.loads((folder / "meta.json").read_text())["voxel_size_um_zyx"]
    mask, raw = tifffile.imread(folder / "labels.tif") > 0, tifffile.imread(folder / "raw.tif")
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign.create(f"{scratch}/c", check_config({"name": "benchmark", "classes": ["object"]}))
        import_volume(campaign, VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=spacing))
        sample(
            folder.name, campaign, lambda b: raw[b.slices][None], lambda b: mask[b.slices], np.argwhere(mask), hinted
        )


def synthetic(hinted: bool) -> None:
    """Print the rows of the synthetic volume."""
    balls = Balls()
    record = VolumeRecord(
        volume_id="v", domain="d", shape_zyx=(SIDE,) * 3, spacing_um_zyx=(0.1, 0.1, 0.1), channels=1, dtype="float32",
        source="", digest="v", normalisation=Normalisation(low=-1e3, high=1e3, mean=100, std=25),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign.create(f"{scratch}/c", check_config({"name": "benchmark", "classes": ["object"]}))
        campaign.volumes.save(record)
        patches.volume_reader = lambda *_: balls.image  # type: ignore[assignment]
        if hinted:
            from rescueseg.stages import hints

            hints.volume_reader = patches.volume_reader
        sample("synthetic 1024³", campaign, balls.image, balls.truth, balls.places[:BALLS], hinted)


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--datasets", nargs="*", help="folders of it; all when omitted, none when empty")
    parser.add_argument("--no-hint", action="store_true", help="in a clone that knows no hints")
    args = parser.parse_args()
    print(
        f"{'':31}holdout: boxes, planes, voxels, hours; holds, empty   first patches: the same       hours in all, s to sample"
    )
    names = sorted(p.parent.name for p in args.data.glob("*/raw.tif")) if args.datasets is None else args.datasets
    for name in names:
        real(args.data / name, not args.no_hint)
    synthetic(not args.no_hint)


if __name__ == "__main__":
    main()
