"""How much to annotate: a rule of thumb by complexity, replaced by the campaign's own learning curve once it has one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rescueseg.active_learning.stopping import GenerationResult, advice
from rescueseg.active_learning.trend import fit_trend
from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.campaign.stage_results import QUERY
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.metrics import dice_of
from rescueseg.evaluation.scores import BoxKey, Evaluation
from rescueseg.evaluation.stored_scores import latest_evaluation

SIZES = {
    "moderate": "5–10 volumes",
    "difficult": "10–30 patches",
    "extremely noisy": "30–50 patches",
}
"""Annotated volumes or patches that data of each complexity grade usually take."""
LEAST_BUDGETS = 6
"""Different numbers of annotated patches from which on a ceiling can be forecast."""
_LEVELS = (0.01, 0.5, 0.98)
"""Ends and middle of a forecast: so far apart, they hold the truth in at least 95 % of simulated campaigns."""
_FARTHEST = 3.0
"""A forecast reaches at most so many times the annotated patches."""


@dataclass(frozen=True)
class Forecast:
    """How many annotated patches it takes to come close to the ceiling of the learning curve.

    Parameters
    ----------
    now : float
        Annotated patches of the last generation.
    distance : float
        Dice that may be missing to the ceiling.
    patches, ceiling : tuple of float
        Lower end, middle and upper end (95 %) of the annotated patches and of the ceiling's Dice; the patches are inf where
        the curve may as well be a straight line.
    """

    now: float
    distance: float
    patches: tuple[float, ...]
    ceiling: tuple[float, ...]

    def sentence(self) -> str:
        """Say for people how many patches it takes, or how far that can be told."""
        low, middle, high = (math.ceil(p) if math.isfinite(p) else math.inf for p in self.patches)
        aim = f"to come within {self.distance:g} of the learning curve's ceiling"
        if high > _FARTHEST * self.now:
            if low <= self.now:
                return f"How many patches it takes {aim} cannot be told yet"
            return f"At least {low} annotated patches {aim}; how many more cannot be told yet"
        first, about, last = self.ceiling
        ceiling = f"Dice {about:.3f} ({first:.3f} to {last:.3f})"
        if middle <= self.now:
            return f"{self.now:g} annotated patches (at most {high}) are enough {aim}, {ceiling}"
        return f"About {middle} annotated patches ({low} to {high}), {middle - self.now:g} more, {aim}, {ceiling}"


def forecast(patches: Sequence[float], dice: Sequence[float], distance: float) -> Forecast | None:
    """Forecast the learning curve of a campaign, always with an interval.

    Parameters
    ----------
    patches : sequence of float
        Annotated patches of each generation.
    dice : sequence of float
        Validation Dice of each, in the same order.
    distance : float
        Dice that may be missing to the ceiling, above 0.

    Returns
    -------
    Forecast or None
        None with fewer than `LEAST_BUDGETS` different numbers of patches, and where Dice has been higher than the ceiling
        may be: it falls, and no curve that rises says why. The curve is that of `rescueseg.active_learning.trend`.

    Examples
    --------
    >>> forecast([4, 8, 12], [0.5, 0.6, 0.65], 0.01) is None
    True
    """
    if len(set(patches)) < LEAST_BUDGETS:
        return None
    trend = fit_trend(patches, dice)
    ceiling = trend.ceiling(_LEVELS)
    if max(dice) > ceiling[-1]:
        return None
    return Forecast(trend.last, distance, trend.patches_within(distance, _LEVELS), ceiling)


def generation_results(generations: Iterable[GenerationFolder]) -> list[GenerationResult]:
    """Return what the evaluated generations reached, for `rescueseg.active_learning.stopping.advice`.

    Their Dice is that of the validation boxes that all of them were scored on with the same truth: a holdout that grew
    would bend the curve, so earlier generations are scored on its new boxes too. Generations that share no box with the later ones have none.
    """
    folders = [(folder, judgement) for folder in generations if (judgement := folder.read(EVALUATION)) is not None]
    dice = common_dice([latest_evaluation(folder, judgement) for folder, judgement in folders])
    results = []
    for (folder, judgement), value in zip(folders, dice, strict=True):
        query = folder.read(QUERY)
        results.append(
            GenerationResult(
                generation=judgement.generation,
                annotated_patches=judgement.annotated_patches,
                validation_dice=value,
                candidates_left=None if query is None else query.candidates,
            )
        )
    return results


def common_dice(evaluations: Sequence[Evaluation]) -> list[float | None]:
    """Return the validation Dice of evaluations over the boxes that all share, the mean over the classes that truth holds.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        By generation. From the last one back, as many as have boxes in common count; those before have no Dice.
    """
    scores = [{box.key: box for box in evaluation.boxes_with_truth("validation")} for evaluation in evaluations]
    common: set[BoxKey] = set()
    first = len(scores)
    for index in range(len(scores) - 1, -1, -1):
        keys = set(scores[index])
        rest = keys if first == len(scores) else common & keys
        if not rest:
            break
        common, first = rest, index
    dice: list[float | None] = [None] * first
    for boxes in scores[first:]:
        counts = np.array([[(c.tp, c.fp, c.fn) for c in boxes[key].counts] for key in sorted(common)]).sum(axis=0)
        is_true = counts[:, 0] + counts[:, 2] > 0
        dice.append(float(dice_of(counts[is_true]).mean()) if is_true.any() else None)
    return dice


def advise(campaign: Campaign) -> str:
    """Say in a sentence or two how much to annotate; empty before triage and the first evaluated generation.

    Parameters
    ----------
    campaign : Campaign
        Its triage's complexity grade counts, until its generations tell; then their advice does, and from six different
        numbers of annotated patches on the forecast, to within `stopping.min_gain` of the ceiling.
    """
    results = generation_results(campaign.generations())
    said = advice(results, campaign.config.stopping)
    triage = campaign.records.read(TRIAGE_SUMMARY)
    if said.go_on is None:
        parts = [said.sentence] if results else []
        if triage is not None and triage.complexity in SIZES:
            parts.insert(0, f"{SIZES[triage.complexity]} for data of this complexity ({triage.complexity})")
        return ". ".join(parts)
    scored = [(r.annotated_patches, r.validation_dice) for r in results if r.validation_dice is not None]
    curve = forecast([n for n, _ in scored], [d for _, d in scored], campaign.config.stopping.min_gain or 0.005)
    return ". ".join([said.sentence, *([] if curve is None else [curve.sentence()])])
