"""Steps per second of both model families, before and after a change, from the same seed and the same patches.

git worktree add /somewhere/before COMMIT
python tests/benchmarks/training_steps.py DATA_FOLDER OUT --before /somewhere/before --repeats 3

Each training runs in a process of its own, with the code of one of the two checkouts, by turns: before, after, before …;
each pair has a seed of its own. It prints steps per second by the clock, processor time per step (of the process and its
children; what else the machine does changes that least) and the mean loss of the last quarter, which says whether both learn
alike; then the ratios and the mean difference of the losses. Steps are timed from the tenth on. What a change does to test
Dice at equal processor time, `families.py --before` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

from processor_time import cpu_seconds

HERE = Path(__file__).resolve().parents[2]
FAMILIES = ("monai_unet", "monai_unet_topology", "nnunet")
FIRST = 10
"""Steps that are not timed: memory is allocated in them, and code compiled."""


def measure(url: str, trainer: str, settings: Mapping[str, Any], device: str, seed: int) -> dict[str, float]:
    """Train a snapshot with the code that is imported here; `settings` are those of `[training]`."""
    from rescueseg.campaign import Campaign
    from rescueseg.config import TrainingConfig
    from rescueseg.models.registry import get_trainer
    from rescueseg.models.trainer import TrainingRequest

    campaign = Campaign.open(url)
    snapshot = campaign.generation(0).snapshot()
    assert snapshot is not None
    written = campaign.config.training.model_dump() | {"trainer": trainer} | settings
    config = campaign.config.model_copy(update={"training": TrainingConfig.model_validate(written)})
    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as work:
        request = TrainingRequest(
            config, campaign.volumes, campaign.holdout(), snapshot, Path(work), seed, device=device
        )
        model = get_trainer(trainer).train(request, lambda *_: times.append((time.perf_counter(), cpu_seconds())))
    losses = [entry["loss"] for entry in model.losses[-len(model.losses) // 4 :]]
    wall, cpu = (times[-1][i] - times[FIRST - 1][i] for i in (0, 1))
    steps = len(times) - FIRST
    return {"steps_per_second": steps / wall, "cpu_ms_per_step": 1000 * cpu / steps, "loss": sum(losses) / len(losses)}


def run(
    checkout: Path, url: str, trainer: str, settings: Mapping[str, Any], device: str, seed: int
) -> dict[str, float]:
    """Measure in a process with the code of a checkout."""
    command = [sys.executable, __file__, "--measure", url, trainer, json.dumps(settings), device, str(seed)]
    threads = str(settings["threads"])
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {trainer} failed\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Measure by turns, and print each pair and the ratios."""
    if sys.argv[1:2] == ["--measure"]:
        url, trainer, settings, device, seed = sys.argv[2:]
        print(json.dumps(measure(url, trainer, json.loads(settings), device, int(seed))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--before", type=Path, help="another checkout; without it, this one alone is measured")
    parser.add_argument("--dataset", default="cdeep3m_mito_train")
    parser.add_argument("--families", nargs="+", default=["monai_unet", "nnunet"], choices=FAMILIES)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", default="{}", help='more settings of [training] as JSON, such as {"batch_size": 4}')
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from tests.benchmarks.families import open_or_make

    options.out.mkdir(parents=True, exist_ok=True)
    url = open_or_make(options.data, options.out.resolve(), options.dataset, 0).storage.url
    settings = {"threads": options.threads, "profile": options.profile, "iterations": options.steps + FIRST}
    settings |= json.loads(options.set)
    checkouts = {"after": HERE} if options.before is None else {"before": options.before.resolve(), "after": HERE}
    print(f"{'family':20s} {'':6s} {'steps/s':>8s} {'CPU ms/step':>12s} {'loss':>8s}")
    for trainer in options.families:
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for seed in range(options.repeats):
            for name, checkout in checkouts.items():
                row = run(checkout, url, trainer, settings, options.device, seed)
                rows[name].append(row)
                print(
                    f"{trainer:20s} {name:6s} {row['steps_per_second']:8.2f} {row['cpu_ms_per_step']:12.1f} {row['loss']:8.4f}",
                    flush=True,
                )
        if len(rows) == 2:
            pairs = list(zip(rows["before"], rows["after"], strict=True))
            speed = [after["steps_per_second"] / before["steps_per_second"] for before, after in pairs]
            cost = [before["cpu_ms_per_step"] / after["cpu_ms_per_step"] for before, after in pairs]
            losses = [after["loss"] - before["loss"] for before, after in pairs]
            print(
                f"{trainer}: {median(speed):.2f} times the steps per second ({min(speed):.2f} to {max(speed):.2f}), "
                f"{median(cost):.2f} times per processor second ({min(cost):.2f} to {max(cost):.2f}); "
                f"loss {mean(losses):+.4f} ({min(losses):+.4f} to {max(losses):+.4f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
