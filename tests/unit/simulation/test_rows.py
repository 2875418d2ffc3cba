"""The rows of a benchmark: what they may hold, their Dice, and a file of them that a kill cuts at any byte."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from rescueseg.errors import EvaluationError, StorageError
from rescueseg.evaluation.metrics import Counts
from rescueseg.simulation.rows import FULL_DATA, BoxCounts, SimulationRow, add_row, pooled_dice, read_rows
from tests.unit.simulation.benchmark_rows import row_of


def boxes_of(*counts: tuple[int, int, int]) -> tuple[BoxCounts, ...]:
    """Return boxes of one class from their counts (TP, FP, FN)."""
    return tuple(BoxCounts(name=f"box {i}", counts=(Counts(tp=t, fp=p, fn=n),)) for i, (t, p, n) in enumerate(counts))


def test_dice_is_that_of_the_voxels_of_all_boxes_together() -> None:
    row = row_of().model_copy(update={"boxes": boxes_of((6, 2, 2), (0, 0, 10)), "validation": boxes_of((3, 1, 1))})
    assert row.dice == 12 / (12 + 2 + 12)
    assert row.validation_dice == 0.75
    for boxes in (boxes_of((0, 5, 0)), ()):
        assert row.model_copy(update={"boxes": boxes}).dice is None


def test_a_class_that_truth_holds_nowhere_does_not_count_whatever_was_found() -> None:
    found_in_vain = np.array([[6.0, 2, 2], [0, 7, 0]])
    found_nothing = np.array([[6.0, 2, 2], [0, 0, 0]])
    assert pooled_dice(found_in_vain) == pooled_dice(found_nothing) == 0.75
    assert np.isnan(pooled_dice(np.array([[0.0, 7, 0]])))


@pytest.mark.parametrize(
    "change",
    [
        {"foreground_drawn": 200_000, "voxels_drawn": 500_000},
        {"foreground_drawn": 2_000},
        {"pool_foreground": 0},
        {"strategy": FULL_DATA, "loop": 1},
        {"loop": -1},
        {"boxes": (*boxes_of((1, 1, 1)), *boxes_of((1, 1, 1)))},
        {"boxes": (*boxes_of((1, 1, 1)), BoxCounts(name="other", counts=()))},
    ],
)
def test_a_row_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SimulationRow.model_validate(row_of().model_dump() | change)


def test_a_file_cut_at_any_byte_reads_as_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read_rows(path) == []
    rows = [row_of(loop=loop) for loop in range(3)]
    for row in rows:
        add_row(path, row)
    whole = path.read_bytes()
    assert read_rows(path) == rows
    last = whole[:-1].rfind(b"\n") + 1
    for cut in (0, 1, last - 1, last, last + 1, (last + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        left = read_rows(path)
        assert left == rows[: whole[:cut].count(b"\n")]
        for row in rows[len(left) :]:
            add_row(path, row)
        assert path.read_bytes() == whole


def test_a_key_stands_in_a_file_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    add_row(path, row_of())
    with pytest.raises(EvaluationError, match="puncta, low, random, seed 0, loop 0"):
        add_row(path, row_of(voxels=2000))
    assert read_rows(path) == [row_of()]
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(StorageError, match="line 2 is a second row"):
        read_rows(path)


@pytest.mark.parametrize("line", [b"{", b"", b"[]", b'{"dataset": "puncta"}', b"\xff"])
def test_a_damaged_line_is_named_and_nothing_is_added_to_it(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    add_row(path, row_of())
    before = path.read_bytes() + line + b"\n"
    path.write_bytes(before)
    with pytest.raises(StorageError, match="line 2 is not a row"):
        read_rows(path)
    with pytest.raises(StorageError, match="line 2 is not a row"):
        add_row(path, row_of(loop=1))
    assert path.read_bytes() == before


def _add_loops(path: Path, seed: int) -> None:
    for loop in range(5):
        add_row(path, row_of(seed=seed, loop=loop))


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_loops, args=(path, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert {row.key for row in read_rows(path)} == {row_of(seed=s, loop=n).key for s in range(2) for n in range(5)}
