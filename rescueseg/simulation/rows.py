"""The rows of a benchmark of query strategies: one training each, kept as lines of JSON in one file.

A setting is a dataset with a regime of budgets. In it every strategy chooses patches over some loops, with some seeds; each loop
is one training and one row. What a statistic needs is in the row, the counts of every box too, so that Dice can be computed anew.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator

from rescueseg.errors import EvaluationError, damaged, storage_errors
from rescueseg.evaluation.metrics import Counts, dice_of
from rescueseg.geometry import Floats
from rescueseg.records import Record
from rescueseg.storage import canonical_json

FULL_DATA = "full_data"
"""Name that takes the place of a strategy where all of the pool is trained on; its only loop is 0."""

RowKey = tuple[str, str, str, int, int]
"""Dataset, regime, strategy, seed and loop."""


class BoxCounts(Record):
    """Voxels of one holdout box, by class."""

    name: str
    """By which the box is found in the other rows of the dataset."""
    counts: tuple[Counts, ...]
    """Per class 1…K."""


class SimulationRow(Record):
    """One training of a benchmark: what was annotated for it, and how good it is."""

    dataset: str
    regime: str
    """Name of the budgets, such as "low"."""
    strategy: str
    """`FULL_DATA` where all of the pool is trained on."""
    seed: NonNegativeInt
    loop: NonNegativeInt
    """0 is the starting budget."""
    trainer: str
    patches: NonNegativeInt
    """This and the amounts below are sums up to this loop."""
    voxels_drawn: NonNegativeInt
    """Annotated voxels."""
    foreground_drawn: NonNegativeInt
    """Annotated voxels that belong to a class."""
    pool_foreground: int = Field(gt=0)
    """Voxels of the whole pool that belong to a class."""
    voxels_corrected: NonNegativeInt
    """Annotated voxels that differ from the mask that the annotator started from."""
    seconds: NonNegativeFloat
    """Simulated time of the annotator, for drawing and correcting."""
    iterations: NonNegativeInt
    """Steps of the training."""
    cpu_seconds: NonNegativeFloat
    """Processor time of the training."""
    boxes: tuple[BoxCounts, ...]
    """Test boxes."""
    validation: tuple[BoxCounts, ...] = ()
    """Validation boxes."""

    @model_validator(mode="after")
    def _is_consistent(self) -> SimulationRow:
        if self.foreground_drawn > min(self.pool_foreground, self.voxels_drawn):
            raise ValueError("foreground_drawn is more than there is")
        if self.strategy == FULL_DATA and self.loop:
            raise ValueError(f"{FULL_DATA} has loop 0 alone")
        for boxes in (self.boxes, self.validation):
            if len({len(box.counts) for box in boxes}) > 1:
                raise ValueError("the boxes differ in their number of classes")
            if len({box.name for box in boxes}) < len(boxes):
                raise ValueError("two boxes have one name")
        return self

    @property
    def key(self) -> RowKey:
        """By which the row is known; a file holds it once."""
        return self.dataset, self.regime, self.strategy, self.seed, self.loop

    @property
    def foreground_share(self) -> float:
        """Share of the pool's foreground that is annotated."""
        return self.foreground_drawn / self.pool_foreground

    @property
    def dice(self) -> float | None:
        """Pooled Dice of the test boxes, see `pooled_dice`."""
        return _dice(self.boxes)

    @property
    def validation_dice(self) -> float | None:
        """Pooled Dice of the validation boxes, see `pooled_dice`."""
        return _dice(self.validation)


def pooled_dice(counts: Floats) -> Floats:
    """Return the mean over classes of the Dice of voxels summed over boxes.

    Dice of a class is 2·TP / (2·TP + FP + FN). A class that truth holds in none of the boxes says nothing and is left out, so
    that trainings which are judged by the same boxes are averaged over the same classes.

    Parameters
    ----------
    counts : ndarray, (…, K, 3)
        TP, FP and FN by class, summed over boxes.

    Returns
    -------
    ndarray, (…)
        nan where truth holds no class.

    Examples
    --------
    Of three classes truth holds two, of which one was not found at all:

    >>> float(pooled_dice(np.array([[6.0, 2, 2], [0, 0, 4], [0, 9, 0]])))
    0.375
    """
    is_true = counts[..., 0] + counts[..., 2] > 0
    number = is_true.sum(axis=-1)
    total = np.where(is_true, dice_of(counts), 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.where(number > 0, number, 1), np.nan)


def counts_of(boxes: Sequence[BoxCounts]) -> Floats:
    """Return TP, FP and FN by box and class: float64, (boxes, K, 3)."""
    classes = len(boxes[0].counts) if boxes else 0
    return np.array([[(c.tp, c.fp, c.fn) for c in box.counts] for box in boxes], np.float64).reshape(
        len(boxes), classes, 3
    )


def _dice(boxes: Sequence[BoxCounts]) -> float | None:
    value = float(pooled_dice(counts_of(boxes).sum(axis=0)))
    return None if np.isnan(value) else value


def read_rows(path: Path) -> list[SimulationRow]:
    """Return the rows of a file, in the order in which they were added.

    Parameters
    ----------
    path : Path
        The file; without it there are no rows. A last line without its end was cut off by a kill, and is passed over.

    Raises
    ------
    StorageError
        If another line is not a row, or two rows have one key.
    """
    if not path.exists():
        return []
    with storage_errors(str(path)):
        return _parsed(path.read_bytes(), str(path))


def add_row(path: Path, row: SimulationRow) -> None:
    """Add a row to a file as one line; a last line that a kill cut off is removed first.

    Several processes may add to one file: the next one waits. After a kill at most the last line is broken.

    Parameters
    ----------
    path : Path
        The file; it and its folder are made when missing.
    row : SimulationRow
        The row.

    Raises
    ------
    EvaluationError
        If the file holds a row of its key.
    StorageError
        If the file is damaged, the disk full or not writable.
    """
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = _whole_lines(file)
            if row.key in {other.key for other in _parsed(whole, str(path))}:
                raise EvaluationError(
                    f"there is a row of {_name(row.key)} already",
                    where=str(path),
                    todo="Leave out what the file holds, or begin a new file",
                )
            file.truncate(len(whole))
            file.write((canonical_json(row.to_json()) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(file: BinaryIO) -> bytes:
    """Return what a file holds, up to the end of its last whole line."""
    file.seek(0)
    data = file.read()
    return data[: data.rfind(b"\n") + 1]


def _parsed(data: bytes, where: str) -> list[SimulationRow]:
    """Return the rows in the whole lines of a file."""
    rows: dict[RowKey, SimulationRow] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            row = SimulationRow.model_validate_json(line)
        except ValidationError as error:
            raise damaged(where, f"line {number} is not a row: {_reason(error)}") from error
        if rows.setdefault(row.key, row) is not row:
            raise damaged(where, f"line {number} is a second row of {_name(row.key)}")
    return list(rows.values())


def _reason(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), " ".join(str(first["msg"]).split()))))


def _name(key: RowKey) -> str:
    dataset, regime, strategy, seed, loop = key
    return f"{dataset}, {regime}, {strategy}, seed {seed}, loop {loop}"
