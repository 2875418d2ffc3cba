"""When a campaign has enough: a pure rule on what its generations reached."""

from __future__ import annotations

from collections.abc import Sequence

from rescueseg.config import StoppingConfig
from rescueseg.records import Record


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


def should_stop(history: Sequence[GenerationResult], config: StoppingConfig) -> StopDecision:
    """Decide whether another generation is worth its annotations.

    Parameters
    ----------
    history : sequence of GenerationResult
        The generations finished so far, in any order.
    config : StoppingConfig
        The limits, the patience and the smallest gain that counts.

    Returns
    -------
    StopDecision
        Stop when the generations or the annotated patches are used up, nothing is left to choose, or none of
        the last `patience` generations gained `min_gain` over the best before it.

    Examples
    --------
    >>> dice = (0.70, 0.82, 0.82, 0.81)
    >>> history = [
    ...     GenerationResult(generation=g, annotated_patches=10 * (g + 1), validation_dice=d) for g, d in enumerate(dice)
    ... ]
    >>> should_stop(history, StoppingConfig(patience=2, min_gain=0.01)).reason
    'no gain of 0.01 in validation Dice for 2 generations'
    """
    if not history:
        return StopDecision(stop=False, reason="no generation has finished yet")
    results = sorted(history, key=lambda result: result.generation)
    last = results[-1]
    if len(results) >= config.max_generations:
        return StopDecision(stop=True, reason=f"all {config.max_generations} generations are done")
    most = config.max_annotated_patches
    if most is not None and last.annotated_patches >= most:
        return StopDecision(stop=True, reason=f"{last.annotated_patches} patches are annotated, {most} are the limit")
    if last.candidates_left == 0:
        return StopDecision(stop=True, reason="no patch is left to choose")
    idle = _generations_without_gain([r.validation_dice for r in results], config.min_gain)
    if idle >= config.patience:
        return StopDecision(
            stop=True, reason=f"no gain of {config.min_gain:g} in validation Dice for {idle} generations"
        )
    return StopDecision(stop=False, reason=f"{idle} of {config.patience} generations without gain")


def _generations_without_gain(dice: Sequence[float | None], min_gain: float) -> int:
    """Count the generations since the last one that gained; those without a score do not count."""
    best: float | None = None
    idle = 0
    for value in dice:
        if value is None:
            continue
        if best is None or value >= best + min_gain:
            best, idle = value, 0
        else:
            idle += 1
    return idle
