"""Intervals of scores and of paired differences: against plain loops, and against populations with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from rescueseg.evaluation.comparison import compare_generations
from rescueseg.evaluation.intervals import LEAST, difference_estimate, score_estimate
from rescueseg.evaluation.metric_table import DICE, METRICS, Metric, Tables
from rescueseg.evaluation.metrics import UNCERTAINTY_BINS, Bins
from rescueseg.evaluation.paired_test import SINGLE_LEVEL, paired_test
from rescueseg.evaluation.pooled import box_tables, group_scores
from rescueseg.evaluation.scores import BoxScore
from tests.benchmarks.interval_coverage import Population, cover, cover_volumes
from tests.unit.evaluation.test_pooled import CLASSES, box_score, evaluation

VOLUMES = ["v"] * 100


def varied_boxes(number: int, seed: int, classes: int = 2) -> list[BoxScore]:
    """Return boxes in which every score is defined in each class, and differs between boxes."""
    rng = np.random.default_rng(seed)
    boxes = []
    for i in range(number):
        box = box_score(i, [(int(t), int(p), int(n)) for t, p, n in rng.integers(10, 60, (classes, 3))])
        details = []
        for d in box.details:
            assert d.instances is not None
            topology = d.topology.model_copy(update={"found_betti": tuple(rng.integers(2, 9, 3).tolist())})
            objects = d.instances.model_copy(update={"splits": rng.uniform(0.1, 2), "merges": rng.uniform(0.1, 2)})
            details.append(d.model_copy(update={"topology": topology, "instances": objects}))
        entropies = Bins(UNCERTAINTY_BINS, 1.1, "logit")
        entropies.add(rng.uniform(0, 1.1, 1000), rng.random(1000) < 0.5)
        boxes.append(box.model_copy(update={"details": tuple(details), "entropies": entropies.result()}))
    return boxes


def tables_of(counts: npt.ArrayLike) -> Tables:
    """Return the table of one class from counts (boxes, 3), or of several from (boxes, K, 3)."""
    array = np.asarray(counts, np.float64)
    return {"counts": array[:, None] if array.ndim == 2 else array}


def value_of(metric: Metric, boxes: list[BoxScore]) -> float:
    return group_scores(evaluation(boxes), "test", CLASSES)[0].scores[metric.name].value


def half_width(changes: list[float]) -> float:
    """Return half the interval of a score by the formulas of the module's text."""
    n = len(changes)
    squares = [d * d for d in changes]
    freedom = max(1.5, sum(squares) ** 2 / sum(s * s for s in squares) - 1)
    return float(stats.t.ppf(0.975, freedom) * math.sqrt((n - 1) / n * sum(squares)))


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_every_score_has_the_interval_of_a_loop_that_leaves_out_each_box(metric: Metric) -> None:
    boxes = varied_boxes(7, seed=1)
    value = value_of(metric, boxes)
    others = [value_of(metric, boxes[:i] + boxes[i + 1 :]) for i in range(7)]
    score = score_estimate(metric, box_tables(boxes), VOLUMES[:7])
    assert score is not None
    assert score.interval is not None
    assert (score.value, score.boxes, score.units) == (pytest.approx(value), 7, "boxes")
    if math.isinf(metric.largest):
        half = half_width([(other - value) / value for other in others])
        expected = value * math.exp(-half), value * math.exp(half)
    else:
        half = half_width([(other - value) / (value * (1 - value)) for other in others])
        odds = value / (1 - value)
        expected = tuple(1 / (1 + math.exp(-sign * half) / odds) for sign in (-1, 1))
    assert score.interval == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_every_difference_has_the_interval_of_a_loop_over_all_subsets(metric: Metric) -> None:
    """What a box adds is half of what exchanging both generations in it changes; ends are the 2.5 % farthest of 255."""
    number = 8
    first, second = varied_boxes(number, seed=2), varied_boxes(number, seed=3)
    difference = value_of(metric, second) - value_of(metric, first)
    added = []
    for i in range(number):
        one = [second[j] if j == i else first[j] for j in range(number)]
        two = [first[j] if j == i else second[j] for j in range(number)]
        added.append((difference - (value_of(metric, two) - value_of(metric, one))) / 2)
    sizes = [metric.size(box_tables(boxes)) for boxes in (first, second)]
    shares = np.mean([(s / s.sum(axis=0)).mean(axis=1) for s in sizes], axis=0)
    added = [a + (difference - sum(added)) * share for a, share in zip(added, shares, strict=True)]
    subsets = [s for n in range(1, number + 1) for s in itertools.combinations(range(number), n)]
    values = sorted(sum(added[i] for i in s) / sum(shares[i] for i in s) for s in subsets)
    expected = max(values[5], -metric.largest), min(values[-6], metric.largest)
    pair = difference_estimate(metric, box_tables(first), box_tables(second), VOLUMES[:number])
    assert pair.difference is not None
    assert pair.difference.value == pytest.approx(difference)
    assert pair.difference.interval == pytest.approx(expected, rel=1e-6)
    back = difference_estimate(metric, box_tables(second), box_tables(first), VOLUMES[:number]).difference
    assert back is not None
    assert back.interval == pytest.approx((-expected[1], -expected[0]), rel=1e-6)


RATIOS = [m for m in METRICS if m.name not in ("cldice", "ece", "error_auroc", "aurc")]


@pytest.mark.parametrize("metric", RATIOS, ids=lambda m: m.name)
def test_a_score_is_the_mean_over_boxes_by_their_size(metric: Metric) -> None:
    boxes = varied_boxes(7, seed=4, classes=1)
    values = [group_scores(evaluation([box]), "test", ("a",))[0].scores[metric.name].value for box in boxes]
    sizes = metric.size(box_tables(boxes))[:, 0]
    whole = group_scores(evaluation(boxes), "test", ("a",))[0].scores[metric.name].value
    assert whole == pytest.approx(float(np.average(values, weights=sizes)))


def test_what_the_exact_test_decides_has_an_interval_on_one_side_of_0() -> None:
    """Both say the same of models that differ a little, on boxes of very different size, in nearly all cases."""
    rng = np.random.default_rng(11)
    agree = decided = 0
    for _ in range(300):
        size = np.exp(rng.normal(5, 1, 8))
        quality = rng.normal(0.7, 0.05, 8), rng.normal(0.77, 0.05, 8)
        first, second = (
            np.stack([size * q, size * (1 - q), size * (1 - q)], axis=-1)[:, None] for q in np.clip(quality, 0.05, 0.95)
        )
        test = paired_test(first, second)
        pair = difference_estimate(DICE, {"counts": first}, {"counts": second}, VOLUMES[:8]).difference
        assert pair is not None
        assert pair.interval is not None
        is_decided = min(test.better, test.worse) <= SINGLE_LEVEL
        decided += is_decided
        agree += is_decided == (pair.interval[0] > 0 or pair.interval[1] < 0)
    assert 100 < decided < 250
    assert agree >= 297


def test_with_enough_volumes_whole_volumes_are_left_out() -> None:
    """The interval is then that of one big box for each volume; with three volumes boxes are left out, and it says so."""
    counts = np.random.default_rng(5).integers(5, 60, (12, 3)).astype(np.float64)
    volumes = [f"v{i % 4}" for i in range(12)]
    by_volume = counts.reshape(3, 4, 3).sum(axis=0)
    score = score_estimate(DICE, tables_of(counts), volumes)
    whole = score_estimate(DICE, tables_of(by_volume), VOLUMES[:4])
    assert score is not None
    assert whole is not None
    assert whole.interval is not None
    assert (score.interval, score.units, score.boxes) == (pytest.approx(whole.interval), "volumes", 12)
    other = counts + np.random.default_rng(6).integers(0, 5, (12, 3))
    for number, units in ((7, "boxes"), (8, "volumes")):
        pair = difference_estimate(DICE, tables_of(counts), tables_of(other), [f"v{i % number}" for i in range(12)])
        assert pair.difference is not None
        assert pair.difference.units == units, "of a difference they are exchanged from eight on, as in the exact test"
    of_three = score_estimate(DICE, tables_of(counts), [f"v{i % 3}" for i in range(12)])
    of_one = score_estimate(DICE, tables_of(counts), VOLUMES[:12])
    assert of_three is not None
    assert of_three == of_one
    assert of_three.units == "boxes"


def rare_class(dice_of_rare: int) -> list[list[tuple[int, int, int]]]:
    """Return eight boxes of a class with a Dice near 0.9, and in one of them a class with a Dice of `dice_of_rare` percent."""
    common = [[(440 + 3 * i, 50, 50), (0, 0, 0)] for i in range(7)]
    return [*common, [(450, 50, 50), (dice_of_rare, 100 - dice_of_rare, 100 - dice_of_rare)]]


def test_a_class_in_one_box_has_no_interval_and_neither_has_the_mean_that_it_is_part_of() -> None:
    """Drawn again, a third of the samples lacked the class, and the mean over classes jumped from 0.6 to 0.9."""
    weak, strong = (
        evaluation([box_score(i, row) for i, row in enumerate(rare_class(dice))], generation)
        for generation, dice in enumerate((30, 80))
    )
    groups = {g.name: g.scores["dice"] for g in group_scores(weak, "test", CLASSES)[:3]}
    assert groups[""].value == pytest.approx(0.6, abs=0.01)
    assert (groups[""].interval, groups["vesicle"].interval, groups["vesicle"].boxes) == (None, None, 1)
    assert groups["membrane"].interval is not None
    assert 0.85 < groups["membrane"].interval[0] < groups["membrane"].interval[1] < 0.95
    found = compare_generations(weak, strong, "test", CLASSES)[0].differences["dice"]
    assert (found.difference, found.interval) == (pytest.approx(0.25, abs=0.01), None)


def test_a_class_in_enough_boxes_stays_in_the_mean_whatever_box_is_left_out() -> None:
    counts = np.random.default_rng(8).integers(5, 60, (9, 2, 3)).astype(np.float64)
    counts[LEAST:, 1] = 0
    score = score_estimate(DICE, tables_of(counts), VOLUMES[:9])
    assert score is not None
    assert score.interval is not None
    fewer = counts.copy()
    fewer[LEAST - 1 :, 1] = 0
    without = score_estimate(DICE, tables_of(fewer), VOLUMES[:9])
    assert without is not None
    assert without.interval is None


@pytest.mark.parametrize(
    "counts",
    [
        [(10, 0, 0), (30, 0, 0), (20, 0, 0), (12, 0, 0), (9, 0, 0)],
        [(0, 3, 1), (0, 2, 5), (0, 0, 7), (0, 1, 1), (0, 8, 0)],
        [(9, 1, 1)] * 8,
        [(9, 1, 1), (7, 2, 3), (8, 1, 0)],
        [(9, 1, 1), (7, 2, 3), (8, 1, 0), (0, 0, 0), (0, 0, 0)],
    ],
    ids=["all right", "all wrong", "equal boxes", "three boxes", "three boxes that hold the class"],
)
def test_there_is_no_interval_where_the_boxes_do_not_tell(counts: list[tuple[int, int, int]]) -> None:
    score = score_estimate(DICE, tables_of(counts), VOLUMES[: len(counts)])
    assert score is not None
    assert (score.interval, score.units) == (None, None)


def test_a_score_that_nothing_has_is_none() -> None:
    empty = tables_of([(0, 0, 0)] * 5)
    assert score_estimate(DICE, empty, VOLUMES[:5]) is None
    pair = difference_estimate(DICE, empty, tables_of([(0, 4, 0)] * 5), VOLUMES[:5])
    assert (pair.first, pair.second, pair.difference) == (None, 0.0, None)


def test_a_class_that_one_generation_does_not_predict_is_left_out_of_the_precision_of_both() -> None:
    """Else the one that misses it altogether would seem more precise."""
    precision = next(m for m in METRICS if m.name == "precision")
    blind = tables_of([[(90, 10 + i, 10), (0, 0, 50)] for i in range(5)])
    seeing = tables_of([[(90, 10 + i, 10), (30, 30, 20)] for i in range(5)])
    pair = difference_estimate(precision, blind, seeing, VOLUMES[:5])
    assert pair.first == pair.second
    dice = difference_estimate(DICE, blind, seeing, VOLUMES[:5])
    assert dice.difference is not None
    assert dice.difference.value == pytest.approx(60 / 110 / 2)


@pytest.mark.parametrize(
    "population",
    [
        Population("equal", 0.95),
        Population("spread 1", 0.85, -0.5),
        Population("Pareto 1.5", 0.6),
        Population("a third empty", 0.3),
    ],
    ids=lambda p: f"{p.size} {p.mean}",
)
@pytest.mark.parametrize("number", [8, 16])
def test_intervals_hold_the_truth_as_often_as_they_say(population: Population, number: int) -> None:
    """Some of what the benchmark prints: the equal boxes, and those that are most difficult."""
    found = cover(population, number, 800, before=False)
    for what in ("score", "difference"):
        assert found[what].share >= 0.93, what
        assert found[what].given >= 0.99 * found[what].sayable, what


def test_intervals_of_new_volumes_leave_out_volumes() -> None:
    found = cover_volumes(Population("spread 1", 0.85, between=2.0, of_volume=4), 8, 800)
    assert found["volumes"].share >= 0.93
    assert found["boxes"].share < 0.93, "boxes speak of these volumes only"


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
@pytest.mark.parametrize("seed", range(5))
def test_a_difference_lies_in_its_interval(metric: Metric, seed: int) -> None:
    """Also of scores that are no ratio of sums, in which the exchanges of single boxes do not add up to the whole."""
    first, second = varied_boxes(8, seed=20 + seed), varied_boxes(8, seed=40 + seed)
    pair = difference_estimate(metric, box_tables(first), box_tables(second), VOLUMES[:8]).difference
    assert pair is not None
    assert pair.interval is not None
    assert pair.interval[0] <= pair.value <= pair.interval[1]


def test_boxes_that_hold_nothing_of_a_class_give_its_score_no_interval() -> None:
    """What was invented in them lowers the Dice, but three boxes say nothing about how it would be in others."""
    counts = [(40, 10, 10), (50, 20, 5), (30, 9, 9), *[(0, 7 + i, 0) for i in range(5)]]
    score = score_estimate(DICE, tables_of(counts), VOLUMES[:8])
    assert score is not None
    assert (score.interval, score.boxes) == (None, 8)
