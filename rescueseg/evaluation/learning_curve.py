"""How much to annotate: a rule of thumb by complexity, replaced by the campaign's own learning curve once it has one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.evaluation.champion import judgements

SIZES = {
    "moderate": "5–10 volumes",
    "difficult": "10–30 patches",
    "extremely noisy": "30–50 patches",
}
"""Annotated volumes or patches that data of each complexity grade usually take."""
LEAST_POINTS = 3
"""Evaluated generations: as many as the curve has parameters."""
_FARTHEST = 3.0
"""A forecast reaches at most so many times the annotated patches."""


@dataclass(frozen=True)
class Curve:
    """A learning curve y = ceiling - rise · exp(-rate · (x - first)).

    Parameters
    ----------
    ceiling : float
        Dice that more annotation of this kind leads to.
    rise : float
        Dice still missing at `first`.
    rate : float
        Per patch.
    first : float
        Annotated patches of the first generation.

    Examples
    --------
    From Dice 0.6 after 10 patches towards 0.9, with a tenth of the remaining rise per patch:

    >>> curve = Curve(ceiling=0.9, rise=0.3, rate=0.1, first=10)
    >>> round(curve.at(20), 2), round(curve.patches_within(0.03))
    (0.79, 33)
    """

    ceiling: float
    rise: float
    rate: float
    first: float

    def at(self, patches: float) -> float:
        """Return the Dice after so many annotated patches."""
        return self.ceiling - self.rise * math.exp(-self.rate * (patches - self.first))

    def patches_within(self, distance: float) -> float:
        """Return the annotated patches after which the ceiling is at most `distance` away."""
        return self.first + max(0.0, math.log(self.rise / distance) / self.rate)


def fit_curve(patches: Sequence[float], dice: Sequence[float]) -> Curve | str:
    """Fit a learning curve by least squares, or say why it would mean nothing.

    Parameters
    ----------
    patches : sequence of float
        Annotated patches of each generation.
    dice : sequence of float
        Validation Dice of each, in the same order.

    Returns
    -------
    Curve or str
        The reason where there are fewer than three different budgets, Dice does not rise, the points scatter more
        than they rise, or the curve has not bent yet: a plateau that was not seen cannot be forecast.

    References
    ----------
    The form is the one nnActive fits to its results (arXiv 2511.19183).
    """
    x, y = np.asarray(patches, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if len(np.unique(x)) < LEAST_POINTS:
        return f"{len(np.unique(x))} of {LEAST_POINTS} evaluated generations"
    first, reach = float(x.min()), float(np.ptp(x))
    if y[x.argmax()] <= y[x.argmin()]:
        return "Dice does not rise with the annotated patches"

    def form(
        at: np.ndarray[tuple[int, ...], np.dtype[np.float64]], ceiling: float, rise: float, rate: float
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return ceiling - rise * np.exp(-rate * (at - first))

    start = (min(1.0, float(y.max()) + 0.02), max(0.02, float(np.ptp(y))), 2 / reach)
    bounds = ((0, 0, 1e-3 / reach), (1, 1, 50 / reach))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # three points leave no covariance
            (ceiling, rise, rate), _ = curve_fit(form, x, y, p0=start, bounds=bounds, max_nfev=5000)
    except RuntimeError:
        return "no learning curve fits"
    curve = Curve(float(ceiling), float(rise), float(rate), first)
    scatter = float(np.sqrt(np.mean((form(x, *(float(p) for p in (ceiling, rise, rate))) - y) ** 2)))
    gain = rise * (1 - math.exp(-rate * reach))  # along the curve, from the first budget to the last
    if scatter > gain / 3:
        return "the generations scatter too much around any learning curve"
    if rate * reach < 1:
        return "the learning curve has not bent yet: more patches still pay"
    return curve


def curve_advice(patches: Sequence[float], dice: Sequence[float], distance: float) -> str:
    """Say in one sentence how many patches it takes to come within `distance` of the ceiling of the learning curve."""
    curve = fit_curve(patches, dice)
    if isinstance(curve, str):
        return f"no forecast from the learning curve: {curve}"
    now = max(patches)
    needed = math.ceil(curve.patches_within(distance))
    if needed <= now:
        return (
            f"the learning curve is within {distance:g} of its ceiling, Dice {curve.ceiling:.3f}, at {now:g} patches: "
            "more of the same gain little"
        )
    if needed > _FARTHEST * now:
        return f"no forecast from the learning curve: {needed} patches are too far beyond the {now:g} annotated"
    return (
        f"about {needed} annotated patches, {needed - now:g} more, to come within {distance:g} of the learning curve's "
        f"ceiling, Dice {curve.ceiling:.3f}"
    )


def advise(campaign: Campaign) -> str:
    """Say how much to annotate; empty before triage and three evaluated generations.

    Parameters
    ----------
    campaign : Campaign
        Its triage's complexity grade counts, until three of its generations were evaluated; then their validation
        Dice does. The distance to the ceiling is `stopping.min_gain`, the smallest gain that counts.
    """
    scores = [(j.annotated_patches, j.evaluation.validation) for j in judgements(campaign.generations())]
    points = [(n, part.dice) for n, part in scores if part is not None and part.dice is not None]
    if len({n for n, _ in points}) >= LEAST_POINTS:
        distance = campaign.config.stopping.min_gain or 0.005
        return curve_advice([n for n, _ in points], [d for _, d in points], distance)
    triage = campaign.records.read(TRIAGE_SUMMARY)
    if triage is None or triage.complexity not in SIZES:
        return ""
    return f"{SIZES[triage.complexity]} for data of this complexity ({triage.complexity})"
