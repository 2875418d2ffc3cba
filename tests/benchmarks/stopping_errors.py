"""How often a campaign is stopped while its Dice still rises, how late on a plateau, and how often a forecast holds.

    python tests/benchmarks/stopping_errors.py --campaigns 100

Every generation has four patches more than the one before. The noise is the standard deviation of a generation's Dice
beside the curve. `before` are the rules that were replaced: stop after three generations without a gain of 0.005 over the
best so far; fit a curve to three generations or more, and answer where it has bent. `after` are
`rescueseg.active_learning.stopping` and `rescueseg.evaluation.learning_curve`.

The first table tells in how many of 100 campaigns the rule stops early, that is while the next batch would truly bring 0.005
or more, how much Dice is lost by it on average, and how many generations are made after the last that was worth it (on a
plateau that is the second; a rise always is). The second tells of the forecast to within 0.005 of the ceiling: how
often it is given, how often the truth lies in its interval, and how many patches it says (median; `truth` at the end). Before,
there was no interval.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from rescueseg.active_learning.stopping import GenerationResult, should_stop
from rescueseg.config import StoppingConfig
from rescueseg.evaluation.learning_curve import forecast

BATCH, MIN_GAIN = 4, 0.005
Curve = Callable[[np.ndarray], np.ndarray]


def saturating(rate: float) -> Curve:
    """Return the curve from 0.5 towards 0.85, by generation."""
    return lambda g: 0.85 - 0.35 * np.exp(-rate * g)


CURVES: dict[str, Curve] = {
    "rise +0.008": lambda g: 0.5 + 0.008 * g,
    "rise +0.015": lambda g: 0.3 + 0.015 * g,
    "plateau": lambda g: np.full(len(g), 0.8),
    "to 0.85, rate 0.7": saturating(0.7),
    "to 0.85, rate 0.25": saturating(0.25),
    "to 0.85, rate 0.1": saturating(0.1),
}
NOISE = (0.005, 0.015, 0.03)


def stopped_before(dice: np.ndarray, most: int) -> int:
    """Return after how many generations the rule of the best so far stops."""
    best, idle = dice[0], 0
    for n, value in enumerate(dice[1:most], start=2):
        best, idle = (value, 0) if value >= best + MIN_GAIN else (best, idle + 1)
        if idle >= 3:
            return n
    return most


def stopped_after(dice: np.ndarray, most: int) -> int:
    """Return after how many generations the rule of the trend stops."""
    config = StoppingConfig(max_generations=most)
    history = [
        GenerationResult(generation=g, annotated_patches=BATCH * (g + 1), validation_dice=float(d))
        for g, d in enumerate(dice)
    ]
    return next(n for n in range(1, most + 1) if should_stop(history[:n], config).stop)


def stops(curve: Curve, noise: float, most: int, campaigns: int, seed: int = 0) -> list[tuple[float, float, float]]:
    """Return for both rules: stopped early, of 100; Dice lost by it; generations made in vain."""
    rng, rows = np.random.default_rng(seed), []
    truth = curve(np.arange(most + 1.0))
    worth = np.diff(truth) >= MIN_GAIN - 1e-9  # whether the batch after each generation is
    enough = int(np.flatnonzero(worth[:most])[-1]) + 2 if worth[:most].any() else 1
    scattered = truth[:most] + rng.normal(0, noise, (campaigns, most))
    for rule in (stopped_before, stopped_after):
        ends = np.array([rule(dice, most) for dice in scattered])
        early = (ends < most) & worth[ends - 1]
        lost = np.where(early, truth[min(enough, most) - 1] - truth[ends - 1], 0.0)
        vain = np.maximum(0, ends - enough)
        rows.append((100 * float(early.mean()), float(lost.mean()), float(vain.mean())))
    return rows


def forecast_before(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the patches that the fit of one curve says, None where it said nothing."""
    reach = np.ptp(x)
    if y[-1] <= y[0]:
        return None

    def form(at: np.ndarray, ceiling: float, rise: float, rate: float) -> np.ndarray:
        return np.asarray(ceiling - rise * np.exp(-rate * (at - x[0])))

    start = (min(1.0, y.max() + 0.02), max(0.02, np.ptp(y)), 2 / reach)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            fit, _ = curve_fit(form, x, y, p0=start, bounds=((0, 0, 1e-3 / reach), (1, 1, 50 / reach)), max_nfev=5000)
    except RuntimeError:
        return None
    _, rise, rate = (float(p) for p in fit)
    scatter = np.sqrt(np.mean((form(x, *fit) - y) ** 2))
    if scatter > rise * (1 - np.exp(-rate * reach)) / 3 or rate * reach < 1:
        return None
    needed = x[0] + max(0.0, np.log(rise / MIN_GAIN) / rate)
    return float(needed) if needed <= 3 * x[-1] else None


def forecasts(rate: float, noise: float, count: int, campaigns: int, seed: int = 0) -> dict[str, float]:
    """Return how often both forecasts answer, how often the new one's interval holds, and what they say."""
    rng = np.random.default_rng(seed)
    x = float(BATCH) * np.arange(1, count + 1)
    truth = max(float(x[-1]), BATCH + BATCH * float(np.log(0.35 / MIN_GAIN)) / rate)
    old: list[float] = []
    new: list[Sequence[float]] = []
    for _ in range(campaigns):
        y = saturating(rate)(np.arange(float(count))) + rng.normal(0, noise, count)
        one, two = forecast_before(x, y), forecast(x.tolist(), y.tolist(), MIN_GAIN)
        old += [] if one is None else [one]
        new += [] if two is None else [two.patches]
    closed = [p for p in new if p[2] <= 3 * x[-1]]
    return {
        "before": 100 * len(old) / campaigns,
        "said before": float(np.median(old)) if old else np.nan,
        "after": 100 * len(closed) / campaigns,
        "said after": float(np.median([p[1] for p in closed])) if closed else np.nan,
        "held": 100 * float(np.mean([p[0] <= truth <= p[2] for p in new])) if new else np.nan,
        "truth": truth,
    }


def main() -> None:
    """Print both tables, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=100, help="of each row")
    campaigns = parser.parse_args().campaigns
    print(f"{'':34} {'stopped early, of 100':>22} {'Dice lost':>16} {'in vain':>14}")
    print(f"{'':34} {'before':>14} {'after':>7} {'before':>9} {'after':>6} {'before':>7} {'after':>6}")
    for most in (10, 40):
        for (name, curve), noise in ((c, n) for c in CURVES.items() for n in NOISE):
            old, new = stops(curve, noise, most, campaigns)
            label = f"{name}, {most} at most, {noise:g}"
            early, lost, vain = zip(old, new, strict=True)
            print(
                f"{label:34} {early[0]:14.0f} {early[1]:7.0f} {lost[0]:9.3f} {lost[1]:6.3f} {vain[0]:7.1f} {vain[1]:6.1f}",
                flush=True,
            )
    print(f"\n{'':34} {'answers, of 100':>16} {'patches said':>16} {'interval':>9}")
    print(f"{'':34} {'before':>8} {'after':>7} {'before':>8} {'after':>7} {'holds':>9} {'truth':>6}")
    for rate, count, noise in (
        (r, n, s) for r in (0.2, 0.4) for n in (3, 4, 6, 8, 10, 15) for s in (0.005, 0.015, 0.03)
    ):
        row = forecasts(rate, noise, count, campaigns)
        label = f"rate {rate:g}, {count} generations, {noise:g}"
        print(
            f"{label:34} {row['before']:8.0f} {row['after']:7.0f} {row['said before']:8.0f} {row['said after']:7.0f} "
            f"{row['held']:9.0f} {row['truth']:6.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
