"""Is the candidate better than the champion? A paired bootstrap over the validation boxes.

A generation's `Judgement` is the result of its evaluation stage: ``generation.write(EVALUATION, judgement)``.
The champion is read from the judgements of earlier generations, so that a rerun decides as the first run did, whatever
the tracking server says; MLflow's aliases only mirror it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rescueseg.campaign import GenerationFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.evaluation.metrics import dice_of
from rescueseg.evaluation.pooled import interval, resampling
from rescueseg.evaluation.scores import BoxScore, Evaluation
from rescueseg.randomness import seeded_generator
from rescueseg.records import Part, Record

MINIMUM_BOXES = 8
RESAMPLES = 5000


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


def judge(folder: GenerationFolder, evaluation: Evaluation, seed: int) -> Judgement:
    """Compare a generation with the champion of the generations before it and say who is champion now.

    Parameters
    ----------
    folder : GenerationFolder
        Of the new generation; those of the earlier ones beside it hold their judgements. Nothing is written.
    evaluation : Evaluation
        The new generation's.
    seed : int
        Of the resampling.
    """
    earlier = {j.generation: j for j in judgements(folder.all()) if j.generation < evaluation.generation}
    champion, comparison = evaluation.generation, None
    if earlier:
        champion = earlier[max(earlier)].champion
        comparison = compare(evaluation, earlier[champion].evaluation, seed=seed)
        if comparison.verdict == "better":
            champion = evaluation.generation
    snapshot = folder.snapshot()
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


def pooled_dice(counts: npt.NDArray[Any], classes: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float64]:
    """Return the Dice of pooled counts (…, K, 3), averaged over classes.

    Parameters
    ----------
    counts : ndarray
        TP, FP, FN per class.
    classes : ndarray of bool (…, K), optional
        Which classes count; those that occur when omitted. Without any the result is 1.

    Examples
    --------
    Two classes; the second occurs in neither truth nor prediction and does not count:

    >>> float(pooled_dice(np.array([[6, 2, 2], [0, 0, 0]])))
    0.75
    """
    counted = counts.sum(axis=-1) > 0 if classes is None else classes
    number = counted.sum(axis=-1)
    total = np.where(counted, dice_of(counts.astype(np.float64)), 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), 1.0)


def box_counts(boxes: list[BoxScore]) -> npt.NDArray[np.int64]:
    """Return the counts of boxes, int64 (boxes, K, 3)."""
    return np.array([[[c.tp, c.fp, c.fn] for c in b.counts] for b in boxes], dtype=np.int64)


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
    both = np.stack([box_counts([scores[key] for key in common]) for scores in (new, old)])
    difference = float(_difference(both.sum(axis=1)))
    if len(common) < MINIMUM_BOXES:
        return _undecided(
            candidate,
            champion,
            difference,
            len(common),
            f"{len(common)} validation boxes are too few to tell; {MINIMUM_BOXES} are needed",
        )
    rng = seeded_generator(seed)
    times = rng.multinomial(len(common), np.full(len(common), 1 / len(common)), size=resamples)
    resampled = _difference(np.einsum("rb,mbkc->mrkc", times, both))
    low, high = (float(v) for v in np.percentile(resampled, (2.5, 97.5)))
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
    times = resampling(len(boxes))
    if times is None:
        return None
    counts = np.einsum("rb,bkc->rkc", times, box_counts(boxes))
    return interval(np.where(counts.sum(axis=(-1, -2)) > 0, pooled_dice(counts), np.nan))


def _difference(both: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return candidate minus champion for pooled counts (2, …, K, 3)."""
    occurs = (both.sum(axis=-1) > 0).any(axis=0)
    return pooled_dice(both[0], occurs) - pooled_dice(both[1], occurs)


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
