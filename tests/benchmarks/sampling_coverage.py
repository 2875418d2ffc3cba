"""What a starting budget covers: stratified against random patches at equal budget, over many seeds.

python tests/benchmarks/sampling_coverage.py DATA_FOLDER --seeds 50 --budgets 4 8

Per data set and budget, mean and 95 % interval of the mean over the seeds (the same places for both arms):

- strata: share of the strata present in the data that at least one patch stands for (the sampler's own measure).
- tails: how far the rare regions are from the nearest sampled one. The volume is cut into cells of an eighth of a patch
  along each axis, at least 3 voxels; each has a mean intensity and a local contrast, both standardised over the
  volume. Rare are the cells in the outermost 5 % on either side of either number; their mean distance to the nearest
  sampled cell is given. The sampler does not use these numbers.
- spread: the mean Wasserstein distance of intensity and contrast between the sampled cells and the rare ones.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import ZYX, Box, Patch, zyx
from rescueseg.randomness import random_generator
from rescueseg.records import VolumeRecord
from rescueseg.sampling import starting_patches, strata
from rescueseg.sampling.box_sampler import BoxSampler, volume_turns
from rescueseg.sampling.free_places import choose_apart
from rescueseg.sampling.patches import measure_places, subsample_places
from rescueseg.shared_places import SharedPlaces
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import normalise
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

STRATA = ("best_case", "worst_case", "low_snr", "dense", "sparse", "volume_edge", "artifact")
TAIL = 0.05


def cells(image: np.ndarray, cell: ZYX) -> np.ndarray:
    """Return mean and contrast of each cell, standardised over the volume; (nz, ny, nx, 2)."""
    count = [n // c for n, c in zip(image.shape, cell, strict=True)]
    cut = image[tuple(slice(0, n * c) for n, c in zip(count, cell, strict=True))]
    blocks = cut.reshape(count[0], cell[0], count[1], cell[1], count[2], cell[2])
    values = np.stack([blocks.mean(axis=(1, 3, 5)), blocks.std(axis=(1, 3, 5))], axis=-1)
    return (values - values.mean(axis=(0, 1, 2))) / values.std(axis=(0, 1, 2))


def rare(values: np.ndarray) -> np.ndarray:
    """Return the cells in a tail of either number; (n, 2)."""
    low, high = np.quantile(values, (TAIL, 1 - TAIL), axis=(0, 1, 2))
    return values[((values < low) | (values > high)).any(axis=-1)]


def sampled(values: np.ndarray, cell: ZYX, boxes: list[Box]) -> np.ndarray:
    """Return the cells whose middle lies in one of the boxes; (n, 2)."""
    inside = np.zeros(values.shape[:3], dtype=bool)
    for box in boxes:
        inside[
            tuple(
                slice(math.ceil(o / c - 0.5), math.ceil((o + n) / c - 0.5))
                for o, n, c in zip(box.offset_zyx, box.shape_zyx, cell, strict=True)
            )
        ] = True
    return values[inside]


def measure(
    volume: VolumeRecord, boxes: list[Box], features: strata.Features, image: np.ndarray, seeds: int, budget: int
) -> dict[str, np.ndarray]:
    """Return strata, tails and spread of both arms; each (seeds, 3)."""
    members = {s: features.members(s) for s in STRATA}
    present = [s for s in STRATA if members[s].any()]
    cell = zyx(min(n, max(3, n // 8)) for n in boxes[0].shape_zyx)
    values = cells(image, cell)
    tail, number = rare(values), {box: i for i, box in enumerate(boxes)}
    found: dict[str, list[list[float]]] = {"stratified": [], "random": []}
    for seed in range(seeds):
        rng = random_generator(seed, "starting patches")
        free = subsample_places(boxes, volume, [volume], rng)
        known = {"v": features.take(np.array([number[box] for box in free]))}
        drawn = BoxSampler([volume], {"v": free}, SharedPlaces({}), rng, known).draw(
            volume_turns([volume], budget, rng), strata.STARTING_STRATA
        )
        order = random_generator(seed, "random patches").permutation(len(boxes))
        arms = {
            "stratified": [d.box for d in drawn],
            "random": [p.box for p in choose_apart((Patch("v", boxes[i]) for i in order), budget)],
        }
        for arm, chosen in arms.items():
            index = [number[box] for box in chosen]
            covered = np.mean([members[s][index].any() for s in present])
            mine = sampled(values, cell, chosen)
            distance = cKDTree(mine).query(tail)[0].mean()
            spread = np.mean([wasserstein_distance(mine[:, i], tail[:, i]) for i in range(2)])
            found[arm].append([float(covered), float(distance), float(spread)])
    return {arm: np.array(rows) for arm, rows in found.items()}


def interval(values: np.ndarray) -> str:
    """Return mean and 95 % interval of the mean (normal)."""
    error = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():6.3f} ± {error:.3f}"


def run(folder: Path, seeds: int, budgets: list[int]) -> None:
    """Print the lines of one data set."""
    spacing = json.loads((folder / "meta.json").read_text())["voxel_size_um_zyx"]
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign.create(f"{scratch}/c", check_config({"name": "benchmark", "classes": ["object"]}))
        import_volume(campaign, VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=spacing))
        starting_patches.draw_holdout(campaign)
        volume, boxes = campaign.volumes.record("v"), starting_patches.candidate_boxes(campaign, "v")
        features = measure_places(campaign.volumes, [volume], {"v": boxes})["v"]
        image = normalise(np.asarray(open_image(campaign.volumes, "v")[:]), volume.normalisation).mean(axis=0)
        absent = [s for s in STRATA if not features.members(s).any()]
        print(
            f"{folder.name}: {len(boxes)} places of {boxes[0].shape_zyx}"
            + (f", no {', '.join(absent)}" if absent else "")
        )
        for budget in budgets:
            arms = measure(volume, boxes, features, image, seeds, budget)
            for i, name in enumerate(("strata", "tails", "spread")):
                gain = interval(arms["stratified"][:, i] - arms["random"][:, i])
                print(
                    f"  budget {budget:2d}  {name:7s} stratified {interval(arms['stratified'][:, i])}   "
                    f"random {interval(arms['random'][:, i])}   difference {gain}",
                    flush=True,
                )


def main() -> None:
    """Run every data set named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args()
    for name in args.datasets or sorted(p.parent.name for p in args.data.glob("*/raw.tif")):
        run(args.data / name, args.seeds, args.budgets)


if __name__ == "__main__":
    main()
