"""A benchmark of query strategies that takes seconds: balls, a U-Net of few channels, a few steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rescueseg.progress import Progress
from rescueseg.simulation.annotated_volume import AnnotatedVolume
from rescueseg.simulation.protocol import Regime, Setting
from rescueseg.simulation.rows import SimulationRow, read_rows
from rescueseg.stages.simulate import run_setting
from tests.training_rig import SPACING, balls

STEPS = 4


def ball_volume() -> AnnotatedVolume:
    """Return a volume of 16×80×80 voxels with bright balls."""
    image, truth = balls((16, 80, 80), SPACING, 3, 1)
    return AnnotatedVolume(image[None], truth, SPACING, "semantic", ("ball",))


def small_setting(**changes: Any) -> Setting:
    """Return a setting of few steps, two loops and one seed, with changes."""
    usual: dict[str, Any] = {
        "dataset": "balls",
        "regimes": (Regime(name="low", patches=8),),
        "loops": 2,
        "seeds": (0,),
        "strategies": ("random", "oracle_error"),
        "steps": STEPS,
        "patch_zyx": (4, 12, 12),
        "settings": (
            "training.window_zyx=[8, 16, 16]",
            "training.unet.channels=[4, 8, 8]",
            "training.batch_size=1",
            "training.checkpoint_every=2",
            "holdout.box_zyx=[4, 16, 16]",
            "holdout.validation_boxes=2",
            "holdout.test_boxes=2",
            "holdout.guard_zyx=[1, 4, 4]",
        ),
    }
    return Setting(**(usual | changes))


def run(setting: Setting, folder: Path, progress: Progress | None = None) -> list[SimulationRow]:
    """Run what is missing, and return the rows."""
    run_setting(setting, ball_volume(), folder, folder / "rows.jsonl", lambda _line: None, progress)
    return read_rows(folder / "rows.jsonl")


def same(rows: list[SimulationRow]) -> list[SimulationRow]:
    """Return rows without the processor time, which no two runs have in common, by key."""
    return sorted((row.model_copy(update={"cpu_seconds": 0.0}) for row in rows), key=lambda row: row.key)


def main(folder: str) -> None:
    """Run the small setting, and say each step: the process that the tests kill."""

    def say(what: str, done: int, total: int) -> None:
        print(what, done, flush=True)

    run(small_setting(), Path(folder), say)


if __name__ == "__main__":
    main(*sys.argv[1:])
