"""How often the 95 % intervals of query strategies hold the truth of a known population of seeds and boxes.

python tests/benchmarks/strategy_coverage.py --repetitions 500

Two strategies have the curve 0.85 − 0.35·exp(−v·loop), "slow" with v = 1 and "fast" with v = 2. On the logit scale, a box is
easier or harder for all trainings that it judges, those of all seeds or of one; a seed is better or worse for all loops of a
strategy, and a loop for all boxes of it by half as much; what is left scatters by box and training. Foreground of a box is
log-normal, its false positives are as many as its false negatives. The truth is that of very many boxes and seeds. "Student" is
`rescueseg.simulation.draws`, "with replacement" the percentile bootstrap over seeds, for comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from rescueseg.geometry import Floats
from rescueseg.randomness import random_generator
from rescueseg.simulation import draws as drawing
from rescueseg.simulation.annotation_needed import (
    amounts_needed,
    area_gain,
    first_reached,
    needed_ratio,
)
from rescueseg.simulation.draws import draws_of
from rescueseg.simulation.settings import AXES, SeedRuns, Setting
from rescueseg.simulation.statistics import aubc

LOOPS = 5
FULL = 0.85
SPEEDS = np.array([2.0, 1.0])
STRATEGIES = ("fast", "slow")
BUDGETS = 1000.0 * np.arange(1, LOOPS + 1)
QUESTIONS = ("needed, fast", "needed, slow", "ratio", "gain of area")


@dataclass(frozen=True)
class Population:
    """How much boxes, seeds and trainings scatter, on the logit scale."""

    boxes: float = 0.4
    seeds: float = 0.15
    rest: float = 0.1
    own_boxes: bool = False
    """Whether each seed has boxes of its own."""


POPULATIONS = (
    Population(),
    Population(seeds=0.05, rest=0.2),
    Population(boxes=0.8, seeds=0.1),
    Population(boxes=0.2, seeds=0.3),
    Population(own_boxes=True),
    Population(boxes=0.8, seeds=0.1, own_boxes=True),
)


def draw_setting(population: Population, seeds: int, boxes: int, *key: int | str) -> Setting:
    """Return a benchmark of that many seeds and boxes."""
    rng = random_generator("strategy coverage", *key)
    curve = logit(FULL - 0.35 * np.exp(-SPEEDS[:, None] * np.arange(LOOPS)))
    runs: list[SeedRuns] = []
    for seed in range(seeds):
        if population.own_boxes or not runs:
            voxels = np.exp(rng.normal(0, 0.7, boxes)) * 5000
            hardness = rng.normal(0, population.boxes, boxes)
        level = rng.normal(0, population.seeds, (2, 1, 1)) + rng.normal(0, population.seeds / 2, (2, LOOPS, 1))
        dice = expit(curve[..., None] + level + hardness + rng.normal(0, population.rest, (2, LOOPS, boxes)))
        full = expit(logit(FULL) + hardness + rng.normal(0, population.rest, (1, boxes)))
        names = tuple(f"{seed if population.own_boxes else 'any'}, {box}" for box in range(boxes))
        runs.append(SeedRuns(seed, names, _counts(dice, voxels), _counts(full, voxels)))
    amounts = {axis: np.broadcast_to(BUDGETS, (2, seeds, LOOPS)) for axis in AXES}
    return Setting("boxes", "low", STRATEGIES, tuple(runs), amounts)


def _counts(dice: Floats, voxels: Floats) -> Floats:
    """Return TP, FP and FN of one class with that Dice."""
    hit = np.rint(dice * voxels)
    missed = np.rint(voxels) - hit
    return np.stack([hit, missed, missed], axis=-1)[..., None, :]


def truth_of(population: Population) -> Floats:
    """Return the true answers to the questions."""
    many = [draw_setting(population, 20, 4000, "truth", part) for part in range(20)]
    dice = np.mean([setting.dice.mean(axis=1) for setting in many], axis=0)
    full = np.mean([setting.full_dice for setting in many])
    fast, slow = first_reached(np.broadcast_to(BUDGETS, dice.shape), dice, np.full(2, 0.95 * full))
    one, other = aubc(np.broadcast_to(BUDGETS, dice.shape), dice)
    return np.array([fast, slow, fast / slow, one - other])


def coverage(population: Population, seeds: int, boxes: int, repetitions: int, draws: int) -> Floats:
    """Return how often the intervals hold the truth, by question."""
    truth = truth_of(population)
    held = np.zeros(len(truth))
    for repetition in range(repetitions):
        setting = draw_setting(population, seeds, boxes, seeds, boxes, repetition)
        drawn = draws_of(setting, draws)
        needed = amounts_needed(setting, draws=drawn)
        answers = [needed[name].interval for name in STRATEGIES]
        answers += [
            needed_ratio(setting, *STRATEGIES, draws=drawn).interval,
            area_gain(setting, *STRATEGIES, drawn).interval,
        ]
        held += [ends is not None and ends[0] <= value <= ends[1] for ends, value in zip(answers, truth, strict=True)]
    return held / repetitions


def with_replacement(draws: int, number: int, rng: np.random.Generator) -> Floats:
    """Return the weights of seeds that are drawn with replacement."""
    return np.asarray(rng.multinomial(number, np.full(number, 1 / number), size=draws) / number)


def main() -> None:
    """Print the coverage of both ways."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--draws", type=int, default=500)
    arguments = parser.parse_args()
    ways: dict[str, Callable[[int, int, np.random.Generator], Floats]] = {
        "Student": drawing._seed_weights,
        "with replacement": with_replacement,
    }
    print(
        f"{'way':18}{'seeds':>6}{'boxes':>6}  {'scatter of boxes, seeds, rest':42}"
        + "".join(f"{q:>14}" for q in QUESTIONS)
    )
    for population in POPULATIONS:
        for seeds, boxes in ((3, 6), (4, 8), (4, 16), (8, 8)):
            for way, weights in ways.items():
                drawing._seed_weights = weights
                held = coverage(population, seeds, boxes, arguments.repetitions, arguments.draws)
                scatter = (
                    f"{population.boxes}, {population.seeds}, {population.rest}"
                    + ", boxes by seed" * population.own_boxes
                )
                print(f"{way:18}{seeds:6}{boxes:6}  {scatter:42}" + "".join(f"{h:14.3f}" for h in held), flush=True)


if __name__ == "__main__":
    main()
