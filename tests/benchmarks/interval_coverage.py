"""How often the 95 % intervals of Dice, and of the difference of two models, hold the truth of a known population.

python tests/benchmarks/interval_coverage.py --repetitions 1000

A population has 100,000 boxes: their foreground is alike, log-normal (spread 1 and 1.5), Pareto (1.5) or absent in a third of
them, at most 20 times the median, for a box has so many voxels and no more; precision and recall of a box are beta
distributed (Beta(10 m, 10 (1 − m))), independent of the foreground, better where there is more, or worse. The truth is the
Dice of all boxes together. "percentile" is the bootstrap over boxes that came before, for comparison; "jackknife" and
"subsets" are `rescueseg.evaluation.intervals`. With `--volumes`, boxes of one volume are alike as well, and the two ways are to leave out
boxes or volumes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import stats

from rescueseg.evaluation.intervals import LEAST, Interval, difference_estimate, score_estimate
from rescueseg.evaluation.metric_table import DICE
from rescueseg.evaluation.metrics import dice_of
from rescueseg.geometry import Floats
from rescueseg.randomness import random_generator

BOXES = 100_000
SIZES = ("equal", "spread 1", "spread 1.5", "Pareto 1.5", "a third empty")
MEANS = (0.3, 0.6, 0.85, 0.95)
CORRELATIONS = (0.0, 0.5, -0.5)
NUMBERS = (4, 8, 16, 32)
RESAMPLES = 1000
LEAST_OF_PAIR = 6
"""Boxes from which on a difference has an interval: 2⁻⁶ is below 0.025."""
_LARGEST = 20.0


@dataclass(frozen=True)
class Population:
    """Boxes that a holdout is drawn from.

    Parameters
    ----------
    size : str
        One of `SIZES`: how the foreground is distributed over boxes.
    mean : float
        Mean precision and recall of a box.
    correlation : float
        Of a box's quality with its foreground.
    between : float
        Spread between volumes, in units of the spread between boxes of a volume.
    of_volume : int
        Boxes of a volume.
    """

    size: str
    mean: float
    correlation: float = 0.0
    between: float = 0.0
    of_volume: int = 1

    @cache  # noqa: B019
    def counts(self, models: int = 1) -> Floats:
        """Return TP, FP and FN of models with the same mean: (models, volumes, boxes of a volume, 3)."""
        rng = random_generator("coverage", self.size, str(self.mean), str(self.correlation), str(self.between))
        shape = (BOXES // self.of_volume, self.of_volume)
        foreground = rng.standard_normal(shape)
        weights = 1e4 * np.minimum(self._weights(foreground), _LARGEST)
        empty = rng.random(shape) < (1 / 3 if self.size == "a third empty" else 0)
        volume, difficulty = self.between * rng.standard_normal((shape[0], 1)), rng.standard_normal(shape)
        result = []
        for _ in range(models):
            recall, precision = (self._quality(foreground, difficulty, volume, rng) for _ in range(2))
            tp = np.where(empty, 0, recall * weights)
            invented = np.where(rng.random(shape) < 0.5, 0, 0.5 * weights * (1 - self.mean) * rng.random(shape))
            fp = np.where(empty, invented, tp * (1 / np.maximum(precision, 0.02) - 1))
            result.append(np.rint(np.stack([tp, fp, np.where(empty, 0, weights - tp)], axis=-1)))
        return np.stack(result)

    def _weights(self, normal: Floats) -> Floats:
        if self.size == "Pareto 1.5":
            return np.asarray((stats.norm.sf(normal) + 1e-12) ** (-1 / 1.5))
        return np.exp({"equal": 0.1, "spread 1.5": 1.5}.get(self.size, 1.0) * normal)

    def _quality(self, foreground: Floats, difficulty: Floats, volume: Floats, rng: np.random.Generator) -> Floats:
        own = np.sqrt(0.6) * difficulty + np.sqrt(0.4) * rng.standard_normal(difficulty.shape)
        normal = self.correlation * foreground + np.sqrt(1 - self.correlation**2) * own
        share = stats.norm.cdf((normal + volume) / np.sqrt(1 + self.between**2))
        return np.asarray(stats.beta.ppf(np.clip(share, 1e-9, 1 - 1e-9), 10 * self.mean, 10 * (1 - self.mean)))


@dataclass
class Coverage:
    """How many intervals were given, and how many of them held the truth."""

    drawn: int = 0
    sayable: int = 0
    """Samples of which enough boxes hold the structure."""
    given: int = 0
    held: int = 0

    def add(self, interval: Interval | None, truth: float, *, enough: bool = True) -> None:
        """Count an interval."""
        self.drawn += 1
        self.sayable += enough
        self.given += interval is not None
        self.held += interval is not None and interval[0] <= truth <= interval[1]

    @property
    def share(self) -> float:
        """Of the intervals given, those that hold the truth; nan where fewer than half were given."""
        return self.held / self.given if 2 * self.given >= self.drawn else np.nan


def percentile(values: Floats) -> Interval | None:
    """Return the percentile bootstrap's interval, None where half of the resamples have no score."""
    if np.isfinite(values).mean() < 0.5:
        return None
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def cover(population: Population, number: int, repetitions: int, *, before: bool = True) -> dict[str, Coverage]:
    """Draw boxes again and again, and count how often the intervals hold the truth.

    Parameters
    ----------
    population : Population
        With boxes of one volume each; both models have its mean.
    number : int
        Boxes drawn.
    repetitions : int
        How often.
    before : bool
        Whether to count the percentile bootstrap, too.
    """
    counts = population.counts(models=2)[:, :, 0]
    truth, other = dice_of(counts.sum(axis=1))
    rng = random_generator("coverage", number)
    results: dict[str, Coverage] = defaultdict(Coverage)
    for _ in range(repetitions):
        first, second = counts[:, rng.integers(0, len(counts[0]), number)]
        tables = [{"counts": c[:, None]} for c in (first, second)]
        score = score_estimate(DICE, tables[0], ["v"] * number)
        change = difference_estimate(DICE, tables[0], tables[1], ["v"] * number).difference
        filled, true = (int((first[:, columns].sum(axis=1) > 0).sum()) for columns in ([0, 1, 2], [0, 2]))
        results["score"].add(score.interval if score else None, truth, enough=true >= LEAST)
        results["difference"].add(change.interval if change else None, other - truth, enough=filled >= LEAST_OF_PAIR)
        if before:
            times = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(np.float64)
            dice = [dice_of(times @ c) for c in (first, second)]
            results["score before"].add(percentile(dice[0]), truth)
            results["difference before"].add(percentile(dice[1] - dice[0]), other - truth)
    return results


def cover_volumes(population: Population, number: int, repetitions: int) -> dict[str, Coverage]:
    """Draw volumes again and again; leave out their boxes, or whole volumes.

    Parameters
    ----------
    population : Population
        With several boxes of a volume.
    number : int
        Volumes drawn.
    repetitions : int
        How often.
    """
    counts = population.counts()[0]
    truth = float(dice_of(counts.sum(axis=(0, 1))))
    rng = random_generator("coverage of volumes", number)
    names: npt.NDArray[np.str_] = np.repeat([f"v{i}" for i in range(number)], population.of_volume)
    results: dict[str, Coverage] = defaultdict(Coverage)
    for _ in range(repetitions):
        tables = {"counts": counts[rng.integers(0, len(counts), number)].reshape(-1, 1, 3)}
        for what, volumes in (("boxes", ["v"] * len(names)), ("volumes", names.tolist())):
            score = score_estimate(DICE, tables, volumes)
            results[what].add(score.interval if score else None, truth)
    return results


def rows(repetitions: int) -> Iterator[tuple[Population, int, dict[str, Coverage]]]:
    """Yield the coverage of every population and number of boxes."""
    for size, mean, correlation in product(SIZES, MEANS, CORRELATIONS):
        for number in NUMBERS:
            population = Population(size, mean, correlation)
            yield population, number, cover(population, number, repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000, help="samples of each population")
    parser.add_argument("--volumes", action="store_true", help="boxes of volumes that differ")
    options = parser.parse_args()
    if options.volumes:
        print("boxes of a volume, spread between volumes, volumes: coverage leaving out boxes, volumes")
        for between, number in product((0.0, 0.5, 1.0, 2.0), (2, 4, 6, 8, 16)):
            of = cover_volumes(Population("spread 1", 0.85, 0.0, between, 4), number, options.repetitions)
            print(f"4 {between:3} {number:3}   {of['boxes'].share:.3f} {of['volumes'].share:.3f}", flush=True)
        return
    names = ("score before", "score", "difference before", "difference")
    print("foreground, mean, correlation, boxes: score percentile, jackknife; difference percentile, subsets")
    shares: dict[tuple[int, str], list[float]] = defaultdict(list)
    for population, number, of in rows(options.repetitions):
        for name in names:
            shares[number, name].append(of[name].share)
        figures = "  ".join(f"{of[name].share:.3f}" for name in names)
        print(f"{population.size:14} {population.mean:4} {population.correlation:4} {number:3}   {figures}", flush=True)
    for number in NUMBERS:
        figures = "  ".join(f"{np.nanmin(shares[number, n]):.3f} ({np.nanmean(shares[number, n]):.3f})" for n in names)
        print(f"{number:3} boxes, least (mean) over populations: {figures}")


if __name__ == "__main__":
    main()
