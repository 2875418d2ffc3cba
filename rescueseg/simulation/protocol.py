"""What a benchmark of query strategies runs: its settings, its strategies, and which trainings that makes.

The protocol is nnActive's (arXiv 2511.19183), sized for one annotated volume and a CPU: every strategy starts from the same patches and
the same model, chooses equally many patches after each training, and every training begins anew and takes equally many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rescueseg.active_learning.strategies import STRATEGIES
from rescueseg.errors import ConfigError, EvaluationError
from rescueseg.geometry import ZYX, isotropic_shape
from rescueseg.records import BoxField, Record
from rescueseg.simulation.rows import FULL_DATA, RowKey, SimulationRow

LEAST_QUERY = 4
"""Patches of the start and of each query, at least."""
TRUTH_STRATEGIES = ("oracle_fg33", "oracle_fg66", "oracle_error")
"""Controls that see the truth: random patches of which 33 or 66 % lie around the structure, and those with the most errors."""
OWN_STRATEGIES = (*TRUTH_STRATEGIES, "live_fg66")
"""Strategies of the benchmark alone: the controls above, and random patches of which 66 % lie around what is predicted."""
SHARES = {"oracle_fg33": 0.33, "oracle_fg66": 0.66, "live_fg66": 0.66}
"""Of patches that are centred on foreground."""
CONTROLS = (
    "random",
    "oracle_fg66",
    "foreground_random",
    "live_fg66",
    "entropy",
    "clasp_entropy",
    "oracle_error",
    FULL_DATA,
)
"""What a benchmark compares where nothing else is asked for."""
START = "start"
"""Name of the training on the starting patches, which all strategies share."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Regime(Record):
    """One budget.

    Examples
    --------
    >>> Regime(name="low", patches=30).query_size(5), Regime(name="tiny", patches=8).query_size(5)
    (6, 4)
    """

    name: Name
    patches: PositiveInt
    """Annotated in all, over all loops."""

    def query_size(self, loops: int) -> int:
        """Return the patches of the start and of each query."""
        return max(LEAST_QUERY, self.patches // loops)


class Setting(Record):
    """A benchmark on one annotated volume.

    Examples
    --------
    >>> setting = Setting(dataset="mitochondria", regimes=(Regime(name="low", patches=30),), steps=600)
    >>> setting.loops, setting.seeds
    (5, (0, 1, 2, 3))
    """

    dataset: Name
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)]
    loops: Annotated[int, Field(ge=2)] = 5
    """Trainings of a strategy, the one on the starting patches among them."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 3)
    strategies: Annotated[tuple[str, ...], Field(min_length=1)] = CONTROLS
    trainer: str = "monai_unet"
    steps: PositiveInt | None = None
    """Of every training; as many as fit into `cpu_seconds` when omitted, measured once."""
    cpu_seconds: PositiveFloat = 120.0
    """Processor time of a training where `steps` is omitted."""
    crop: BoxField | None = None
    """The part of the volume that is used; all of it when omitted."""
    patch_zyx: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """About 6000 voxels, isotropic in micrometre, when omitted."""
    mc_samples: PositiveInt = 1
    tta_symmetries: PositiveInt = 2
    """Members of a prediction are these times `mc_samples`."""
    settings: tuple[str, ...] = ()
    """Further settings of the campaigns, as ``section.key=value``."""

    @field_validator("regimes")
    @classmethod
    def _regimes_differ(cls, value: tuple[Regime, ...]) -> tuple[Regime, ...]:
        if len({regime.name for regime in value}) < len(value):
            raise ValueError("two regimes have one name")
        return value

    @model_validator(mode="after")
    def _each_once(self) -> Setting:
        for values in (self.seeds, self.strategies):
            if len(set(values)) < len(values):
                raise ValueError("a seed or strategy is there twice")
        return self

    def regime(self, name: str) -> Regime:
        """Return the regime of a name."""
        return next(regime for regime in self.regimes if regime.name == name)

    def identity(self, regime: Regime) -> Setting:
        """Return what decides the rows of a regime and a seed: the same setting without other regimes, seeds and strategies."""
        return self.model_copy(update={"regimes": (regime,), "seeds": (0,), "strategies": ("random",)})


def check_strategies(names: Sequence[str]) -> None:
    """Refuse a strategy that there is not.

    Raises
    ------
    ConfigError
        The message names all that there are.

    Examples
    --------
    >>> check_strategies(["clasp_entropy", "oracle_error", "full_data"])
    """
    known = (*STRATEGIES, *OWN_STRATEGIES, FULL_DATA)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown query strategy '{name}'", where="--strategy", todo=f"Choose one of {', '.join(known)}"
            )


def training_name(strategy: str, loop: int) -> str:
    """Return the name of a training in its campaign.

    Examples
    --------
    >>> training_name("random", 0), training_name("random", 3), training_name("full_data", 0)
    ('start', 'random-03', 'full_data')
    """
    if strategy == FULL_DATA:
        return FULL_DATA
    return START if loop == 0 else f"{strategy}-{loop:02d}"


def loops_of(setting: Setting, strategy: str) -> range:
    """Return the loops of a strategy."""
    return range(1 if strategy == FULL_DATA else setting.loops)


@dataclass(frozen=True)
class Arm:
    """One strategy in one regime with one seed."""

    setting: Setting
    regime: Regime
    seed: int
    strategy: str

    def key(self, loop: int) -> RowKey:
        """Return the key of a row."""
        return self.setting.dataset, self.regime.name, self.strategy, self.seed, loop

    def __str__(self) -> str:
        return f"{self.setting.dataset}, {self.regime.name}, seed {self.seed}, {self.strategy}"


def arms(setting: Setting) -> Iterator[Arm]:
    """Yield all strategies, seed by seed: the first seeds are complete first."""
    for seed in setting.seeds:
        for regime in setting.regimes:
            for strategy in setting.strategies:
                yield Arm(setting, regime, seed, strategy)


Known = Callable[[Arm, str], bool]
"""Tells of an arm and the name of a training whether something of it is there."""


def due(setting: Setting, rows: Sequence[SimulationRow], trained: Known, annotated: Known) -> list[tuple[Arm, int]]:
    """Return the trainings that are missing, as the first strategy that needs each, and its loop.

    A training is needed where its row is missing, and where a later one is and nobody chose the patches that follow it.

    Parameters
    ----------
    setting : Setting
        The benchmark.
    rows : sequence of SimulationRow
        Those that there are.
    trained : callable
        Whether a training has finished and its model is there.
    annotated : callable
        Whether the patches of a training are there.
    """
    keys, found = {row.key for row in rows}, dict[tuple[str, int, str], tuple[Arm, int]]()
    for arm in arms(setting):
        for loop in needed_loops(arm, keys, annotated):
            name = training_name(arm.strategy, loop)
            place = "" if name == FULL_DATA else arm.regime.name
            if not trained(arm, name) and not (name == FULL_DATA and _full_data(rows, arm)):
                found.setdefault((place, arm.seed, name), (arm, loop))
    return list(found.values())


def needed_loops(arm: Arm, keys: set[RowKey], annotated: Known) -> list[int]:
    """Return the loops whose model an arm needs, in their order; see `due`."""
    loops = loops_of(arm.setting, arm.strategy)
    missing = [loop for loop in loops if arm.key(loop) not in keys]
    if not missing:
        return []
    following = [loop for loop in range(missing[-1]) if not annotated(arm, training_name(arm.strategy, loop + 1))]
    return sorted({*missing, *following})


def _full_data(rows: Sequence[SimulationRow], arm: Arm) -> SimulationRow | None:
    """Return the row of all data of the same seed in whichever regime: the training is the same."""
    return next(
        (r for r in rows if (r.dataset, r.strategy, r.seed) == (arm.setting.dataset, FULL_DATA, arm.seed)), None
    )


def shared_row(rows: Sequence[SimulationRow], arm: Arm, loop: int) -> SimulationRow | None:
    """Return the row of an arm's training where another arm has it already, under this arm's name; None where none has."""
    found = _full_data(rows, arm) if arm.strategy == FULL_DATA else None
    if found is None and loop == 0 and arm.strategy != FULL_DATA:
        place = (arm.setting.dataset, arm.regime.name, arm.seed, 0)
        found = next(
            (r for r in rows if r.strategy != FULL_DATA and (r.dataset, r.regime, r.seed, r.loop) == place), None
        )
    return None if found is None else found.model_copy(update={"regime": arm.regime.name, "strategy": arm.strategy})


def check_rows(setting: Setting, rows: Sequence[SimulationRow]) -> int | None:
    """Return the steps of the trainings that there are, None without any; refuse rows of another setting.

    Raises
    ------
    EvaluationError
        If rows of the same data set were made with another trainer, or other steps.
    """
    mine = [row for row in rows if row.dataset == setting.dataset]
    steps = {row.iterations for row in mine} | ({setting.steps} if setting.steps else set())
    trainers = {row.trainer for row in mine} | {setting.trainer}
    for what, values in (("trainers", trainers), ("steps", steps)):
        if len(values) > 1:
            raise EvaluationError(
                f"there are rows of other {what}: {', '.join(map(str, sorted(values, key=str)))}",
                where=f"data set {setting.dataset}",
                todo="Ask for the same, or give the data set another name with --name",
            )
    return next(iter(steps)) if steps else None


def seconds_each(setting: Setting, rows: Sequence[SimulationRow]) -> float | None:
    """Return the processor time of a training: that of the rows there are, else what is asked for; None where nobody knows."""
    mine = [row.cpu_seconds for row in rows if row.dataset == setting.dataset and row.trainer == setting.trainer]
    if mine:
        return float(np.median(mine))
    return setting.cpu_seconds if setting.steps is None else None


def default_patch(spacing_um_zyx: Sequence[float], shape_zyx: Sequence[int]) -> ZYX:
    """Return the patch of a benchmark where none is asked for.

    Examples
    --------
    >>> default_patch((0.05, 0.02, 0.02), (100, 500, 500))
    (10, 24, 25)
    """
    return isotropic_shape(spacing_um_zyx, 6000, shape_zyx)
