"""The runs of a benchmark as curves and as arrays: what its statistics are computed from.

A setting is one dataset with one regime of budgets. What is compared in it was trained alike and, seed by seed, is judged by the
same boxes; rows of which that is not so are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from rescueseg.errors import EvaluationError
from rescueseg.geometry import Floats
from rescueseg.simulation.rows import FULL_DATA, SimulationRow, counts_of, pooled_dice

Axis = Literal["voxels_drawn", "foreground_share", "voxels_corrected", "seconds", "patches"]
"""What annotation costs, by the name of the row's field."""
AXES: tuple[Axis, ...] = ("voxels_drawn", "foreground_share", "voxels_corrected", "seconds", "patches")


@dataclass(frozen=True)
class Curve:
    """What one strategy reached with one seed.

    Parameters
    ----------
    dataset, regime, strategy : str
        As in the rows.
    seed : int
        As in the rows.
    x : ndarray, (loops,)
        What was annotated up to each loop.
    dice : ndarray, (loops,)
        Pooled Dice of the test boxes.
    """

    dataset: str
    regime: str
    strategy: str
    seed: int
    x: Floats
    dice: Floats


def curves(rows: Iterable[SimulationRow], axis: Axis) -> list[Curve]:
    """Return the curve of every dataset, regime, strategy and seed, sorted by these.

    Parameters
    ----------
    rows : iterable of SimulationRow
        In any order, of an unfinished benchmark too; trainings on all of the pool are left out.
    axis : str
        One of `AXES`.

    Raises
    ------
    EvaluationError
        If a curve misses a loop before its last, or a training has no Dice.

    Examples
    --------
    >>> from rescueseg.evaluation.metrics import Counts
    >>> from rescueseg.simulation.rows import BoxCounts
    >>> row = SimulationRow(
    ...     dataset="puncta", regime="low", strategy="random", seed=0, loop=0, trainer="unet", patches=4, voxels_drawn=900,
    ...     foreground_drawn=30, pool_foreground=3000, voxels_corrected=60, seconds=40.0, iterations=100, cpu_seconds=9.0,
    ...     boxes=(BoxCounts(name="a", counts=(Counts(tp=6, fp=2, fn=2),)),),
    ... )
    >>> later = row.model_copy(update={"loop": 1, "foreground_drawn": 60})
    >>> [(curve.x.tolist(), curve.dice.tolist()) for curve in curves([later, row], "foreground_share")]
    [([0.01, 0.02], [0.75, 0.75])]
    """
    by_run: dict[tuple[str, str, str, int], dict[int, SimulationRow]] = defaultdict(dict)
    for row in rows:
        if row.strategy == FULL_DATA:
            continue
        loops = by_run[row.key[:-1]]
        if row.loop in loops:
            raise _unfit(f"two rows are of loop {row.loop}", *row.key[:-1])
        loops[row.loop] = row
    found = []
    for run, loops in sorted(by_run.items()):
        if missing := sorted(set(range(max(loops))) - set(loops)):
            raise _unfit(f"loop {missing[0]} is missing", *run)
        in_order = [loops[loop] for loop in sorted(loops)]
        x = np.array([getattr(row, axis) for row in in_order], np.float64)
        dice = np.array([np.nan if row.dice is None else row.dice for row in in_order])
        if np.isnan(dice).any():
            raise _unfit("the test boxes hold no class, so there is no Dice", *run)
        found.append(Curve(*run, x, dice))
    return found


@dataclass(frozen=True, eq=False)
class SeedRuns:
    """The runs of all strategies with one seed: with the same start, and judged by the same boxes.

    Parameters
    ----------
    seed : int
        As in the rows.
    boxes : tuple of str
        Names of the test boxes.
    counts : ndarray, (strategies, loops, boxes, K, 3)
        TP, FP and FN.
    full_counts : ndarray, (trainings, boxes, K, 3)
        Of trainings on all of the pool, in the same boxes; there may be none.
    """

    seed: int
    boxes: tuple[str, ...]
    counts: Floats
    full_counts: Floats

    @property
    def truth(self) -> Floats:
        """Voxels of truth, (boxes, K)."""
        return np.asarray(self.counts[0, 0][..., [0, 2]].sum(axis=-1))


@dataclass(frozen=True, eq=False)
class Setting:
    """The complete runs of one dataset and regime: every strategy with the same seeds and loops.

    Parameters
    ----------
    dataset, regime : str
        As in the rows.
    strategies : tuple of str
        Sorted.
    runs : tuple of SeedRuns
        Sorted by seed. Each seed may have boxes of its own.
    amounts : dict of str to ndarray, (strategies, seeds, loops)
        What was annotated, by axis.
    """

    dataset: str
    regime: str
    strategies: tuple[str, ...]
    runs: tuple[SeedRuns, ...]
    amounts: dict[Axis, Floats]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Their seeds."""
        return tuple(run.seed for run in self.runs)

    @property
    def have_same_boxes(self) -> bool:
        """Tell whether all seeds are judged by the same boxes."""
        first = self.runs[0]
        return all(run.boxes == first.boxes and np.array_equal(run.truth, first.truth) for run in self.runs)

    @cached_property
    def dice(self) -> Floats:
        """Pooled Dice of every training, (strategies, seeds, loops)."""
        return np.stack([pooled_dice(run.counts.sum(axis=2)) for run in self.runs], axis=1)

    @cached_property
    def full_dice(self) -> Floats | None:
        """Mean Dice of the trainings on all of the pool, (seeds,); None where a seed has none in its boxes."""
        if not all(len(run.full_counts) for run in self.runs):
            return None
        return np.array([pooled_dice(run.full_counts.sum(axis=1)).mean() for run in self.runs])

    @property
    def loops(self) -> int:
        """Budgets of each run, the start included."""
        return int(self.runs[0].counts.shape[1])

    def index(self, strategy: str) -> int:
        """Return where a strategy stands.

        Raises
        ------
        EvaluationError
            If it was not run.
        """
        if strategy not in self.strategies:
            raise EvaluationError(
                f"the strategy '{strategy}' was not run: there are {', '.join(self.strategies)}",
                where=f"{self.dataset}, {self.regime}",
                todo="Run it, or name one of these",
            )
        return self.strategies.index(strategy)


def settings(rows: Iterable[SimulationRow]) -> list[Setting]:
    """Return the settings of a benchmark, sorted by dataset and regime.

    Parameters
    ----------
    rows : iterable of SimulationRow
        In any order. For a seed counts the training on all of the pool with that seed, of whichever regime; where there is
        none, those of the same dataset that are judged by the same boxes.

    Raises
    ------
    EvaluationError
        If two trainings of a setting cannot be compared: they differ in their loops or trainer, or, with the same seed, in their
        test boxes or pool; or if strategies differ in their seeds: `finished` leaves out those that are not complete.
    """
    by_setting: dict[tuple[str, str], list[SimulationRow]] = defaultdict(list)
    full: dict[str, list[SimulationRow]] = defaultdict(list)
    for row in rows:
        if row.strategy == FULL_DATA:
            full[row.dataset].append(row)
        else:
            by_setting[row.dataset, row.regime].append(row)
    return [_setting(group, full[dataset]) for (dataset, _), group in sorted(by_setting.items())]


def finished(rows: Iterable[SimulationRow]) -> list[SimulationRow]:
    """Return the rows without the seeds that not every strategy of the setting has finished.

    Parameters
    ----------
    rows : iterable of SimulationRow
        Of a benchmark that still runs; a run is finished when it has as many loops as the longest of its setting.
    """
    kept = list(rows)
    runs: dict[tuple[str, str], dict[tuple[str, int], set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in kept:
        if row.strategy != FULL_DATA:
            runs[row.dataset, row.regime][row.strategy, row.seed].add(row.loop)
    seeds = {}
    for setting, loops in runs.items():
        longest = max(map(len, loops.values()))
        strategies = {strategy for strategy, _ in loops}
        every = {seed for _, seed in loops}
        seeds[setting] = {s for s in every if all(len(loops.get((name, s), ())) == longest for name in strategies)}
    return [row for row in kept if row.strategy == FULL_DATA or row.seed in seeds[row.dataset, row.regime]]


def _setting(rows: Sequence[SimulationRow], full: Sequence[SimulationRow]) -> Setting:
    dataset, regime = rows[0].dataset, rows[0].regime
    strategies, seeds = tuple(sorted({row.strategy for row in rows})), tuple(sorted({row.seed for row in rows}))
    loops = max(row.loop for row in rows) + 1
    at = {(row.strategy, row.seed, row.loop): row for row in rows}
    for strategy in strategies:
        for seed in seeds:
            if absent := [loop for loop in range(loops) if (strategy, seed, loop) not in at]:
                raise _unfit(f"loop {absent[0]} is missing, which others have", dataset, regime, strategy, seed)
    if len(at) < len(rows):
        raise _unfit("two rows are of one training", dataset, regime)
    in_order = [[[at[name, seed, loop] for loop in range(loops)] for seed in seeds] for name in strategies]
    amounts: dict[Axis, Floats] = {
        axis: np.array([[[getattr(row, axis) for row in run] for run in runs] for runs in in_order], np.float64)
        for axis in AXES
    }
    in_full = sorted(full, key=lambda row: (row.regime != regime, row.key))
    _check_trainer([*rows, *in_full])
    runs = tuple(_seed_runs([runs[i] for runs in in_order], in_full) for i in range(len(seeds)))
    for axis, amount in amounts.items():
        for strategy, seed, loop in np.argwhere(np.diff(amount) < 0)[:1]:
            what = f"{axis} falls at loop {loop + 1}, but rows hold all that was annotated up to their loop"
            raise _unfit(what, dataset, regime, strategies[strategy], seeds[seed])
    return Setting(dataset, regime, strategies, runs, amounts)


def _seed_runs(runs: Sequence[Sequence[SimulationRow]], full: Sequence[SimulationRow]) -> SeedRuns:
    """Return the runs with one seed, from rows by strategy and loop, and the trainings on all of the pool."""
    first = runs[0][0]
    whole = [row for row in full if row.seed == first.seed][:1]
    for row in [row for run in runs for row in run] + whole:
        if row.pool_foreground != first.pool_foreground:
            raise _unfit("its pool is another than that of the others with this seed", *row.key[:-1])
        if _truth(row) != _truth(first):
            raise _unfit(
                "its test boxes are not those of the others with this seed, or not in their order", *row.key[:-1]
            )
    if first.dice is None:
        raise _unfit("the test boxes hold no class, so there is no Dice", *first.key[:-1])
    whole = whole or [row for row in full if _truth(row) == _truth(first)]
    counts = np.stack([np.stack([counts_of(row.boxes) for row in run]) for run in runs])
    full_counts = np.stack([counts_of(row.boxes) for row in whole]) if whole else np.zeros((0, *counts.shape[2:]))
    return SeedRuns(first.seed, tuple(box.name for box in first.boxes), counts, full_counts)


def _check_trainer(rows: Sequence[SimulationRow]) -> None:
    for row in rows:
        if row.trainer != rows[0].trainer:
            raise _unfit(f"it was trained by {row.trainer}, others by {rows[0].trainer}", *row.key[:-1])


def _truth(row: SimulationRow) -> list[tuple[str, list[int]]]:
    """Return the names of the test boxes, with the voxels of each class in truth."""
    return [(box.name, [c.tp + c.fn for c in box.counts]) for box in row.boxes]


def _unfit(what: str, *run: object) -> EvaluationError:
    where = ", ".join(str(part) for part in run[:3]) + (f", seed {run[3]}" if len(run) > 3 else "")
    return EvaluationError(what, where=where, todo="Finish the benchmark, or leave these rows out")
