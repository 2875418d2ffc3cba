"""When a campaign has enough: a pure rule on what its generations reached, and the advice that people read.

A single generation's Dice scatters by more than the gain that counts. So the rule goes by the trend of all generations
(`rescueseg.active_learning.trend`) and by what it says with 95 % certainty.
"""

from __future__ import annotations

from collections.abc import Sequence

from rescueseg.active_learning.trend import fit_trend
from rescueseg.config import StoppingConfig
from rescueseg.records import Record

LEAST_GENERATIONS = 5
"""Generations, each with more patches than the one before, from which on a trend is told from scatter."""
_LEVELS = (0.025, 0.5, 0.95)
"""Lower end, middle and upper end of a gain: the true one lies above the upper end in at most one of twenty campaigns."""


class GenerationResult(Record):
    """What one generation reached, and on how many patches it was trained."""

    generation: int
    annotated_patches: int
    """Accepted pool patches in its snapshot."""
    validation_dice: float | None
    """Mean over classes on the validation boxes; None where it is not defined."""
    candidates_left: int | None = None
    """Patches its query could still choose; None when they were not counted."""


class StopDecision(Record):
    """Whether to stop, and the reason in words for a person."""

    stop: bool
    reason: str


class Advice(Record):
    """Whether another batch is worth annotating."""

    go_on: bool | None
    """None while it is too early to tell; the campaign goes on meanwhile."""
    sentence: str
    """The answer with its reason, for people."""
    gain: tuple[float, float, float] | None = None
    """Validation Dice that another batch would bring: lower end, middle, upper end; None while it is too early to tell."""


def advice(history: Sequence[GenerationResult], config: StoppingConfig) -> Advice:
    """Say whether to go on, and what another batch, of as many patches as the last, would bring.

    Parameters
    ----------
    history : sequence of GenerationResult
        The generations finished so far, in any order.
    config : StoppingConfig
        The limits, the patience and the smallest gain that counts.

    Returns
    -------
    Advice
        Stop when the generations or the annotated patches are used up, nothing is left to choose, or, at each of the last
        `patience` generations, another batch promised less than `min_gain` with 95 % certainty; never by the gain
        before the fifth generation.

    Examples
    --------
    >>> history = [
    ...     GenerationResult(generation=g, annotated_patches=4 * (g + 1), validation_dice=dice)
    ...     for g, dice in enumerate((0.50, 0.57, 0.65, 0.68, 0.74, 0.77))
    ... ]
    >>> advice(history[:2], StoppingConfig()).sentence
    'Too early to tell what another batch would bring: 2 generations, 5 are needed, each with a Dice and more patches. Go on'
    >>> advice(history, StoppingConfig()).sentence
    'Go on: another 4 patches would bring about +0.033 validation Dice (between +0.017 and +0.057)'
    """
    results = sorted(history, key=lambda result: result.generation)
    scored = [r for r in results if r.validation_dice is not None]
    gains, budgets = _gains(scored, config.patience), _budgets(scored)
    gain = gains[-1] if gains else None
    if limit := _limit(results, config):
        return Advice(go_on=False, sentence=f"Stop: {limit}", gain=gain)
    if gain is None:
        seen = f"{len(budgets)} generation{'' if len(budgets) == 1 else 's'}, {LEAST_GENERATIONS} are needed"
        early = f"Too early to tell what another batch would bring: {seen}, each with a Dice and more patches. Go on"
        return Advice(go_on=None, sentence=early)
    low, middle, high = gain
    more = budgets[-1] - budgets[-2]
    batch = f"another {more} patch{'' if more == 1 else 'es'}"
    little = f"less than {config.min_gain:g} Dice (95 % sure)"
    idle = next((n for n, (*_, most) in enumerate(reversed(gains)) if most >= config.min_gain), len(gains))
    if idle >= config.patience:
        return Advice(go_on=False, sentence=f"Stop: {batch} would bring {little}", gain=gain)
    if idle:
        sentence = (
            f"Go on: {batch} may bring {little}, but {config.patience} generations in a row must say so, not {idle}"
        )
    else:
        sentence = (
            f"Go on: {batch} would bring about {middle:+.3f} validation Dice (between {low:+.3f} and {high:+.3f})"
        )
    return Advice(go_on=True, sentence=sentence, gain=gain)


def should_stop(history: Sequence[GenerationResult], config: StoppingConfig) -> StopDecision:
    """Decide whether another generation is worth its annotations: see `advice`, whose parameters these are.

    Examples
    --------
    >>> dice = (0.70, 0.82, 0.82, 0.81, 0.82, 0.82, 0.81, 0.82)
    >>> history = [
    ...     GenerationResult(generation=g, annotated_patches=10 * (g + 1), validation_dice=d) for g, d in enumerate(dice)
    ... ]
    >>> should_stop(history, StoppingConfig(patience=1, min_gain=0.02)).reason
    'another 10 patches would bring less than 0.02 Dice (95 % sure)'
    """
    if not history:
        return StopDecision(stop=False, reason="no generation has finished yet")
    said = advice(history, config)
    stop = said.go_on is False
    return StopDecision(stop=stop, reason=said.sentence.removeprefix("Stop: ") if stop else said.sentence)


def _limit(results: Sequence[GenerationResult], config: StoppingConfig) -> str:
    """Return which limit is reached, empty when none is."""
    if len(results) >= config.max_generations:
        return f"all {config.max_generations} generations are done"
    if not results:
        return ""
    last, most = results[-1], config.max_annotated_patches
    if most is not None and last.annotated_patches >= most:
        return f"{last.annotated_patches} patches are annotated, {most} are the limit"
    return "no patch is left to choose" if last.candidates_left == 0 else ""


def _budgets(results: Sequence[GenerationResult]) -> list[int]:
    """Return the different numbers of annotated patches, in order."""
    return sorted({r.annotated_patches for r in results})


def _gains(scored: Sequence[GenerationResult], last: int) -> list[tuple[float, float, float]]:
    """Return what another batch promised after each of the last generations from which a trend could be told."""
    gains = []
    for count in range(max(LEAST_GENERATIONS, len(scored) + 1 - last), len(scored) + 1):
        budgets = _budgets(scored[:count])
        if len(budgets) >= LEAST_GENERATIONS:
            dice = [r.validation_dice or 0.0 for r in scored[:count]]
            trend = fit_trend([r.annotated_patches for r in scored[:count]], dice)
            low, middle, high = (round(gain, 6) for gain in trend.gain(budgets[-1] - budgets[-2], _LEVELS))
            gains.append((low, middle, high))
    return gains
