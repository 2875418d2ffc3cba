"""How often query strategies beat each other: the pairwise penalty matrix of a benchmark [1]_, as nnActive [2]_ makes it.

References
----------
.. [1] Ash et al. 2020, Deep batch active learning by diverse, uncertain gradient lower bounds, arXiv:1906.03671.
.. [2] nnActive, a framework for the evaluation of active learning in 3D biomedical segmentation, arXiv:2511.19183.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_1samp

from rescueseg.errors import EvaluationError
from rescueseg.geometry import Floats
from rescueseg.simulation.settings import Setting

LEVEL = 0.05
"""Of a paired test, for both sides together."""
_EQUAL = 1e-12
"""Differences of Dice that are none, but for the order of the sums."""


@dataclass(frozen=True, eq=False)
class Penalties:
    """How often strategies beat each other.

    Parameters
    ----------
    strategies : tuple of str
        Of the rows and columns.
    matrix : ndarray, (strategies, strategies)
        (i, j): how often strategy i beats strategy j, in settings; a setting counts by the share of its budgets.
    settings : int
        The largest value that an entry can have.
    """

    strategies: tuple[str, ...]
    matrix: Floats
    settings: int

    @property
    def beaten(self) -> dict[str, float]:
        """How often each is beaten by another one on average, in settings: lower is better."""
        others = max(1, len(self.strategies) - 1)
        return dict(zip(self.strategies, (self.matrix.sum(axis=0) / others).tolist(), strict=True))


def penalties(settings: Sequence[Setting], *, corrected: bool = False) -> Penalties:
    """Return the pairwise penalty matrix, by paired t-tests over seeds.

    At each budget of a setting, the start included, i beats j when its Dice is higher and the two-sided p value of the
    differences over seeds is below `LEVEL`: that adds 1 / budgets to (i, j). With four seeds only large and steady differences
    count, and without a correction one in twenty tests of equal strategies does. Pairs with the same Dice for every seed
    beat each other nowhere.

    Parameters
    ----------
    settings : sequence of Setting
        With the same strategies in all.
    corrected : bool
        Whether p values are corrected by Holm's method, over all pairs at one budget of one setting.

    Raises
    ------
    EvaluationError
        If the strategies differ, or a setting has one seed alone.
    """
    strategies = settings[0].strategies if settings else ()
    matrix = np.zeros((len(strategies), len(strategies)))
    first, second = np.triu_indices(len(strategies), k=1)
    for setting in settings:
        if setting.strategies != strategies or len(setting.seeds) < 2:
            raise EvaluationError(
                "a matrix of penalties needs two seeds, and the same strategies in all settings",
                where=f"{setting.dataset}, {setting.regime}",
                todo="Finish the benchmark, or leave this setting out",
            )
        differences = setting.dice[first] - setting.dice[second]
        p = paired_p_values(np.moveaxis(differences, 1, -1))
        if corrected:
            p = np.apply_along_axis(holm, 0, p) if len(first) else p
        beats = (p < LEVEL) / setting.loops
        higher = differences.mean(axis=1) > 0
        np.add.at(matrix, (first, second), (beats * higher).sum(axis=1))
        np.add.at(matrix, (second, first), (beats * ~higher).sum(axis=1))
    return Penalties(strategies, matrix, len(settings))


def paired_p_values(differences: Floats) -> Floats:
    """Return the two-sided p values of paired t-tests.

    Parameters
    ----------
    differences : ndarray, (…, seeds)
        Of Dice, two seeds at least.

    Returns
    -------
    ndarray, (…)
        1 where all differences are 0.

    Examples
    --------
    >>> paired_p_values(np.array([[0.02, 0.03, 0.01, 0.02], [0.0, 0.0, 0.0, 0.0]])).round(4).tolist()
    [0.0163, 1.0]
    """
    none = (np.abs(differences) < _EQUAL).all(axis=-1)
    p = np.ones(differences.shape[:-1])
    p[~none] = ttest_1samp(differences[~none], 0.0, axis=-1).pvalue
    return p


def holm(p: Floats) -> Floats:
    """Return p values corrected for their number by Holm's method.

    Where all are compared with one level, the chance that any of the equal pairs is called different is at most that level.
    The k-th smallest of m is multiplied by m − k + 1, and is at least as large as those before it.

    Parameters
    ----------
    p : ndarray, (tests,)

    References
    ----------
    Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 65-70.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    corrected = np.empty(len(p))
    corrected[order] = raised
    return corrected
