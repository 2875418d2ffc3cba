"""Does the loss that minds topology pay? Betti errors and clDice on vessels, at equal processor time, paired by seed.

python -m tests.benchmarks.topology_loss DATA_FOLDER OUT --seeds 0 1 2 --seconds 240

Both arms share the patches (12, as a campaign would draw them, annotated with the truth), the first weights, the windows and
the seconds of processor time (single thread); the arm with the loss for topology thus takes fewer steps. Scored are all
holdout boxes: mean absolute error of the numbers of pieces (b0) and tunnels (b1) per box, clDice and Dice from counts pooled
over the boxes. One JSON line per finished run goes to OUT/topology.jsonl, and a rerun skips what is there. `--summary`
prints the table and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from rescueseg.campaign import Campaign
from rescueseg.evaluation.metrics import count_voxels
from rescueseg.evaluation.topology import compare_topology
from rescueseg.records import ModelReference
from tests.benchmarks.sampling_against_random import open_or_make, predict_holdout
from tests.benchmarks.training_profile import train_for, training_set

DATASET = "vesselnn_poon2015_BBB_noLeakage"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "Dice + CE": ("monai_unet", {}),
    "with clDice": ("monai_unet_topology", {}),
    "with Betti matching": ("monai_unet_topology", {"unet": {"cldice_weight": 0.0, "betti_weight": 0.02}}),
}
"""Trainer and settings of each arm; the first is what the others are compared with."""
SCORES = {"b0_error": "b0 error", "b1_error": "b1 error", "cldice": "clDice", "dice": "Dice"}


def run(campaign: Campaign, arm: str, seconds: float, seed: int) -> dict[str, Any]:
    """Train and score one arm of one seed."""
    trainer, settings = ARMS[arm]
    work = Path(campaign.storage.path(f"runs/topology-{list(ARMS).index(arm)}-{seed}"))
    model, spent = train_for(campaign, training_set(campaign, seed), settings, seconds, seed, work, trainer)
    relative = str(model.path.relative_to(campaign.storage.path("")))
    reference = ModelReference(generation=0, trainer=trainer, path=relative, digest=model.digest)
    inference = campaign.config.inference
    boxes = []
    for _, prediction, truth in predict_holdout(campaign, reference, inference.mc_samples, inference.tta_symmetries):
        [counts] = count_voxels(prediction, truth, 1)
        topology = compare_topology(prediction == 1, truth == 1)
        boxes.append({"counts": [counts.tp, counts.fp, counts.fn], "topology": topology.to_json()})
    shutil.rmtree(work, ignore_errors=True)
    return {
        "arm": arm,
        "budget": seconds,
        "seed": seed,
        "steps": model.iterations,
        "seconds": round(spent, 1),
        "boxes": boxes,
    }


def scores(line: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a run over all holdout boxes."""
    topology = [box["topology"] for box in line["boxes"]]
    tp, fp, fn = np.sum([box["counts"] for box in line["boxes"]], axis=0)
    total = {k: sum(t[k] for t in topology) for k in ("found_skeleton", "found_inside", "true_skeleton", "true_inside")}
    precision = total["found_inside"] / max(total["found_skeleton"], 1)
    recall = total["true_inside"] / max(total["true_skeleton"], 1)
    return {
        "b0_error": float(np.mean([abs(t["found_betti"][0] - t["true_betti"][0]) for t in topology])),
        "b1_error": float(np.mean([abs(t["found_betti"][1] - t["true_betti"][1]) for t in topology])),
        "cldice": 2 * precision * recall / max(precision + recall, 1e-9),
        "dice": float(2 * tp / (2 * tp + fp + fn)),
    }


def summary(lines: list[dict[str, Any]]) -> None:
    """Print, per budget, the scores of both arms and the paired differences with their standard error."""
    for budget in sorted({x["budget"] for x in lines}):
        of = {(x["arm"], x["seed"]): x for x in lines if x["budget"] == budget}
        plain = next(iter(ARMS))
        print(f"{DATASET}: {budget:.0f} s of processor time per training, {len(lines[0]['boxes'])} holdout boxes")
        print(f"  {'':34s} {'steps':>6s} {'CPU s':>6s} " + " ".join(f"{name:>9s}" for name in SCORES.values()))
        for (arm, seed), line in sorted(of.items(), key=lambda item: (list(ARMS).index(item[0][0]), item[0][1])):
            row = " ".join(f"{scores(line)[k]:9.3f}" for k in SCORES)
            print(f"  {arm:26s} seed {seed:2d} {line['steps']:6d} {line['seconds']:6.0f} {row}")
        for arm in ARMS:
            seeds = [s for a, s in sorted(of) if a == arm]
            if seeds:
                means = [np.mean([scores(of[arm, s])[k] for s in seeds]) for k in SCORES]
                print(f"  {arm:26s} mean{'':18s}" + " ".join(f"{v:9.3f}" for v in means))
        for arm in list(ARMS)[1:]:
            both = [s for a, s in sorted(of) if a == arm and (plain, s) in of]
            if len(both) > 1:
                gains = np.array([[scores(of[arm, s])[k] - scores(of[plain, s])[k] for k in SCORES] for s in both])
                error = gains.std(axis=0, ddof=1) / np.sqrt(len(both))
                cells = "  ".join(
                    f"{n} {m:+.3f} ± {e:.3f}"
                    for n, m, e in zip(SCORES.values(), gains.mean(axis=0), error, strict=True)
                )
                print(f"  {arm} − {plain}, {len(both)} seeds (± standard error): {cells}")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:2], choices=list(ARMS))
    parser.add_argument("--seconds", type=float, default=240.0, help="processor time of one training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    file = options.out / "topology.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(x["arm"], x["budget"], x["seed"]) for x in lines}
    campaign = None if options.summary else open_or_make(options.data, options.out, DATASET)
    for seed in options.seeds if campaign else ():
        for arm in options.arms:
            if (arm, options.seconds, seed) in done:
                continue
            line = run(campaign, arm, options.seconds, seed)
            lines.append(line)
            with file.open("a") as handle:
                handle.write(json.dumps(line) + "\n")
            print(f"{arm} seed {seed}: {line['steps']} steps, {scores(line)}", flush=True)
    summary(lines)


if __name__ == "__main__":
    main()
