"""Is the candidate better than the champion? A paired bootstrap over the validation boxes.

A generation's `Judgement` is the result of its evaluation stage: ``generation.write(EVALUATION, judgement)``.
The champion is read from the judgements of earlier generations, so that a rerun decides as the first run did, whatever
the tracking server says; MLflow's aliases only mirror it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from rescueseg.campaign import GenerationFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.evaluation.bootstrap import RESAMPLES, interval, paired_interval, paired_values, resampling
from rescueseg.evaluation.metric_table import DICE, Tables, occurs
from rescueseg.evaluation.pooled import pool
from rescueseg.evaluation.scores import BoxScore, Evaluation
from rescueseg.randomness import random_generator, seeded_generator
from rescueseg.records import Part, Record

MINIMUM_BOXES = 8


class Comparison(Record):
    """What the validation boxes say about a candidate and the champion."""

    verdict: Literal["better", "worse", "undecided"]
    difference: float
    """Pooled validation Dice of the candidate minus that of the champion, over the boxes both were judged on."""
    interval: tuple[float, float] | None
    """95 % interval of the difference; None with fewer than 8 boxes."""
    boxes: int
    candidate: int
    champion: int
    """Generations."""
    reason: str
    """One sentence for people."""


class Judgement(Record):
    """One generation's place among the others: what the evaluation stage writes."""

    evaluation: Evaluation
    champion: int
    """Generation of the champion from now on."""
    comparison: Comparison | None
    """With the champion before; None for the first generation, which becomes champion without one."""
    annotated_patches: int
    annotated_voxels: int
    """Size of the generation's training set."""

    @property
    def generation(self) -> int:
        """The generation judged."""
        return self.evaluation.generation


EVALUATION = RecordFile("evaluation", Judgement)


def judgements(generations: Iterable[GenerationFolder]) -> list[Judgement]:
    """Return what the evaluation stages of all generations wrote, by generation."""
    results = (generation.read(EVALUATION) for generation in generations)
    return [judgement for judgement in results if judgement is not None]


def judge(generations: Sequence[GenerationFolder], evaluation: Evaluation, seed: int) -> Judgement:
    """Compare a generation with the champion of the generations before it and say who is champion now.

    Parameters
    ----------
    generations : sequence of GenerationFolder
        All of the campaign: the earlier ones hold their judgements, the new one its snapshot. Nothing is written.
    evaluation : Evaluation
        The new generation's; it says which one that is.
    seed : int
        Of the resampling.
    """
    earlier = {j.generation: j for j in judgements(generations) if j.generation < evaluation.generation}
    champion, comparison = evaluation.generation, None
    if earlier:
        champion = earlier[max(earlier)].champion
        comparison = compare(evaluation, earlier[champion].evaluation, seed=seed)
        if comparison.verdict == "better":
            champion = evaluation.generation
    snapshot = next(g.snapshot() for g in generations if g.number == evaluation.generation)
    items = snapshot.items if snapshot else ()
    return Judgement(
        evaluation=evaluation,
        champion=champion,
        comparison=comparison,
        annotated_patches=len(items),
        annotated_voxels=sum(item.box.size for item in items),
    )


def headline(judgement: Judgement) -> str:
    """Say in one sentence whether the generation is better than the champion before it."""
    comparison, g = judgement.comparison, judgement.generation
    if comparison is None:
        return f"Generation {g} is the first; it is champion until a later one beats it."
    against = f"generation {comparison.champion}, the champion so far"
    if comparison.verdict == "better":
        return f"Yes: generation {g} is better than {against}, and takes its place."
    if comparison.verdict == "worse":
        return f"No: generation {g} is worse than {against}, which stays."
    return f"Undecided: generation {g} cannot be told from {against}, which stays."


def _counts(boxes: list[BoxScore]) -> Tables:
    """Return the table of counts, (boxes, K, 3): all that Dice needs, and evaluations of every version hold."""
    return {"counts": np.array([[(c.tp, c.fp, c.fn) for c in b.counts] for b in boxes], dtype=np.float64)}


def compare(candidate: Evaluation, champion: Evaluation, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare two generations on the validation boxes that both were judged on with the same truth.

    Boxes are drawn with replacement, the same ones for both, counts are pooled and Dice recomputed; the 2.5 and 97.5
    percentiles of the difference are the interval (Efron & Tibshirani, doi:10.1201/9780429246593). The candidate is
    better when all of the interval lies above 0, worse when all of it lies below, and otherwise, or with fewer
    than 8 boxes with truth, it is undecided. A class counts in a resample when truth or either prediction
    holds it.

    Parameters
    ----------
    candidate, champion : Evaluation
        The two generations.
    seed : int
        Of the resampling; the same gives the same interval.
    resamples : int
        How often the boxes are drawn.
    """
    new = {b.key: b for b in candidate.boxes_with_truth("validation")}
    old = {b.key: b for b in champion.boxes_with_truth("validation")}
    common = sorted(set(new) & set(old))
    if not common:
        return _undecided(candidate, champion, 0.0, 0, "no validation box was judged for both")
    both = [_counts([scores[key] for key in common]) for scores in (old, new)]
    before, now = paired_values(DICE, [pool(counts, np.ones(len(common))) for counts in both])
    difference = float(now - before)
    times = None if len(common) < MINIMUM_BOXES else resampling(len(common), seeded_generator(seed), resamples)
    change = None if times is None else paired_interval(DICE, [pool(counts, times) for counts in both])
    if change is None:
        return _undecided(
            candidate,
            champion,
            difference,
            len(common),
            f"{len(common)} validation boxes are too few to tell; {MINIMUM_BOXES} are needed",
        )
    low, high = change
    verdict: Literal["better", "worse", "undecided"] = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Comparison(
        verdict=verdict,
        difference=difference,
        interval=(low, high),
        boxes=len(common),
        candidate=candidate.generation,
        champion=champion.generation,
        reason=f"validation Dice {difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f}) over {len(common)} boxes",
    )


def dice_interval(evaluation: Evaluation, part: Part) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of a part's pooled Dice; None with fewer than 4 boxes."""
    boxes = evaluation.boxes_with_truth(part)
    times = resampling(len(boxes), random_generator(0, "bootstrap"))
    if times is None:
        return None
    counts = pool(_counts(boxes), times)
    return interval(DICE.value(counts, occurs(counts)))


def _undecided(candidate: Evaluation, champion: Evaluation, difference: float, boxes: int, reason: str) -> Comparison:
    return Comparison(
        verdict="undecided",
        difference=difference,
        interval=None,
        boxes=boxes,
        candidate=candidate.generation,
        champion=champion.generation,
        reason=reason,
    )


def champion(generations: Iterable[GenerationFolder]) -> int | None:
    """Return the generation whose model is champion; None before the first evaluation."""
    history = judgements(generations)
    return history[-1].champion if history else None
