"""The learning rate over the steps of a training."""

from __future__ import annotations

import math

_WARM_UP = 20
"""Steps of the warm-up; a tenth of a short training."""


def cosine_rate(peak: float, step: int, iterations: int) -> float:
    """Return the learning rate of a step (from 0): a short linear warm-up to the peak, then a cosine to zero.

    Examples
    --------
    Of 100 steps the first 10 are the warm-up:

    >>> [round(cosine_rate(0.01, step, 100), 4) for step in (0, 9, 10, 55, 99)]
    [0.001, 0.01, 0.01, 0.005, 0.0]
    """
    warm = min(_WARM_UP, iterations // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, iterations - warm)))
