"""Held-out Dice of the U-Net against CPU seconds, for variants of the CPU profile.

python -m tests.benchmarks.training_profile DATA_FOLDER OUT --datasets cdeep3m_mito_train --variants profile "80k, wide 24…192" --seconds 240

Each run trains on the 12 starting patches that a campaign would draw, annotated with the truth, for as many steps as fit
into the budget of processor time (single thread; measured on the first steps, so that the learning rate can fall to zero
at the end), and is scored on the holdout boxes with the members that inference would use; variants are ranked by the
validation boxes alone. One JSON line per finished run goes to OUT/profile.jsonl, and a rerun skips what is there.
`--summary` prints the table and trains nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from monai.transforms.compose import Compose

from rescueseg.campaign import Campaign
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.config import TrainingConfig
from rescueseg.models.registry import get_trainer
from rescueseg.models.trainer import TrainedModel, TrainingRequest
from rescueseg.models.unet import plan
from rescueseg.models.unet.augment import Augmentation
from rescueseg.records import ModelReference, Snapshot
from rescueseg.sampling import starting_patches
from tests.benchmarks.sampling_against_random import DATASETS, annotate, dice, open_or_make, score

PATCHES = 12
MEASURED_STEPS = 80


class FlipsAlone(Augmentation):
    """Flips and quarter turns, the image as it is."""

    def __init__(self, plan: plan.TrainingPlan) -> None:
        super().__init__(plan)
        self._steps = Compose(self._steps.transforms[: 4 if plan.square else 3])


def constant_rate(peak: float, step: int, iterations: int) -> float:
    """Return the learning rate of a schedule that warms up and then stays."""
    return peak * min(1.0, (step + 1) / 20)


def untouched(plan: plan.TrainingPlan) -> Callable[..., Any]:
    """Return what augments nothing."""
    return lambda image, label, *key: (image, label)


LARGER: dict[str, Any] = {"window_voxels": 80_000}
"""The window that the profile had when most of its other settings were compared."""
VARIANTS: dict[str, dict[str, Any]] = {
    "profile": {},
    "80k": LARGER,
    "80k, narrow 8…64": LARGER | {"unet": {"channels": [8, 16, 32, 64]}},
    "80k, wide 24…192": LARGER | {"unet": {"channels": [24, 48, 96, 192]}},
    "80k, rate 1e-2": LARGER | {"learning_rate": 1e-2},
    "80k, constant rate": LARGER | {"rescueseg.models.network_run.cosine_rate": constant_rate},
    "80k, no dropout": LARGER | {"dropout": 0.0},
    "80k, average of weights": LARGER | {"unet": {"ema": 0.99}},
    "80k, batch 1": LARGER | {"batch_size": 1},
    "80k, half resolution": LARGER | {"coarser": 2.0},
    "80k, no augmentation": LARGER | {"rescueseg.models.unet.loop.Augmentation": untouched},
    "80k, flips alone": LARGER | {"rescueseg.models.unet.loop.Augmentation": FlipsAlone},
    "80k, foreground 1/4": LARGER | {"rescueseg.models.training_items._FOREGROUND_SHARE": 0.25},
    "320k, batch 1": {"window_voxels": 320_000, "batch_size": 1},
    "coarse losses": {"unet": {"deep_supervision": True}},
    "rare classes weigh more": {"unet": {"balanced_classes": True}},
}
"""What each variant changes: fields of the profile, settings in `[training]`, how much coarser than the volume the working
spacing is, or (with dots) what a module would use."""


def configure(campaign: Campaign, changes: dict[str, Any], iterations: int) -> tuple[Campaign, plan.Profile]:
    """Return the campaign with a variant's settings, and the variant's profile."""
    fields = {f.name for f in dataclasses.fields(plan.Profile)}
    settings = {k: v for k, v in changes.items() if k not in fields and k != "coarser" and "." not in k}
    if "coarser" in changes:
        settings["spacing_um_zyx"] = [s * changes["coarser"] for s in campaign.volumes.record("v").spacing_um_zyx]
    training = campaign.config.training.model_dump() | {"iterations": iterations, "checkpoint_every": 10**6, **settings}
    config = campaign.config.model_copy(update={"training": TrainingConfig.model_validate(training)})
    profile = dataclasses.replace(plan.PROFILES["cpu"], **{k: v for k, v in changes.items() if k in fields})
    return Campaign(campaign.storage, config), profile


def training_set(campaign: Campaign, seed: int, patches: int = PATCHES) -> Snapshot:
    """Return the snapshot of the starting patches of one seed, annotated with the truth."""
    seeded = Campaign(campaign.storage, campaign.config.model_copy(update={"seed": seed}))
    return make_snapshot(
        campaign, 0, annotate(campaign, starting_patches.starting_patches(seeded, patches), f"profile-{seed}")
    )


def train(
    campaign: Campaign, snapshot: Snapshot, changes: dict[str, Any], iterations: int, seed: int, work: Path,
    trainer: str = "monai_unet",
) -> tuple[TrainedModel, list[float]]:  # fmt: skip
    """Train a variant; return the model and the processor time at the start and after each step."""
    configured, profile = configure(campaign, changes, iterations)
    times = [time.process_time()]
    with ExitStack() as stack:
        stack.enter_context(patch.dict(plan.PROFILES, {"cpu": profile}))
        for target in (k for k in changes if "." in k):
            stack.enter_context(patch(target, changes[target]))
        request = TrainingRequest(configured.config, configured.volumes, configured.holdout(), snapshot, work, seed)
        model = get_trainer(trainer).train(request, lambda step, metrics: times.append(time.process_time()))
    return model, times


def seconds_per_step(seconds: np.ndarray) -> float:
    """Return what a step takes when little else disturbs the core: lower quartiles.

    In the second half of a training, steps may be of two kinds by turns (the loss for topology).
    """
    half = len(seconds) // 2
    pairs = seconds[half : half + half // 2 * 2].reshape(-1, 2).sum(axis=1)
    return float(np.quantile(seconds[:half], 0.25) + np.quantile(pairs, 0.25) / 2) / 2


def train_for(
    campaign: Campaign, snapshot: Snapshot, changes: dict[str, Any], seconds: float, seed: int, work: Path,
    trainer: str = "monai_unet",
) -> tuple[TrainedModel, float]:  # fmt: skip
    """Train as many steps as fit into the seconds of processor time; return the model and the seconds it took."""
    shutil.rmtree(work, ignore_errors=True)
    _, times = train(campaign, snapshot, changes, MEASURED_STEPS, seed, work, trainer)
    per_step = seconds_per_step(np.diff(times[1:]))
    shutil.rmtree(work, ignore_errors=True)
    iterations = max(1, int((seconds - (times[1] - times[0])) / per_step))
    model, times = train(campaign, snapshot, changes, iterations, seed, work, trainer)
    return model, times[-1] - times[0]


def run(campaign: Campaign, dataset: str, variant: str, seconds: float, seed: int) -> dict[str, Any]:
    """Train and score one variant."""
    work = Path(campaign.storage.path(f"runs/profile-{variant}-{seed}".replace(" ", "-")))
    model, spent = train_for(campaign, training_set(campaign, seed), VARIANTS[variant], seconds, seed, work)
    relative = str(model.path.relative_to(campaign.storage.path("")))
    started = time.process_time()
    reference = ModelReference(generation=0, trainer="monai_unet", path=relative, digest=model.digest)
    inference = campaign.config.inference
    boxes = score(campaign, reference, inference.mc_samples, inference.tta_symmetries)
    scored = time.process_time() - started
    made = json.loads((model.path / "model.json").read_text())["plan"]
    shutil.rmtree(work, ignore_errors=True)
    return {
        "dataset": dataset,
        "variant": variant,
        "budget": seconds,
        "seed": seed,
        "steps": model.iterations,
        "seconds": round(spent, 1),
        "scoring_seconds": round(scored, 1),
        "window_zyx": made["window_zyx"],
        "loss": round(float(np.mean([entry["loss"] for entry in model.losses[-20:]])), 4),
        "validation": round(dice({"boxes": boxes}, "validation"), 4),
        "test": round(dice({"boxes": boxes}, "test"), 4),
        "boxes": boxes,
    }


def summary(lines: list[dict[str, Any]]) -> None:
    """Print one row per variant, the runs of its seeds averaged, best validation Dice first: the test part chooses nothing."""
    print(f"{'data set':32s} {'variant':24s} {'budget':>6s} {'CPU s':>6s} {'steps':>6s} {'window':>14s}"
          f" {'validation':>10s} {'test':>6s}  seeds")  # fmt: skip
    keys = list(dict.fromkeys((x["dataset"], x["budget"], x["variant"]) for x in lines))
    rows = []
    for dataset, budget, variant in keys:
        of = [x for x in lines if (x["dataset"], x["budget"], x["variant"]) == (dataset, budget, variant)]
        mean = {k: float(np.mean([x[k] for x in of])) for k in ("seconds", "steps", "validation", "test")}
        rows.append((dataset, budget, -mean["validation"], variant, mean, of))
    for dataset, budget, _, variant, mean, of in sorted(rows, key=lambda r: r[:4]):
        print(f"{dataset:32s} {variant:24s} {budget:6.0f} {mean['seconds']:6.0f} {mean['steps']:6.0f}"
              f" {'×'.join(map(str, of[0]['window_zyx'])):>14s} {mean['validation']:10.3f} {mean['test']:6.3f}"
              f"  {','.join(str(x['seed']) for x in of)}")  # fmt: skip


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=240.0, help="processor time of one training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    file = options.out / "profile.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(x["dataset"], x["variant"], x["budget"], x["seed"]) for x in lines}
    for dataset in () if options.summary else options.datasets:
        campaign = open_or_make(options.data, options.out, dataset)
        for seed in options.seeds:
            for variant in options.variants:
                if (dataset, variant, options.seconds, seed) in done:
                    continue
                line = run(campaign, dataset, variant, options.seconds, seed)
                lines.append(line)
                with file.open("a") as handle:
                    handle.write(json.dumps(line) + "\n")
                print(f"{dataset} {variant} seed {seed}: {line['steps']} steps, {line['seconds']} s,"
                      f" validation {line['validation']:.3f}, test {line['test']:.3f}", flush=True)  # fmt: skip
    summary(lines)


if __name__ == "__main__":
    main()
