"""Holdout Dice of the U-Net after the starting budget: stratified against random patches, paired by seed.

python tests/benchmarks/sampling_against_random.py DATA_FOLDER OUT --datasets cdeep3m_mito_train --seeds 5

Both arms share holdout, patch shape, budget, training seed and training; only the patches differ. One JSON line per
finished run goes to OUT/DATASET.jsonl, and a rerun skips what is there: kill it whenever you like, run several data
sets side by side. `--summary` prints what is in OUT and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import ANNOTATION
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.config import check_config
from rescueseg.evaluation.metrics import Counts, count_voxels
from rescueseg.geometry import Box, Patch, axis_starts, zyx
from rescueseg.randomness import random_generator
from rescueseg.records import AcceptedAnnotation, HoldoutBox, ModelReference, QueriedPatch
from rescueseg.sampling import starting_patches
from rescueseg.sampling.free_places import choose_apart
from rescueseg.storage import digest_array
from rescueseg.volumes import open_image, open_truth
from rescueseg.volumes.normalise import normalise, read_box
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

ARMS = ("stratified", "random")
DATASETS = ("bbbc050_mosaic_train", "cdeep3m_mito_train", "vesselnn_poon2015_BBB_noLeakage")


def open_or_make(data: Path, out: Path, dataset: str, **training: Any) -> Campaign:
    """Return the campaign of a data set with its holdout; its seed is 0, so that all runs share the boxes."""
    url = out / "campaigns" / dataset
    if not (url / "holdout.json").exists():
        shutil.rmtree(url, ignore_errors=True)
        meta = json.loads((data / dataset / "meta.json").read_text())
        config = check_config({"name": "benchmark", "classes": ["object"], "training": {"threads": 1, **training}})
        campaign = Campaign.create(str(url), config)
        raw, labels = (str(data / dataset / name) for name in ("raw.tif", "labels.tif"))
        import_volume(
            campaign,
            VolumeImport(
                raw, volume_id="v", spacing=meta["voxel_size_um_zyx"], truth=labels, truth_type=meta["label_type"]
            ),
        )
        starting_patches.draw_holdout(campaign)
    return Campaign.open(str(url))


def choose(campaign: Campaign, arm: str, seed: int, budget: int) -> list[QueriedPatch]:
    """Return the patches of one arm."""
    if arm == "stratified":
        seeded = Campaign(campaign.storage, campaign.config.model_copy(update={"seed": seed}))
        return starting_patches.starting_patches(seeded, budget)
    boxes = starting_patches.candidate_boxes(campaign, "v")
    order = random_generator(seed, "random patches").permutation(len(boxes))
    chosen = choose_apart((Patch("v", boxes[i]) for i in order), budget)
    return [QueriedPatch(volume_id="v", box=p.box, score=1, stratum="random") for p in chosen]


def annotate(campaign: Campaign, chosen: Sequence[QueriedPatch], name: str) -> list[AcceptedAnnotation]:
    """Label patches with the truth and return the accepted annotations, their tickets named after `name`."""
    truth, accepted = open_truth(campaign.volumes, "v"), []
    for i, patch in enumerate(chosen):
        labels = np.asarray(truth[patch.box.slices], np.uint8)
        digest = digest_array(labels)
        path = ANNOTATION.path(ticket=f"{name}-{i}", digest=digest)
        campaign.storage.write_array(path, labels)
        accepted.append(
            AcceptedAnnotation(
                ticket_id=f"{name}-{i}", volume_id="v", box=patch.box, purpose="pool", generation=0,
                stratum=patch.stratum, annotation_id=f"{name}-{i}", version=1, labels=path,
                labels_digest=digest, annotator="truth", tool="none", seconds=0.0, voxels_corrected=0,
            )
        )  # fmt: skip
    return accepted


def run(campaign: Campaign, arm: str, seed: int, budget: int) -> dict[str, Any]:
    """Annotate, train and score one arm of one seed."""
    from rescueseg.models.registry import get_trainer
    from rescueseg.models.trainer import TrainingRequest

    started = time.monotonic()
    chosen = choose(campaign, arm, seed, budget)
    accepted = annotate(campaign, chosen, f"{arm}-{seed}")
    shares = [round(float((campaign.storage.read_array(a.labels) == 1).mean()), 4) for a in accepted]
    work = Path(campaign.storage.path(f"runs/{arm}-{seed}"))
    request = TrainingRequest(
        campaign.config, campaign.volumes, campaign.holdout(), make_snapshot(campaign, 0, accepted), work, seed
    )
    model = get_trainer("monai_unet").train(request, lambda step, metrics: None)
    relative = str(model.path.relative_to(campaign.storage.path("")))
    reference = ModelReference(generation=0, trainer="monai_unet", path=relative, digest=model.digest)
    boxes = score(campaign, reference)
    shutil.rmtree(work, ignore_errors=True)
    return {
        "arm": arm,
        "seed": seed,
        "budget": budget,
        "seconds": round(time.monotonic() - started),
        "strata": [p.stratum for p in chosen],
        "foreground": shares,
        "boxes": boxes,
    }


def score(campaign: Campaign, reference: ModelReference, samples: int = 1, symmetries: int = 1) -> list[dict[str, Any]]:
    """Predict the holdout boxes by the mean over dropout samples and symmetries, and count."""
    return [
        {"part": held.part, "stratum": held.stratum, "counts": [counts.tp, counts.fp, counts.fn]}
        for held, prediction, truth in predict_holdout(campaign, reference, samples, symmetries)
        for counts in count_voxels(prediction, truth, 1)
    ]


def predict_holdout(
    campaign: Campaign, reference: ModelReference, samples: int = 1, symmetries: int = 1
) -> Iterator[tuple[HoldoutBox, np.ndarray, np.ndarray]]:
    """Yield each holdout box with the predicted classes and the truth, both uint8 zyx."""
    from rescueseg.models.registry import load_predictor

    config = campaign.config.inference.model_copy(update={"mc_samples": samples, "tta_symmetries": symmetries})
    predictor = load_predictor(campaign.storage, reference, config, "cpu")
    volume, holdout = campaign.volumes.record("v"), campaign.holdout()
    assert holdout is not None
    image, truth = open_image(campaign.volumes, "v"), open_truth(campaign.volumes, "v")
    window = predictor.window_zyx(volume.spacing_um_zyx)
    for held in holdout.boxes:
        prediction = np.zeros(held.box.shape_zyx, np.uint8)
        starts = product(*(axis_starts(n, w, w) for n, w in zip(held.box.shape_zyx, window, strict=True)))
        shape = zyx(min(n, w) for n, w in zip(held.box.shape_zyx, window, strict=True))
        for part in (Box(zyx(start), shape) for start in starts):
            centre = [
                o + a + n // 2 for o, a, n in zip(held.box.offset_zyx, part.offset_zyx, part.shape_zyx, strict=True)
            ]
            read = Box(zyx(c - w // 2 for c, w in zip(centre, window, strict=True)), window)
            voxels = normalise(read_box(image, read), volume.normalisation)
            mean = np.mean([np.asarray(p["probability"][0]) for _, p in predictor.members(voxels[None], [0])], axis=0)
            whole = Box(zyx(o + a for o, a in zip(held.box.offset_zyx, part.offset_zyx, strict=True)), part.shape_zyx)
            prediction[part.slices] = mean.argmax(axis=0)[whole.relative_to(read).slices]
        yield held, prediction, np.asarray(truth[held.box.slices], np.uint8)


def dice(line: dict[str, Any], part: str | None = None, stratum: str | None = None) -> float:
    """Return the pooled Dice of a run, of one part or stratum or of all boxes."""
    total = Counts()
    for box in line["boxes"]:
        if part in (None, box["part"]) and stratum in (None, box["stratum"]):
            tp, fp, fn = box["counts"]
            total += Counts(tp=tp, fp=fp, fn=fn)
    return total.dice


def summary(out: Path) -> None:
    """Print, per data set, both arms, their paired difference with a 95 % bootstrap interval, and what strata gain."""
    for file in sorted(out.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        of = {(line["arm"], line["seed"]): line for line in lines}
        seeds = sorted({s for _, s in of if all((arm, s) in of for arm in ARMS)})
        if not seeds:
            continue
        print(f"{file.stem}: seeds {seeds}, budget {lines[0]['budget']} patches")
        for arm in ARMS:
            values = [dice(of[arm, s], "test") for s in seeds]
            foreground = np.mean([np.mean(of[arm, s]["foreground"]) for s in seeds])
            print(f"  {arm:11s} test Dice {np.mean(values):.3f}  ({', '.join(f'{v:.3f}' for v in values)})  "
                  f"foreground {100 * foreground:.1f} %")  # fmt: skip
        for name, part, stratum in [("test", "test", None), ("both parts", None, None)] + [
            (s, None, s) for s in dict.fromkeys(b["stratum"] for b in lines[0]["boxes"])
        ]:
            gain = [dice(of["stratified", s], part, stratum) - dice(of["random", s], part, stratum) for s in seeds]
            low, high = interval(np.array(gain))
            print(f"    stratified - random, {name:12s} {np.mean(gain):+.3f}  [{low:+.3f}, {high:+.3f}]")


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    means = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    """Run what is missing and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # seed by seed, so that a run that was cut short is still paired
    todo = [(s, d, arm) for s in range(args.seeds) for d in args.datasets for arm in ARMS]
    for seed, dataset, arm in [] if args.summary else todo:
        file = args.out / f"{dataset}.jsonl"
        done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if any((line["arm"], line["seed"]) == (arm, seed) for line in done):
            continue
        campaign = open_or_make(args.data, args.out, dataset, iterations=args.iterations)
        line = run(campaign, arm, seed, args.budget)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{dataset} {arm} seed {seed}: test Dice {dice(line, 'test'):.3f}, {line['seconds']} s", flush=True)
    summary(args.out)


if __name__ == "__main__":
    main()
