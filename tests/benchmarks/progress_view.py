"""How long one look at the progress of a running flow takes, beside reading every stage's result as it once did.

The generation is that of an older version, whose training.json holds its losses.

Example: .venv/bin/python tests/benchmarks/progress_view.py --steps 250000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

from rescueseg.campaign import STAGES, Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.record_file import seconds_file
from rescueseg.cli.flows import finished_stages, running_stage


def seconds_of(look: Callable[[], object], times: int) -> float:
    """Return the mean time of a look."""
    started = time.perf_counter()
    for _ in range(times):
        look()
    return (time.perf_counter() - started) / times


def read_all(campaign: Campaign) -> None:
    """Read the result of every finished stage and how long it took."""
    for generation in campaign.generations():
        for stage in generation.finished_stages():
            campaign.storage.read_json(generation.path(f"{stage}.json"))
            generation.read(seconds_file(stage))


def look(campaign: Campaign) -> tuple[list[tuple[int, str]], str]:
    """Ask what the progress view asks."""
    return list(finished_stages(campaign.generations())), running_stage(campaign.generations())


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250_000, help="steps of the training, each with a loss")
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign.create(folder, settings_of("progress", ["organelle"]))
        losses = [{"step": float(step), "loss": 1 / (step + 1), "learning_rate": 0.01} for step in range(steps)]
        for stage in STAGES[:-1]:
            campaign.generation(0).write(seconds_file(stage), 1.0)
            result = {"losses": losses} if stage == "training" else {}
            campaign.storage.write_json(campaign.generation(0).path(f"{stage}.json"), result)
        campaign.generation(0).note_progress("training step", steps, 0)
        before = seconds_of(lambda: read_all(campaign), 5)
        now = seconds_of(lambda: look(campaign), 200)
    print(
        f"{steps:,} losses: all read {1e3 * before:.1f} ms, a look {1e3 * now:.2f} ms, {before / now:,.0f} times less"
    )


if __name__ == "__main__":
    main()
