"""What each rule of scaling intensities leaves of sparse bright structure, and whether dense volumes train as well.

    python tests/benchmarks/intensities.py table [--data FOLDER] [--names NAME …]
    python tests/benchmarks/intensities.py train OUT --data FOLDER [--seeds 2] [--iterations 200] [--summary]

`table` trains nothing. For puncta phantoms (background 100 ± 10, puncta of several amplitudes, with or without twice as
many dim look-alikes, with or without saturated voxels) and for the volumes in FOLDER (NAME/raw.tif, labels.tif) it prints the
best Dice that any threshold reaches on the voxels as they are, and on any of five Gaussian smoothings, of the raw image and
of what each rule makes of it; then the largest value, and the standard deviation of the background.

`train` trains the U-Net for the same number of steps on two volumes and a phantom with look-alikes, with images clipped
at their limits ("before": the rule of earlier versions) and as they are scaled today, and scores the same holdout. One JSON line
per training goes to OUT/intensities.jsonl; a rerun skips what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.evaluation.holdout_scores import assign, score_boxes
from rescueseg.evaluation.training_scores import predict_holdout
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import ZYX
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import TrainingRequest
from rescueseg.queue.store import open_queue
from rescueseg.records import ModelReference
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages.tickets import prepare
from rescueseg.volumes.normalise import LINEAR, measure_samples, normalise, with_linear
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

Floats = npt.NDArray[np.float32]
Rule = Callable[[Floats], Floats]
SHAPE: ZYX = (32, 96, 96)
PUNCTA = "puncta"
DATASETS = ("gonuclear_1135", "vesselnn_poon2015_BBB_noLeakage", PUNCTA)
PATCHES = 12
SMOOTHINGS = (0.0, 0.5, 1.0, 1.5, 2.0)
LOOK_ALIKE = 0.4
"""Amplitude of a look-alike, as a share of that of a punctum."""
LARGEST = (64, 256, 256)
"""Part of a volume that is looked at."""


def ball(radius: float) -> npt.NDArray[np.bool_]:
    """Return a ball; of radius 1 it has 7 voxels, of 2.2 it has 57."""
    n = int(radius)
    z, y, x = np.mgrid[-n : n + 1, -n : n + 1, -n : n + 1]
    return np.asarray(z**2 + y**2 + x**2 <= radius**2)


def phantom(
    fraction: float,
    amplitude: float,
    *,
    alike: bool = False,
    hot: int = 0,
    radius: float = 1.0,
    seed: int = 0,
    shape: ZYX = SHAPE,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return an image (zyx) and the truth: puncta that do not touch, on a background of 100 ± 10, noise everywhere.

    Parameters
    ----------
    fraction : float
        Share of the voxels that are puncta.
    amplitude : float
        Of a punctum above the background.
    alike : bool
        Whether twice as many voxels belong to look-alikes of the same size, `LOOK_ALIKE` as bright.
    hot : int
        Single voxels that are set to 65,535.
    radius : float
        Of a punctum, in voxels.
    seed : int
        Of places and noise.
    shape : tuple of int
        Of the image.
    """
    rng = np.random.default_rng((seed, round(1e6 * fraction), round(amplitude), alike, hot))
    kernel = ball(radius)
    image = rng.normal(100, 10, shape).astype(np.float32)
    truth, taken = np.zeros(shape, bool), np.zeros(shape, bool)
    n = kernel.shape[0]
    count = max(1, round(fraction * image.size / kernel.sum()))
    kinds = [(amplitude, True)] * count + [(LOOK_ALIKE * amplitude, False)] * (2 * count if alike else 0)
    for height, is_true in kinds:
        while True:
            at = [int(rng.integers(1, s - n)) for s in shape]
            around = tuple(slice(a - 1, a + n + 1) for a in at)
            if not taken[around].any():
                break
        inner = tuple(slice(a, a + n) for a in at)
        taken[inner] |= kernel
        image[inner] += np.float32(height) * kernel
        if is_true:
            truth[inner] |= kernel
    image.ravel()[rng.choice(np.flatnonzero(~taken), hot, replace=False)] = 65535
    return np.clip(np.rint(image), 0, 65535).astype(np.float32), truth


def measured(image: Floats, percentiles: tuple[float, float]) -> tuple[float, float, float, float]:
    """Return both percentiles, and mean and standard deviation of the image clipped to them."""
    low, high = (float(v) for v in np.percentile(image, percentiles))
    clipped = np.clip(image, low, high)
    return low, high, float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64)) or 1.0


def clip(percentile: float) -> Rule:
    """Clip at a percentile and at its counterpart, then mean 0 and standard deviation 1."""

    def scale(image: Floats) -> Floats:
        low, high, mean, std = measured(image, (100 - percentile, percentile))
        return ((np.clip(image, low, high) - mean) / std).astype(np.float32)

    return scale


def robust(limit: float = np.inf) -> Rule:
    """Subtract the median, divide by 1.4826 times the median absolute deviation, and clip at ±`limit` of these."""

    def scale(image: Floats) -> Floats:
        centre = float(np.median(image))
        spread = 1.4826 * float(np.median(np.abs(image - centre))) or 1.0
        return np.clip((image - centre) / spread, -limit, limit).astype(np.float32)

    return scale


def robust_asinh(image: Floats) -> Floats:
    """Apply asinh to all of the robust z-score."""
    return np.arcsinh(robust()(image))


def bounded(limit: float) -> Rule:
    """Take mean and standard deviation between percentiles 0.5 and 99.5, and clip at ±`limit` of these."""

    def scale(image: Floats) -> Floats:
        _, _, mean, std = measured(image, (0.5, 99.5))
        return np.clip((image - mean) / std, -limit, limit).astype(np.float32)

    return scale


def logarithm(percentile: float, curve: float) -> Rule:
    """Keep what lies within a percentile and its counterpart, and let only the logarithm of what lies beyond grow."""

    def scale(image: Floats) -> Floats:
        low, high, mean, std = measured(image, (100 - percentile, percentile))
        near = np.clip(image, low, high)
        far = (image - near) / std
        return ((near - mean) / std + np.copysign(curve * np.log1p(np.abs(far) / curve), far)).astype(np.float32)

    return scale


def today(linear: float) -> Rule:
    """Scale as the library does, linear up to so many standard deviations."""

    def scale(image: Floats) -> Floats:
        made = measure_samples([image.ravel()], linear)
        return normalise(image[np.newaxis], made)[0]

    return scale


RULES: dict[str, Rule] = {
    "clip 99.5 %": clip(99.5),
    "clip 99.99 %": clip(99.99),
    "robust z": robust(),
    "robust z ±20": robust(20),
    "z ±20": bounded(20),
    "asinh": robust_asinh,
    "log beyond 99.5 %, 1": logarithm(99.5, 1),
    "log beyond 99.5 %, 4": logarithm(99.5, 4),
    "linear to 5": today(5),
    "linear to 10": today(10),
    "linear to 20": today(20),
}


def best_dice(image: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """Return the best Dice over all thresholds, the structure being the brighter part or the darker one."""
    values, index = np.unique(image, return_inverse=True)
    inside = np.bincount(index.ravel(), weights=truth.ravel(), minlength=len(values))
    every = np.bincount(index.ravel(), minlength=len(values))
    both = [np.cumsum(order) for order in (inside[::-1], every[::-1], inside, every)]
    return float(max((2 * hit / (size + truth.sum())).max() for hit, size in (both[:2], both[2:])))


def best_smoothed(image: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """Return the best Dice over five smoothings and all thresholds."""
    return max(best_dice(ndimage.gaussian_filter(image, s) if s else image, truth) for s in SMOOTHINGS)


def cases(data: Path | None, names: list[str]) -> Iterator[tuple[str, Floats, npt.NDArray[np.bool_]]]:
    """Yield name, image and truth of the phantoms and of the volumes."""
    for fraction in (0.0003, 0.001, 0.002, 0.004, 0.01):
        yield f"{fraction:.2%} of 250", *phantom(fraction, 150)
    for fraction, radius in ((0.001, 1.0), (0.001, 2.2), (0.004, 2.2)):
        yield (
            f"{fraction:.2%} of 250, {ball(radius).sum()} voxels, alike",
            *phantom(fraction, 150, alike=True, radius=radius),
        )
    for amplitude, radius in ((25, 2.2), (40, 2.2), (60, 1.0), (60, 2.2), (400, 1.0), (2000, 1.0)):
        name = f"0.20% of {100 + amplitude}, {ball(radius).sum()} voxels, alike"
        yield name, *phantom(0.002, amplitude, alike=True, radius=radius)
    yield "0.10% of 250, alike, 8 hot voxels", *phantom(0.001, 150, alike=True, hot=8)
    yield "0.10% of 250, alike, 0.01 % hot voxels", *phantom(0.001, 150, alike=True, hot=79)
    zero, truth = phantom(0.002, 150, hot=8)
    yield "0.20% of 150 on zeros, 8 hot voxels", np.where(zero < 140, 0, zero - 100).astype(np.float32), truth
    for folder in sorted(p for p in data.iterdir() if not names or p.name in names) if data else ():
        raw, labels = (np.asarray(tifffile.imread(folder / f"{name}.tif")) for name in ("raw", "labels"))
        part = tuple(slice((n - min(n, m)) // 2, (n + min(n, m)) // 2) for n, m in zip(raw.shape, LARGEST, strict=True))
        yield folder.name, raw[part].astype(np.float32), labels[part] > 0


def table(data: Path | None, names: list[str]) -> None:
    """Print what each rule leaves, a case at a time."""
    for name, image, truth in cases(data, names):
        print(f"\n{name}: {truth.mean():.2%} of {truth.size:,} voxels; raw {best_dice(image, truth):.3f} by a voxel, "
              f"{best_smoothed(image, truth):.3f} smoothed", flush=True)  # fmt: skip
        for rule, scale in RULES.items():
            made = scale(image)
            ground = float(made[~truth & (image < 65535)].std())
            print(f"  {rule:21s} by a voxel {best_dice(made, truth):.3f}  smoothed {best_smoothed(made, truth):.3f}  "
                  f"largest {np.abs(made).max():8.1f}  background's deviation {ground:.2f}", flush=True)  # fmt: skip


def prepared(data: Path, out: Path, dataset: str, seed: int) -> Campaign:
    """Return the campaign of a data set and seed with holdout, annotated patches and snapshot, made once."""
    url = out / "campaigns" / f"{dataset}-{seed}"
    if not (url / "generations" / "0000" / "snapshot.json").exists():
        shutil.rmtree(url, ignore_errors=True)
        config = check_config(
            {
                "name": "intensities", "classes": ["object"], "seed": seed, "training": {"threads": 1},
                "sampling": {"starting_patches": PATCHES}, "holdout": {"validation_boxes": 4, "test_boxes": 16},
                "inference": {"mc_samples": 1, "tta_symmetries": 2},
            }
        )  # fmt: skip
        campaign = Campaign.create(str(url), config)
        folder, spacing, kind = data / dataset, (1.0, 1.0, 1.0), "semantic"
        if dataset == PUNCTA:
            folder = out / f"{PUNCTA}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            image, truth = phantom(0.0015, 150, alike=True, radius=2.2, seed=seed, shape=(48, 160, 160))
            tifffile.imwrite(folder / "raw.tif", image.astype(np.uint16))
            tifffile.imwrite(folder / "labels.tif", truth.astype(np.uint8))
        else:
            meta = json.loads((folder / "meta.json").read_text())
            spacing, kind = meta["voxel_size_um_zyx"], meta["label_type"]
        raw, labels = (str(folder / f"{name}.tif") for name in ("raw", "labels"))
        import_volume(campaign, VolumeImport(raw, volume_id="v", spacing=spacing, truth=labels, truth_type=kind))
        store = open_queue(campaign)
        prepare(campaign, store)
        SimulatedAnnotator(campaign, store).drain()
        campaign.generation(0).write(SNAPSHOT, make_snapshot(campaign, 0, store.views.accepted("pool")))
        store.close()
    return Campaign.open(str(url))


def train(campaign: Campaign, rule: str, iterations: int) -> dict[str, Any]:
    """Train the U-Net on images scaled by a rule, and return what it reaches on the test boxes."""
    record = campaign.volumes.record("v")
    linear = LINEAR if rule == "today" else 0.0
    campaign.volumes.save(record.model_copy(update={"normalisation": with_linear(record.normalisation, linear)}))
    training = campaign.config.training.model_copy(update={"trainer": "monai_unet", "iterations": iterations})
    config = campaign.config.model_copy(update={"training": training})
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    work = Path(campaign.storage.path(f"runs/{rule}"))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    request = TrainingRequest(config, campaign.volumes, campaign.holdout(), snapshot, work, config.seed)
    started = time.process_time()
    model = get_trainer("monai_unet").train(request, lambda step, metrics: None)
    spent = time.process_time() - started
    path = str(model.path.relative_to(campaign.storage.path("")))
    reference = ModelReference(generation=0, trainer="monai_unet", path=path, digest=model.digest)
    truth = holdout_truth(campaign)
    assignment = assign(campaign, reference, truth)
    scores = score_boxes(assignment, predict_holdout(campaign, assignment))
    shutil.rmtree(work)
    counts = [(b.part, b.counts[0]) for b in scores.boxes]
    dice = {}
    for part in ("validation", "test"):
        tp, fp, fn = (sum(getattr(c, key) for p, c in counts if p == part) for key in ("tp", "fp", "fn"))
        dice[part] = round(2 * tp / max(1, 2 * tp + fp + fn), 4)
    return {"iterations": model.iterations, "cpu_seconds": round(spent, 1), **dice}


def trainings(options: argparse.Namespace) -> None:
    """Run what is missing, then print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "intensities.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in () if options.summary else range(options.seeds):
        for dataset in options.names or DATASETS:
            for rule in ("before", "today"):
                key = {"dataset": dataset, "seed": seed, "rule": rule}
                if any(key.items() <= row.items() for row in rows):
                    continue
                row = key | train(prepared(options.data, options.out, dataset, seed), rule, options.iterations)
                rows.append(row)
                with file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(row, flush=True)
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        for rule in ("before", "today"):
            of = [row for row in rows if (row["dataset"], row["rule"]) == (dataset, rule)]
            cells = "  ".join(f"{part} {' '.join(f'{row[part]:.3f}' for row in of)}" for part in ("validation", "test"))
            print(f"{dataset:32s} {rule:7s} {cells}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("table", help="best thresholds, without training")
    trained = commands.add_parser("train", help="short trainings")
    trained.add_argument("out", type=Path)
    for command in (shown, trained):
        command.add_argument("--data", type=Path, help="folder of the volumes")
        command.add_argument("--names", nargs="*", default=[], help="of the volumes: all, unless said")
    trained.add_argument("--seeds", type=int, default=2)
    trained.add_argument("--iterations", type=int, default=200)
    trained.add_argument("--summary", action="store_true", help="train nothing, print the table of what is there")
    options = parser.parse_args()
    if options.command == "table":
        table(options.data, options.names)
    else:
        trainings(options)


if __name__ == "__main__":
    main()
