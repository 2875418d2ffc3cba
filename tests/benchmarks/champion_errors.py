"""How often the champion moves although no generation is better, and how often a true gain is seen.

    python tests/benchmarks/champion_errors.py --campaigns 400

Each campaign compares nine generations with its champion. `before` is the rule that was replaced: the 2.5 and 97.5
percentiles of 5,000 paired resamples of the boxes, from eight boxes on. `after` is `rescueseg.evaluation.paired_test`. A
box's Dice is 0.75 and what the box, the generation and chance add; its foreground is the same in all boxes, or spreads (the
logarithm has a standard deviation of 1). The noise is that of a box's difference between two generations.

The first table tells in how many of 100 campaigns of ten equal generations the champion moves at all (5 are allowed), and in
how many a generation is called worse. With a common noise, a training shifts all boxes together: models then truly differ
although they were trained alike, and the test says so, for it speaks of these models and not of trainings. The second table
tells in how many of 100 a gain of 0.05 is seen at the first comparison, and by the last, when all nine generations have it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rescueseg.evaluation.paired_test import Decided, level_of, paired_test

GENERATIONS = 10
Rule = Callable[[np.ndarray, np.ndarray, list[Decided], np.random.Generator], tuple[str, float]]


@dataclass(frozen=True)
class Boxes:
    """What the boxes of a campaign are like.

    Parameters
    ----------
    name : str
        For people.
    count : int
        Boxes.
    spread : float
        Standard deviation of the logarithm of their foreground.
    noise : float
        Standard deviation of a box's difference between two generations.
    heavy : bool
        Whether it has heavy tails (Student's t with 3 degrees of freedom).
    common : float
        Standard deviation of what a training adds to all boxes.
    """

    name: str
    count: int
    spread: float = 0.0
    noise: float = 0.05
    heavy: bool = False
    common: float = 0.0

    def counts(self, gains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return TP, FP and FN of the generations with these gains: (generations, boxes, 1, 3)."""
        shape = len(gains), self.count
        chance = rng.standard_t(3, shape) / np.sqrt(3) if self.heavy else rng.normal(size=shape)
        dice = 0.75 + rng.normal(0, 0.1, self.count) + gains[:, None] + chance * self.noise / np.sqrt(2)
        dice = np.clip(dice + rng.normal(0, self.common, (len(gains), 1)), 0.01, 0.99)
        size = np.rint(5000 * np.exp(rng.normal(0, self.spread, self.count)))
        true = np.rint(dice * size)
        return np.stack([true, size - true, size - true], axis=-1)[:, :, None]


def after(
    champion: np.ndarray, candidate: np.ndarray, earlier: list[Decided], rng: np.random.Generator
) -> tuple[str, float]:
    """Return verdict and level by the exact paired test, at the level that the campaign has left."""
    test = paired_test(champion, candidate)
    level = level_of(earlier, GENERATIONS - 1, test.units)
    return "better" if test.better <= level else "worse" if test.worse <= level else "undecided", level


def before(
    champion: np.ndarray, candidate: np.ndarray, earlier: list[Decided], rng: np.random.Generator
) -> tuple[str, float]:
    """Return the verdict by percentiles of the bootstrap."""
    count = len(champion)
    if count < 8:
        return "undecided", 0.0
    times = rng.multinomial(count, np.full(count, 1 / count), size=5000).astype(float)
    one, two = (times @ table[:, 0] for table in (champion, candidate))
    dice = [2 * t[:, 0] / (2 * t[:, 0] + t[:, 1] + t[:, 2]) for t in (one, two)]
    low, high = np.percentile(dice[1] - dice[0], (2.5, 97.5))
    return "better" if low > 0 else "worse" if high < 0 else "undecided", 0.025


def campaign(boxes: Boxes, gains: np.ndarray, rule: Rule, rng: np.random.Generator) -> list[str]:
    """Return the verdicts of a campaign's comparisons, each with the champion so far."""
    counts = boxes.counts(gains, rng)
    champion, verdicts, earlier = 0, [], list[Decided]()
    for g in range(1, len(gains)):
        verdict, level = rule(counts[champion], counts[g], earlier, rng)
        earlier.append(Decided(level, verdict == "better"))
        verdicts.append(verdict)
        champion = g if verdict == "better" else champion
    return verdicts


def shares(boxes: Boxes, gain: float, rule: Rule, campaigns: int, seed: int = 0) -> dict[str, float]:
    """Return in how many of 100 campaigns the champion moves at the first comparison, at any, and one is called worse.

    All generations but the first have the gain.
    """
    rng = np.random.default_rng(seed)
    gains = np.array([0.0, *[gain] * (GENERATIONS - 1)])
    said = [campaign(boxes, gains, rule, rng) for _ in range(campaigns)]
    return {
        "first": 100 * float(np.mean([v[0] == "better" for v in said])),
        "any": 100 * float(np.mean(["better" in v for v in said])),
        "worse": 100 * float(np.mean(["worse" in v for v in said])),
    }


EQUAL = [
    *(Boxes(f"{n} boxes, equal", n) for n in (7, 8, 16)),
    *(Boxes(f"{n} boxes, foreground spread 1", n, spread=1.0) for n in (7, 8, 16)),
    Boxes("8 boxes, spread 1, heavy tails", 8, spread=1.0, heavy=True),
    Boxes("8 boxes, spread 1, common noise 0.02", 8, spread=1.0, common=0.02 / np.sqrt(2)),
    Boxes("16 boxes, spread 1, common noise 0.02", 16, spread=1.0, common=0.02 / np.sqrt(2)),
]
GAIN = [Boxes(f"{n} boxes, noise {sd:g}", n, noise=sd) for n in (7, 8, 16) for sd in (0.03, 0.05, 0.1)]


def main() -> None:
    """Print both tables, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=400, help="of each row")
    count = parser.parse_args().campaigns
    print(f"Of 100 campaigns of ten equal generations ({count} simulated)")
    print(f"{'':40} {'champion moves':>20} {'one is called worse':>24}")
    print(f"{'':40} {'before':>12} {'after':>7} {'before':>16} {'after':>7}")
    for boxes in EQUAL:
        old, new = (shares(boxes, 0.0, rule, count) for rule in (before, after))
        print(
            f"{boxes.name:40} {old['any']:12.1f} {new['any']:7.1f} {old['worse']:16.1f} {new['worse']:7.1f}", flush=True
        )
    print("\nOf 100 campaigns whose generations gain 0.05 over the first: the gain is seen")
    print(f"{'':40} {'at the first':>20} {'by the last':>24}")
    for boxes in GAIN:
        old, new = (shares(boxes, 0.05, rule, count) for rule in (before, after))
        print(
            f"{boxes.name:40} {old['first']:12.1f} {new['first']:7.1f} {old['any']:16.1f} {new['any']:7.1f}", flush=True
        )


if __name__ == "__main__":
    main()
