"""The demo over seeds and precisions: is the last generation better than the first, and than the threshold?

python tests/benchmarks/demo_story.py OUT --seeds 0 1 2 3 4 --precisions float32 bfloat16
python tests/benchmarks/demo_story.py OUT --dataset gonuclear_1135 --data DATA_FOLDER

Each row is a campaign as `rescueseg demo --dataset phantom` (or another) makes it, with another seed of the campaign and the
same volume; its generations are run here, without servers, on one thread. float32 is what a processor without bfloat16
computes in. One JSON line per row goes to OUT/demo_story.jsonl; a rerun skips what is there and goes on with a campaign that
was cut off. Kill it whenever you like, or share the seeds among several commands. `--summary` prints the table of what is
there and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import TRAINING
from rescueseg.cli.demo import PHANTOM_SEED, demo_settings, open_or_start
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.scores import PartScore
from rescueseg.evaluation.threshold_baseline import threshold_baseline
from rescueseg.models.precision import autocast_dtype
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.simulation.annotator import SimulatedAnnotator
from rescueseg.stages import evaluate, infer, snapshot, tickets, train
from rescueseg.stages.due import begin
from rescueseg.storage import digest_array
from rescueseg.volumes.phantom import make_phantom

GENERATIONS = 3
PRECISIONS = ("float32", "bfloat16")
PHANTOM = "ab411550b855 66f1b2893554"
"""Beginnings of the digests of the phantom's image and truth: figures of another phantom are no comparison."""


def run_generations(campaign: Campaign, store: QueueStore) -> None:
    """Run the loop of the flow `active_learning`, or go on with it; what is done is not done again."""
    tickets.prepare(campaign, store)
    for number in range(GENERATIONS):
        last = store.ledger.last_generation()
        if last is not None and last.generation == number and last.finished_at is not None:
            continue
        if last is None or last.finished_at is not None:
            SimulatedAnnotator(campaign, store).drain()
            begin(campaign, store)
        snapshot.make_snapshot(campaign, number, store)
        train.train(campaign, number, lambda step, metrics: None)
        infer.infer(campaign, number, None, lambda what, done, total: None)
        evaluate.evaluate(campaign, number)
        tickets.query(campaign, number, store)
        tickets.enqueue(campaign, number, store)
        store.ledger.finish_generation(number)


def story(out: Path, seed: int, precision: str, dataset: str, data: str) -> dict[str, Any]:
    """Run the demo's campaign of a seed in a precision and return its row."""
    if precision == "bfloat16" and autocast_dtype(torch.device("cpu")) is not torch.bfloat16:
        raise SystemExit("this processor does not compute in bfloat16: --precisions float32")
    began, processor = time.monotonic(), time.process_time()
    settings = (*demo_settings(GENERATIONS), f"seed={seed}", "training.threads=1")
    name = f"{precision}-{seed}" if dataset == "phantom" else f"{dataset}-{precision}-{seed}"
    campaign = open_or_start(out / name, dataset, data, settings, Console(quiet=True))
    with closing(open_queue(campaign)) as store:
        run_generations(campaign, store)
    row: dict[str, Any] = {"dataset": dataset, "seed": seed, "precision": precision}
    evaluations = [folder.require(EVALUATION).evaluation for folder in campaign.generations()]
    row["test"] = [dice_of(evaluation.test) for evaluation in evaluations]
    row["validation"] = [dice_of(evaluation.validation) for evaluation in evaluations]
    row["threshold"] = threshold_baseline(campaign).test_dice
    row["notes"] = sorted({note for folder in campaign.generations() for note in folder.require(TRAINING).warnings})
    row["seconds"], row["cpu_seconds"] = round(time.monotonic() - began), round(time.process_time() - processor)
    return row


def dice_of(part: PartScore | None) -> float:
    """Return the Dice of a part; all boxes of the phantom together hold the class."""
    assert part is not None
    assert part.dice is not None
    return round(part.dice, 4)


def holds(row: dict[str, Any]) -> bool:
    """Tell whether the last generation is better than the first and than the threshold, on the test boxes."""
    return bool(row["test"][-1] > max(row["test"][0], row["threshold"]))


def show(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    test, validation = (" ".join(f"{dice:6.3f}" for dice in row[part]) for part in ("test", "validation"))
    told = "" if not row["notes"] else f"  {'; '.join(row['notes'])}"
    return (
        f"{row['seed']:>4} {row['precision']:>9} {test} {row['threshold']:>10.3f} {'yes' if holds(row) else 'no':>5} "
        f"{validation} {row['seconds']:>6} s {row['cpu_seconds']:>6} CPU s{told}"
    )


def main() -> None:
    """Run what is missing, a line per row, and say in how many the story holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--dataset", default="phantom")
    parser.add_argument("--data", default="", help="folder of example volumes, for another data set than the phantom")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    image, truth, _ = make_phantom(seed=PHANTOM_SEED)
    if (digest := f"{digest_array(image)[:12]} {digest_array(truth)[:12]}") != PHANTOM:
        raise SystemExit(f"the phantom is another one: {digest}, not {PHANTOM}")
    file = options.out / "demo_story.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if line["dataset"] == options.dataset]
    print(f"{'seed':>4} {'precision':>9} {'test Dice by generation':20} {'threshold':>10} {'holds':>5} validation Dice")
    for line in lines:
        print(show(line))
    for seed in options.seeds:
        for precision in options.precisions:
            if options.summary or any((x["seed"], x["precision"]) == (seed, precision) for x in lines):
                continue
            chosen = autocast_dtype if precision == "bfloat16" else lambda device: None
            with patch("rescueseg.models.precision.autocast_dtype", chosen):
                lines.append(story(options.out, seed, precision, options.dataset, options.data))
            with file.open("a") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
            print(show(lines[-1]), flush=True)
    print(f"The story holds in {sum(map(holds, lines))} of {len(lines)} rows")


if __name__ == "__main__":
    main()
