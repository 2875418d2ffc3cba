"""Generation against generation: paired differences of every score, with intervals.

They say how much, and on what. Which of the two is better is one question with one answer, by Dice on the validation
boxes: `rescueseg.evaluation.champion.compare_models`. Nineteen scores of many groups each would find a difference by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rescueseg.errors import EvaluationError
from rescueseg.evaluation.bootstrap import (
    RESAMPLES,
    Interval,
    paired_interval,
    paired_values,
    resampling,
)
from rescueseg.evaluation.metric_table import METRICS, Tables, occurs
from rescueseg.evaluation.pooled import (
    Kind,
    box_tables,
    pool,
    selected_rows,
    selections,
)
from rescueseg.evaluation.scores import Evaluation
from rescueseg.geometry import Floats
from rescueseg.randomness import random_generator
from rescueseg.records import Part, Record


class Difference(Record):
    """One score of two generations, over the same boxes."""

    first: float | None
    second: float | None
    """None where the score says nothing: neither truth nor prediction holds a class."""
    difference: float | None
    """Second minus first."""
    interval: Interval | None
    """95 %, of the difference."""


class GroupComparison(Record):
    """Differences over the boxes of one part that have something in common."""

    part: Part
    kind: Kind
    name: str
    boxes: int
    differences: dict[str, Difference]
    """By metric."""


def compare_generations(
    first: Evaluation,
    second: Evaluation,
    part: Part,
    classes: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[GroupComparison]:
    """Compare two generations, of whatever model family, on the boxes of a part that both were judged on.

    Boxes are drawn with replacement, the same ones for both, and every score is computed anew (paired bootstrap,
    Efron & Tibshirani, doi:10.1201/9780429246593). A class counts when truth or either prediction holds it.

    Parameters
    ----------
    first, second : Evaluation
        Complete.
    part : str
        Which part.
    classes : sequence of str
        Names of the classes 1…K.
    seed : int
        Of the resampling.
    resamples : int
        How often boxes are drawn; fewer than 4 boxes give no interval.

    Raises
    ------
    EvaluationError
        If no box of the part was judged for both with the same truth.
    """
    firsts = {b.key: b for b in first.boxes_with_truth(part)}
    seconds = {b.key: b for b in second.boxes_with_truth(part)}
    common = [key for key in firsts if key in seconds]
    if not common:
        raise EvaluationError(
            f"no {part} box was judged with the same truth for generations {first.generation} and {second.generation}",
            todo="Evaluate both again: 'rescueseg evaluate CAMPAIGN --generation G'",
        )
    boxes = [firsts[key] for key in common]
    tables = box_tables(boxes), box_tables([seconds[key] for key in common])
    groups = []
    for selection in selections(boxes, classes):
        both = selected_rows(tables[0], selection), selected_rows(tables[1], selection)
        times = resampling(len(selection.index), random_generator(seed, "bootstrap"), resamples)
        groups.append(
            GroupComparison(
                part=part,
                kind=selection.kind,
                name=selection.name,
                boxes=len(selection.index),
                differences=_differences(both, times),
            )
        )
    return groups


def _differences(both: tuple[Tables, Tables], times: Floats | None) -> dict[str, Difference]:
    pooled = [pool(tables, np.ones(len(tables["counts"]))) for tables in both]
    resamples = None if times is None else [pool(t, times) for t in both]
    nothing = not (occurs(pooled[0]) | occurs(pooled[1])).any()
    differences = {}
    for metric in METRICS:
        values = [float(v) for v in paired_values(metric, pooled)]
        if np.isnan(values).all():
            continue
        change = None if resamples is None else paired_interval(metric, resamples)
        difference = _difference(values, change)
        if nothing and not np.isnan(metric.empty):
            difference = difference.model_copy(update={"first": None, "second": None})
        differences[metric.name] = difference
    return differences


def _difference(values: Sequence[float], change: Interval | None) -> Difference:
    first, second = (None if np.isnan(v) else v for v in values)
    return Difference(
        first=first,
        second=second,
        difference=None if first is None or second is None else second - first,
        interval=change,
    )
