"""The bootstrap over boxes: how a score, or its difference between two generations, changes with the boxes.

Boxes are drawn with replacement, their tables pooled and the score computed anew; of two generations the same boxes are
drawn for both (paired bootstrap, Efron & Tibshirani, doi:10.1201/9780429246593).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rescueseg.evaluation.metric_table import Metric, Tables, occurs
from rescueseg.geometry import Floats

Interval = tuple[float, float]

RESAMPLES = 5000
LEAST_BOXES = 4
"""Fewer boxes say nothing about how much the score would change with others."""
_LEAST_DEFINED = 0.5
"""Share of the resamples in which a score must be defined for its interval."""


def resampling(count: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> Floats | None:
    """Return how often each box is drawn in each resample, (resamples, boxes); None with too few boxes."""
    if count < LEAST_BOXES or not resamples:
        return None
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def interval(values: Floats | None) -> Interval | None:
    """Return the 2.5 and 97.5 percentiles of resampled scores; None where fewer than half of them are defined.

    Examples
    --------
    >>> interval(np.arange(41.0))
    (1.0, 39.0)
    >>> interval(np.array([0.5, np.nan, np.nan])) is None
    True
    """
    if values is None or np.isfinite(values).mean() < _LEAST_DEFINED:
        return None
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def paired_values(metric: Metric, both: Sequence[Tables]) -> tuple[Floats, Floats]:
    """Return a score of two generations over the classes that occur in either.

    Parameters
    ----------
    metric : Metric
        The score.
    both : sequence of dict of str to ndarray
        Pooled tables (…, K, n) of the first and of the second, over the same boxes.

    Returns
    -------
    ndarray, ndarray
        (…) each; `metric.empty` where no class occurs.
    """
    classes = occurs(both[0]) | occurs(both[1])
    nothing = ~classes.any(axis=-1)
    values = (metric.value(tables, classes) for tables in both)
    first, second = (np.where(nothing & np.isnan(v), metric.empty, v) for v in values)
    return first, second


def paired_interval(metric: Metric, resamples: Sequence[Tables]) -> Interval | None:
    """Return the 95 % interval of the difference, second minus first, from tables pooled by the same `resampling`."""
    first, second = paired_values(metric, resamples)
    return interval(second - first)
