"""Is the candidate better than the champion? An exact paired test on the validation boxes.

A generation's `Judgement` is the result of its evaluation stage: ``generation.write(EVALUATION, judgement)``.
The champion is read from the judgements of earlier generations, so that a rerun decides as the first run did, whatever
the tracking server says; MLflow's aliases only mirror it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rescueseg.campaign import GenerationFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.config import CampaignConfig
from rescueseg.evaluation.intervals import Interval, difference_estimate, score_estimate
from rescueseg.evaluation.metric_table import DICE, Tables
from rescueseg.evaluation.paired_test import (
    CAMPAIGN_LEVEL,
    LEAST_VOLUMES,
    SINGLE_LEVEL,
    Decided,
    PairedTest,
    level_of,
    paired_test,
    steps,
)
from rescueseg.evaluation.scores import BoxScore, Evaluation
from rescueseg.records import Part, Record

Verdict = Literal["better", "worse", "undecided"]


class Comparison(Record):
    """What the validation boxes say about a candidate and the champion."""

    verdict: Verdict
    difference: float | None
    """Pooled validation Dice of the candidate minus that of the champion, over the boxes both were judged on, and the classes
    that truth holds there; None where it holds none."""
    interval: tuple[float, float] | None
    """95 % interval of the difference; None where there is none. It says how much, the p value says whether."""
    boxes: int
    candidate: int
    champion: int
    """Generations."""
    reason: str
    """The figures, in one sentence for people."""
    p_value: float | None = None
    """How often two equal models would differ as much on these boxes, to the same side; None in older records, which
    went by the interval."""
    level: float | None = None
    """At this p value or a smaller one it decides, to either side; 0 where it could not."""
    volumes: int | None = None
    """Volumes that the boxes lie in."""

    def headline(self, candidate: str = "", champion: str = "") -> str:
        """Say which of the two is better; they are called by generation where no names are given.

        Examples
        --------
        >>> comparison = Comparison(
        ...     verdict="better", difference=0.1, interval=None, boxes=5, candidate=2, champion=0, reason="Dice +0.100"
        ... )
        >>> comparison.headline()
        'Generation 2 is better than generation 0'
        >>> comparison.sentence("the new U-Net", "the old one")
        'The new U-Net is better than the old one: Dice +0.100'
        """
        new = candidate or f"generation {self.candidate}"
        old = champion or f"generation {self.champion}"
        if self.verdict == "undecided":
            return f"Undecided: {new} cannot be told from {old}"
        return f"{new[:1].upper()}{new[1:]} is {self.verdict} than {old}"

    def sentence(self, candidate: str = "", champion: str = "") -> str:
        """Say which of the two is better, by how much, how surely, and over which boxes."""
        return f"{self.headline(candidate, champion)}: {self.reason}"


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


def judge(
    generations: Sequence[GenerationFolder],
    evaluation: Evaluation,
    config: CampaignConfig,
    anew: Mapping[int, Evaluation] | None = None,
) -> Judgement:
    """Compare a generation with the champion of the generations before it and say who is champion now.

    The comparisons of a campaign share one error: see `rescueseg.evaluation.paired_test.level_of`. Those that older
    versions made have no level and take nothing of it.

    Parameters
    ----------
    generations : sequence of GenerationFolder
        All of the campaign: the earlier ones hold their judgements, the new one its snapshot. Nothing is written.
    evaluation : Evaluation
        The new generation's; it says which one that is.
    config : CampaignConfig
        The campaign's; it says how many generations there are at most.
    anew : mapping of int to Evaluation, optional
        Evaluations of earlier generations on a holdout that grew since they were judged.
    """
    earlier = {j.generation: j for j in judgements(generations) if j.generation < evaluation.generation}
    champion, comparison = evaluation.generation, None
    if earlier:
        champion = earlier[max(earlier)].champion
        pair = _pair((anew or {}).get(champion, earlier[champion].evaluation), evaluation)
        before = [Decided(c.level, c.verdict == "better") for j in earlier.values() if (c := j.comparison)]
        level = level_of(before, config.stopping.max_generations - 1, pair.test.units)
        comparison = _decision(pair, level)
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
    return f"{comparison.headline(champion=against)}, which stays."


def _counts(boxes: list[BoxScore]) -> Tables:
    """Return the table of counts, (boxes, K, 3): all that Dice needs, and evaluations of every version hold."""
    return {"counts": np.array([[(c.tp, c.fp, c.fn) for c in b.counts] for b in boxes], dtype=np.float64)}


@dataclass(frozen=True)
class _Pair:
    """The counts of two evaluations on the validation boxes that both were judged on with the same truth, and their test."""

    first: Evaluation
    second: Evaluation
    counts: tuple[Tables, Tables]
    names: list[str]
    """The volume of each box."""
    test: PairedTest

    @property
    def boxes(self) -> int:
        return len(self.names)

    @property
    def volumes(self) -> int:
        return len(set(self.names))


def _pair(first: Evaluation, second: Evaluation) -> _Pair:
    sides = [{b.key: b for b in e.boxes_with_truth("validation")} for e in (first, second)]
    common = sorted(set(sides[0]) & set(sides[1]))
    counts = _counts([sides[0][key] for key in common]), _counts([sides[1][key] for key in common])
    names = [key[0] for key in common]
    volumes = sorted(set(names))
    units = [volumes.index(name) for name in names] if len(volumes) >= LEAST_VOLUMES else None
    test = paired_test(counts[0]["counts"], counts[1]["counts"], units)
    return _Pair(first, second, counts, names, test)


def compare(candidate: Evaluation, champion: Evaluation, *, level: float = SINGLE_LEVEL) -> Comparison:
    """Compare two generations by Dice, on the validation boxes that both were judged on with the same truth.

    An exact paired test decides: the two models' tables change places box by box, or volume by volume where there are
    at least 8 volumes (`rescueseg.evaluation.paired_test`). Turned round, it says the opposite with the same figures.

    Parameters
    ----------
    candidate, champion : Evaluation
        The two generations.
    level : float
        Decided at a one-sided p value of at most this, to either side; that of a question of its own when omitted.
    """
    return _decision(_pair(champion, candidate), level)


def compare_models(first: Evaluation, second: Evaluation, history: Sequence[Judgement]) -> Comparison:
    """Compare any two models: the second is the candidate.

    Parameters
    ----------
    first, second : Evaluation
        Of generations or of trainings outside the loop.
    history : sequence of Judgement
        The campaign's. A pair that one of them compared is decided at its level, with the same result on the same boxes; any
        other is a question of its own.
    """
    models = {j.generation: j.evaluation.model_digest for j in history}
    asked = {(e.generation, e.model_digest) for e in (first, second)}
    level = SINGLE_LEVEL
    for comparison in (j.comparison for j in history):
        if comparison is None or comparison.level is None:
            continue
        pair = {(g, models.get(g, "")) for g in (comparison.candidate, comparison.champion)}
        if pair == asked:
            level = comparison.level
    return compare(second, first, level=level)


def _decision(pair: _Pair, level: float) -> Comparison:
    test = pair.test
    difference = difference_estimate(DICE, *pair.counts, pair.names).difference if pair.boxes else None
    change = difference.interval if difference else None
    verdict: Verdict = "undecided"
    if min(test.better, test.worse) <= level:
        verdict = "better" if test.better <= level else "worse"
    p_value = test.better if (test.difference or 0.0) >= 0 else test.worse
    return Comparison(
        verdict=verdict,
        difference=test.difference,
        interval=change,
        boxes=pair.boxes,
        candidate=pair.second.generation,
        champion=pair.first.generation,
        reason=_reason(pair, level, p_value, change),
        p_value=p_value,
        level=level,
        volumes=pair.volumes,
    )


def _reason(pair: _Pair, level: float, p_value: float, change: Interval | None) -> str:
    if not pair.boxes:
        return "no validation box was judged for both"
    boxes = f"{pair.boxes} box{'es' if pair.boxes > 1 else ''}"
    if pair.volumes >= LEAST_VOLUMES:
        boxes += f" of {pair.volumes} volumes"
    else:
        boxes += " of this one volume" if pair.volumes == 1 else f" of these {pair.volumes} volumes"
    interval = f" (95 % interval {change[0]:+.3f} to {change[1]:+.3f})" if change else ""
    if pair.test.difference is None:
        return f"nothing is there in {boxes}, so that there is no Dice to compare"
    figures = f"validation Dice {pair.test.difference:+.3f}{interval} over {boxes}"
    truth = pair.counts[0]["counts"][..., [0, 2]].sum(axis=(0, 2))
    if any(((side["counts"].sum(axis=(0, 2)) > 0) & (truth == 0)).any() for side in pair.counts):
        figures += "; a class that truth holds nowhere is left out"
    if not pair.test.units:
        return f"{figures}; they are the same in every box"
    if pair.test.units < (pair.volumes if pair.volumes >= LEAST_VOLUMES else pair.boxes):
        figures += f", of which {pair.test.units} differ"
    chance = f"equal models would differ as much in {_percent(p_value)} of cases"
    if level:
        return f"{figures}; {chance}, and it takes {_percent(level)} or less to decide"
    if 1 / steps(pair.test.units) > CAMPAIGN_LEVEL:
        return f"{figures}; {chance}: too few boxes differ to decide"
    return (
        f"{figures}; {chance}, but the comparisons before used up the {_percent(CAMPAIGN_LEVEL)} of errors that a campaign "
        "may make: more validation boxes decide"
    )


def _percent(share: float) -> str:
    """Return a share in percent, as people say it.

    Examples
    --------
    >>> [_percent(share) for share in (1 / 256, 0.025, 0.5, 6e-5)]
    ['0.4 %', '2.5 %', '50 %', 'less than 0.1 %']
    """
    if share < 0.0005:
        return "less than 0.1 %"
    return (f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.1f}".removesuffix(".0")) + " %"


def dice_interval(evaluation: Evaluation, part: Part) -> tuple[float, float] | None:
    """Return the 95 % interval of a part's pooled Dice, the one that `group_scores` gives; None where there is none."""
    boxes = evaluation.boxes_with_truth(part)
    score = score_estimate(DICE, _counts(boxes), [b.volume_id for b in boxes]) if boxes else None
    return score.interval if score else None


def champion(generations: Iterable[GenerationFolder]) -> int | None:
    """Return the generation whose model is champion; None before the first evaluation."""
    history = judgements(generations)
    return history[-1].champion if history else None
