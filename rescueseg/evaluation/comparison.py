"""Generation against generation: paired differences of every score, with intervals.

They say how much, and on what. Which of the two is better is one question with one answer, by Dice on the validation
boxes: `rescueseg.evaluation.champion.compare_models`. Nineteen scores of many groups each would find a difference by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from rescueseg.errors import EvaluationError
from rescueseg.evaluation.intervals import Interval, PairedEstimate, Units, difference_estimate, units_sentence
from rescueseg.evaluation.metric_table import DICE, METRICS, Tables
from rescueseg.evaluation.pooled import Kind, box_tables, selected_rows, selections
from rescueseg.evaluation.scores import Evaluation
from rescueseg.records import Part, Record


class Difference(Record):
    """One score of two generations, over the same boxes."""

    first: float | None
    second: float | None
    """None where the score says nothing."""
    difference: float | None
    """Second minus first; None where either is."""
    interval: Interval | None
    """95 %, of the difference."""
    units: Units | None = None
    """What was left out for the interval, as in `rescueseg.evaluation.pooled.Figure`."""


class GroupComparison(Record):
    """Differences over the boxes of one part that have something in common."""

    part: Part
    kind: Kind
    name: str
    boxes: int
    differences: dict[str, Difference]
    """By metric, Dice always; others where one of the two has a value."""

    def about_intervals(self) -> str:
        """Say in one sentence what the 95 % intervals speak of."""
        said = units_sentence({difference.units for difference in self.differences.values()})
        return f"{said}; – where fewer than six boxes tell, or the score says nothing on one side"


def compare_generations(
    first: Evaluation, second: Evaluation, part: Part, classes: Sequence[str]
) -> list[GroupComparison]:
    """Compare two generations, of whatever model family, on the boxes of a part that both were judged on.

    `rescueseg.evaluation.intervals` says which classes count, and how the intervals are made.

    Parameters
    ----------
    first, second : Evaluation
        Complete.
    part : str
        Which part.
    classes : sequence of str
        Names of the classes 1…K.

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
        groups.append(
            GroupComparison(
                part=part,
                kind=selection.kind,
                name=selection.name,
                boxes=len(selection.index),
                differences=_differences(both, [boxes[i].volume_id for i in selection.index]),
            )
        )
    return groups


def _differences(both: tuple[Tables, Tables], volumes: Sequence[str]) -> dict[str, Difference]:
    pairs = {metric: difference_estimate(metric, *both, volumes) for metric in METRICS}
    return {
        metric.name: _difference(pair)
        for metric, pair in pairs.items()
        if metric is DICE or pair.first is not None or pair.second is not None
    }


def _difference(pair: PairedEstimate) -> Difference:
    change = pair.difference
    return Difference(
        first=pair.first,
        second=pair.second,
        difference=change.value if change else None,
        interval=change.interval if change else None,
        units=change.units if change else None,
    )
