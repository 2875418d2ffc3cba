"""The trend of a campaign's Dice: against sums over a grid of all curves, and how often what it promises holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.active_learning.trend import fit_trend


def by_grid(x: np.ndarray, y: np.ndarray, patches: float, level: float) -> float:
    """Return a quantile of the gain by adding up the posterior over rate, scatter, first Dice and rise, point by point."""
    seen = (x - x[0]) / (x[-1] - x[0])
    rates = np.array([1e-6, *np.geomspace(0.5, 8, 16)])
    prior = np.array([0.5, *[0.5 / 16] * 16])
    scatter = np.geomspace(0.002, 0.3, 50)[:, None, None]
    first = np.linspace(y.mean() - 0.6, y.mean() + 0.6, 121)[:, None]
    rise = np.linspace(0, 0.8, 241)
    values, weights = [], []
    for rate, share in zip(rates, prior, strict=True):
        shape = (1 - np.exp(-rate * seen)) / (1 - np.exp(-rate))
        rest = sum((d - first - rise * s) ** 2 for d, s in zip(y, shape, strict=True))
        likelihood = scatter ** -len(x) * np.exp(-rest / (2 * scatter**2))
        known = scatter ** -(2 + 2) * np.exp(
            -2 * 0.015**2 / (2 * scatter**2)
        )  # of the scatter's square, two generations
        weight = (likelihood * known * scatter**2).sum(axis=(0, 1))  # points of a geometric grid are d(scatter²) apart
        later = (1 - np.exp(-rate * (1 + patches / (x[-1] - x[0])))) / (1 - np.exp(-rate))
        values.append(rise * (later - 1))
        weights.append(share * weight)
    order = np.argsort(np.concatenate(values))
    shares = np.cumsum(np.concatenate(weights)[order])
    return float(np.concatenate(values)[order][np.searchsorted(shares, level * shares[-1])])


@pytest.mark.parametrize("dice", [(0.5, 0.6, 0.65, 0.72, 0.73, 0.76), (0.7, 0.72, 0.69, 0.7, 0.71, 0.7)])
def test_a_gain_is_that_of_a_sum_over_all_curves(dice: tuple[float, ...]) -> None:
    x, y = np.array([4.0, 8, 12, 14, 20, 24]), np.array(dice)
    found = fit_trend(x, y).gain(4, (0.1, 0.5, 0.95))
    assert found == pytest.approx([by_grid(x, y, 4, level) for level in (0.1, 0.5, 0.95)], abs=0.002)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=12), st.floats(1, 40), st.sampled_from([(0.025, 0.5, 0.975)]))
@settings(deadline=None, max_examples=60)
def test_any_history_gives_ordered_figures(dice: list[float], more: float, levels: tuple[float, ...]) -> None:
    found = fit_trend([4.0 * (i + 1) for i in range(len(dice))], dice)
    assert found.weight.sum() == pytest.approx(1)
    low, middle, high = found.gain(more, levels)
    assert 0 <= low <= middle <= high < np.inf
    first, _, last = found.ceiling(levels)
    assert first <= last <= 1
    near, _, far = found.patches_within(0.005, levels)
    assert 4 * len(dice) <= near <= far


def test_a_curve_without_scatter_is_found_again() -> None:
    x = 4.0 * np.arange(1, 16)
    y = 0.85 - 0.35 * np.exp(-0.08 * (x - 4))
    found = fit_trend(x, y)
    assert found.ceiling((0.5,))[0] == pytest.approx(0.85, abs=0.01)
    assert found.gain(4, (0.5,))[0] == pytest.approx(0.35 * np.exp(-0.08 * 56) * (1 - np.exp(-0.32)), abs=0.002)
    assert found.patches_within(0.005, (0.5,))[0] == pytest.approx(max(60, 4 + np.log(0.35 / 0.005) / 0.08), abs=5)


def test_a_line_has_no_ceiling() -> None:
    x = 4.0 * np.arange(1, 13)
    found = fit_trend(x, 0.3 + 0.01 * x)
    assert found.gain(4, (0.5,))[0] == pytest.approx(0.04, abs=0.004)
    assert found.patches_within(0.005, (0.975,)) == (np.inf,)


def test_a_falling_dice_promises_next_to_nothing() -> None:
    assert fit_trend([4, 8, 12, 16, 20, 24], [0.8, 0.79, 0.78, 0.76, 0.75, 0.74]).gain(4, (0.95,))[0] < 0.01


@pytest.mark.parametrize("scatter", [0.005, 0.015, 0.03])
def test_the_true_gain_lies_below_the_upper_end(scatter: float) -> None:
    """Over rises, curves and a plateau, of 6 to 10 generations: at most one in twenty above the 95 % end, by 95 % over 240."""
    rng, above, count = np.random.default_rng(0), 0, 0
    for n in (6, 8, 10):
        x = 4.0 * np.arange(1, n + 2)
        for rate in (0.0, 0.025, 0.05, 0.1):
            y = 0.85 - 0.35 * np.exp(-rate * (x - 4)) if rate else 0.5 + 0.002 * x
            for _ in range(20):
                count += 1
                high = fit_trend(x[:-1], y[:-1] + rng.normal(0, scatter, n)).gain(4, (0.95,))[0]
                above += y[-1] - y[-2] > high
    assert above <= 0.05 * count + 1.64 * np.sqrt(0.05 * 0.95 * count)
