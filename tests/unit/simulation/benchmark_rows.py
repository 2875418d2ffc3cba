"""Rows of made-up benchmarks whose Dice is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rescueseg.evaluation.metrics import Counts
from rescueseg.simulation.rows import FULL_DATA, BoxCounts, SimulationRow

VOXELS = 1_000_000
"""Foreground of a box: Dice is exact to six digits."""


def boxes_with(dice: Sequence[float]) -> tuple[BoxCounts, ...]:
    """Return boxes of one class with those values of Dice."""
    hits = [round(value * VOXELS) for value in dice]
    return tuple(
        BoxCounts(name=f"box {i}", counts=(Counts(tp=hit, fp=VOXELS - hit, fn=VOXELS - hit),))
        for i, hit in enumerate(hits)
    )


def row_of(
    strategy: str = "random",
    *,
    seed: int = 0,
    loop: int = 0,
    dice: Sequence[float] = (0.75,),
    voxels: int = 1000,
    foreground: int = 100,
    dataset: str = "puncta",
    regime: str = "low",
) -> SimulationRow:
    """Return a row with its amounts in round numbers."""
    return SimulationRow(
        dataset=dataset,
        regime=regime,
        strategy=strategy,
        seed=seed,
        loop=loop,
        trainer="unet",
        patches=4 * (loop + 1),
        voxels_drawn=voxels,
        foreground_drawn=foreground,
        pool_foreground=100_000,
        voxels_corrected=voxels // 10,
        seconds=voxels / 100,
        iterations=200,
        cpu_seconds=30.0,
        boxes=boxes_with(dice),
        validation=boxes_with([0.6]),
    )


def benchmark(
    dice: Mapping[str, Callable[[int, int], float]],
    *,
    seeds: Sequence[int] = range(4),
    loops: int = 5,
    full: float | None = 0.9,
    step: Callable[[str, int, int], int] = lambda strategy, seed, loop: 1000 * (loop + 1),
    boxes: int = 6,
    dataset: str = "puncta",
    regime: str = "low",
) -> list[SimulationRow]:
    """Return the rows of a setting.

    Parameters
    ----------
    dice : dict of str to callable
        By strategy, Dice of a seed and a loop: that of every test box, give or take what is harder about it, 0 on average.
    step : callable
        Annotated voxels of a strategy, seed and loop; a tenth of them is foreground.
    """
    hardness = np.linspace(-0.02, 0.02, boxes)
    rows = [
        row_of(
            strategy,
            seed=seed,
            loop=loop,
            dice=(curve(seed, loop) + hardness).tolist(),
            voxels=step(strategy, seed, loop),
            foreground=step(strategy, seed, loop) // 10,
            dataset=dataset,
            regime=regime,
        )
        for strategy, curve in dice.items()
        for seed in seeds
        for loop in range(loops)
    ]
    if full is not None:
        whole = row_of(FULL_DATA, dice=(full + hardness).tolist(), dataset=dataset, regime=regime)
        rows.append(whole)
    return rows
