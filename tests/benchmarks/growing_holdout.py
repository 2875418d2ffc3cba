"""What a holdout that grows costs in decisions, against one that is whole from the start.

    python -m tests.benchmarks.growing_holdout --campaigns 400

Ten generations, each compared with its champion by `rescueseg.evaluation.paired_test` on as many validation boxes as there
are by then; the champion is judged on the new boxes too. A box's Dice is that of `tests/benchmarks/champion_errors.py`. The
gains over generation 0 are those of a usual campaign (0.10, 0.14, 0.17, 0.19, … +0.23), half of that, or none.

- moves by 1, 2, 4, 9: in how many of 100 campaigns the champion has moved at all by that generation.
- loss at 2, 4, 9: how much worse the champion's true Dice is than the best generation's so far, in hundredths of Dice.
- hours before: of the holdout that must be annotated before generation 0, both parts, five minutes a box.
"""

from __future__ import annotations

import argparse

import numpy as np

from rescueseg.evaluation.paired_test import Decided, level_of, paired_test
from rescueseg.sampling.effort import BOX_MINUTES
from tests.benchmarks.champion_errors import GENERATIONS, Boxes

GAINS = np.array([0.0, 0.10, 0.14, 0.17, 0.19, 0.20, 0.21, 0.22, 0.225, 0.23])
SCHEDULES = {
    "8 at once": (8,),
    "3, then 1 more each": (3, 4, 5, 6, 7, 8),
    "4, then 1 more each": (4, 5, 6, 7, 8),
    "2, then 2 more each": (2, 4, 6, 8),
    "3, then 2 more each": (3, 5, 7, 8),
    "4, then 2 more each": (4, 6, 8),
    "4, then all 8": (4, 8),
    "3, then all 8": (3, 8),
}


def campaign(counts: np.ndarray, schedule: tuple[int, ...]) -> list[int]:
    """Return who is champion after each generation."""
    champion, champions, earlier = 0, [0], list[Decided]()
    for g in range(1, len(counts)):
        boxes = schedule[min(g, len(schedule) - 1)]
        test = paired_test(counts[champion][:boxes], counts[g][:boxes])
        level = level_of(earlier, GENERATIONS - 1, test.units)
        better = test.better <= level
        earlier.append(Decided(level, better))
        champion = g if better else champion
        champions.append(champion)
    return champions


def row(schedule: tuple[int, ...], gains: np.ndarray, noise: float, campaigns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each generation, the share of campaigns in which the champion has moved, and the mean loss of Dice."""
    rng = np.random.default_rng(0)
    boxes = Boxes("", 8, spread=1.0, noise=noise)
    champions = np.array([campaign(boxes.counts(gains, rng), schedule) for _ in range(campaigns)])
    best = np.maximum.accumulate(gains)
    return (champions > 0).mean(axis=0), (best - gains[champions]).mean(axis=0)


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=400, help="of each row")
    count = parser.parse_args().campaigns
    print(
        f"{'gains':6} {'noise':5} {'validation boxes':22} {'hours before':>12} {'moves by 1, 2, 4, 9':>22} {'loss at 2, 4, 9':>18}"
    )
    for name, factor in (("usual", 1.0), ("half", 0.5), ("none", 0.0)):
        for noise in (0.05, 0.1):
            for title, schedule in SCHEDULES.items():
                moves, loss = row(schedule, factor * GAINS, noise, count)
                said = " ".join(f"{100 * moves[g]:5.0f}" for g in (1, 2, 4, 9))
                lost = " ".join(f"{100 * loss[g]:5.1f}" for g in (2, 4, 9))
                hours = 2 * schedule[0] * BOX_MINUTES / 60
                print(f"{name:6} {noise:5} {title:22} {hours:12.1f} {said:>22} {lost:>18}", flush=True)


if __name__ == "__main__":
    main()
