"""Groups of boxes, intervals and paired differences, on boxes made by hand."""

from __future__ import annotations

from functools import reduce
from operator import add
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.errors import EvaluationError
from rescueseg.evaluation.champion import compare, dice_interval
from rescueseg.evaluation.comparison import compare_generations
from rescueseg.evaluation.instances import Instances
from rescueseg.evaluation.metric_table import METRICS
from rescueseg.evaluation.metrics import UNCERTAINTY_BINS, Bins, Counts
from rescueseg.evaluation.pooled import flat_scores, group_scores, part_score
from rescueseg.evaluation.scores import FORMAT, BoxScore, ClassDetail, Evaluation
from rescueseg.evaluation.topology import Topology
from rescueseg.geometry import Box

CLASSES = ("membrane", "vesicle")
NAMES = {metric.name for metric in METRICS}


def box_score(index: int, counts: list[tuple[int, int, int]], *, stratum: str = "typical", **more: str) -> BoxScore:
    """Return a complete score with the counts given; what else it holds follows from them."""
    voxels = 1000
    wrong = sum(fp + fn for _, fp, fn in counts)
    calibration, entropies = Bins(15, 1.0), Bins(UNCERTAINTY_BINS, 1.1, "logit")
    right = np.arange(voxels) >= wrong
    calibration.add(np.full(voxels, 0.9), right)
    entropies.add(np.where(right, 0.1, 0.8), right)
    details = tuple(
        ClassDetail(
            surface_dice=tp / (tp + fp + fn) if tp + fp + fn else None,
            hd95_um=0.1 * (fp + fn) if tp + fp + fn else None,
            topology=Topology(
                found_skeleton=tp + fp,
                found_inside=tp,
                true_skeleton=tp + fn,
                true_inside=tp,
                found_betti=(1 + fp if tp + fp else 0, fn, 0),
                true_betti=(1 if tp + fn else 0, 0, 0),
            ),
            instances=Instances(
                found=tp + fp, true=tp + fn, matched=(tp, tp // 2), iou=0.8 * tp, splits=0.5, merges=0.25
            ),
        )
        for tp, fp, fn in counts
    )
    return BoxScore(
        volume_id="v",
        box=Box((0, 0, 10 * index), (10, 10, 10)),
        part="test",
        stratum=stratum,
        voxels=voxels,
        errors=wrong,
        counts=tuple(Counts(tp=t, fp=p, fn=n) for t, p, n in counts),
        dice=0.0,
        surface_dice=None,
        hd95_um=None,
        uncertainty=0.0,
        truth_digest="same",
        details=details,
        calibration=calibration.result(),
        entropies=entropies.result(),
        **more,
    )


def evaluation(boxes: list[BoxScore], generation: int = 0) -> Evaluation:
    return Evaluation(
        generation=generation, model_digest="m", validation=None, test=None, boxes=tuple(boxes), format=FORMAT
    )


def easy_and_hard(quality: float = 1.0) -> Evaluation:
    """Return six hard boxes, a tenth of the pool, and two easy ones, the rest of it."""
    hard = [box_score(i, [(round(40 * quality) + i, 30, 30)], stratum="dense") for i in range(6)]
    return evaluation([*hard, *(box_score(6 + i, [(90, 5, 5)]) for i in range(2))])


def test_groups_are_all_boxes_and_each_stratum() -> None:
    groups = group_scores(easy_and_hard(), "test", ("a",))
    assert [(g.kind, g.name, g.boxes) for g in groups] == [
        ("all", "", 8),
        ("stratum", "dense", 6),
        ("stratum", "typical", 2),
    ]


def test_every_score_by_hand_over_two_boxes() -> None:
    found = group_scores(evaluation([box_score(0, [(6, 2, 0)]), box_score(1, [(2, 0, 2)])]), "test", ("a",))[0].scores
    wanted = {
        "dice": 16 / 20,
        "iou": 8 / 12,
        "precision": 8 / 10,
        "recall": 8 / 10,
        "surface_dice": (6 / 8 + 2 / 4) / 2,
        "hd95_um": 0.2,
        "cldice": 0.8,
        "betti0_error": 1.0,
        "betti1_error": 1.0,
        "betti2_error": 0.0,
        "ap50": 8 / 12,
        "ap75": 4 / (10 + 10 - 4),
        "pq": 0.8 * 8 / 10,
        "vi": 0.75,
        "vi_split": 0.5,
        "vi_merge": 0.25,
        "ece": 0.998 - 0.9,
        "error_auroc": 1.0,
    }
    assert {name: pytest.approx(figure.value) for name, figure in found.items() if name in wanted} == wanted
    assert set(found) == NAMES


def test_a_box_without_distances_counts_for_surface_dice_alone() -> None:
    """The class is in truth and prediction of one box, in one of the two in another: no distance is known there."""
    missed = box_score(1, [(0, 0, 4)])
    missed = missed.model_copy(update={"details": (missed.details[0].model_copy(update={"hd95_um": None}),)})
    found = group_scores(evaluation([box_score(0, [(6, 2, 0)]), missed]), "test", ("a",))[0].scores
    assert (found["surface_dice"].value, found["hd95_um"].value) == (pytest.approx(6 / 8 / 2), pytest.approx(0.2))
    assert "hd95_um" not in group_scores(evaluation([missed]), "test", ("a",))[0].scores


def test_a_class_has_a_row_and_domains_have_where_they_differ() -> None:
    boxes = [box_score(i, [(9, 1, 1), (5, 5, 5)], domain=f"microscope {i % 2}") for i in range(4)]
    groups = group_scores(evaluation(boxes), "test", CLASSES)
    assert [(g.kind, g.name) for g in groups] == [
        ("all", ""),
        ("class", "membrane"),
        ("class", "vesicle"),
        ("stratum", "typical"),
        ("domain", "microscope 0"),
        ("domain", "microscope 1"),
    ]
    assert groups[1].scores["dice"].value == pytest.approx(0.9)
    assert groups[0].scores["dice"].value == pytest.approx((0.9 + 0.5) / 2)
    assert "ece" not in groups[1].scores, "calibration is that of the predicted class, whichever it is"


counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))


@given(st.lists(st.lists(counts, min_size=2, max_size=2), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_the_scores_of_a_part_are_the_means_over_its_classes(table: list[list[tuple[int, int, int]]]) -> None:
    """Read from the counts by hand: the table of the groups and what is stored of the part both say so."""
    boxes = [box_score(i, row) for i, row in enumerate(table)]
    part = part_score("test", boxes, CLASSES)
    assert part is not None
    found = group_scores(evaluation(boxes), "test", CLASSES)[0].scores
    pooled = [reduce(add, (b.counts[c] for b in boxes)) for c in range(2)]
    details = [[b.details[c] for b in boxes if b.details[c].surface_dice is not None] for c in range(2)]
    for name in ("dice", "iou", "precision", "recall", "surface_dice", "hd95_um"):
        if name in ("surface_dice", "hd95_um"):
            of_class = [mean(getattr(d, name) for d in own) if own else None for own in details]
        else:
            of_class = [getattr(counts, name) for counts in pooled]
        for score, expected in zip(part.classes, of_class, strict=True):
            assert getattr(score, name) == (None if expected is None else pytest.approx(expected))
        values = [value for value in of_class if value is not None]
        assert getattr(part, name) == (pytest.approx(mean(values)) if values else None)
        assert (found[name].value if name in found else None) == getattr(part, name)
    assert [score.counts for score in part.classes] == pooled
    assert part.ece == found["ece"].value == pytest.approx(part.calibration.calibration_error())


def test_intervals_hold_the_score_and_need_four_boxes() -> None:
    groups = {g.name: g for g in group_scores(easy_and_hard(), "test", ("a",))}
    for name in ("dice", "recall", "cldice"):
        figure = groups[""].scores[name]
        assert figure.interval is not None
        assert figure.value is not None
        assert figure.interval[0] <= figure.value <= figure.interval[1]
        assert figure.interval[0] < figure.interval[1]
    assert groups["typical"].scores["dice"].interval is None


def test_equal_boxes_do_not_say_how_much_others_would_differ() -> None:
    boxes = [box_score(i, [(9, 1, 1)]) for i in range(8)]
    figure = group_scores(evaluation(boxes), "test", ("a",))[0].scores["dice"]
    assert (figure.value, figure.interval, figure.boxes) == (pytest.approx(0.9), None, 8)


def test_the_better_one_is_better_by_each_score_in_its_direction() -> None:
    first = evaluation([box_score(i, [(40 + i, 20 + i % 3, 20 + i)]) for i in range(8)], 0)
    second = evaluation([box_score(i, [(70 + i, 5, 10)]) for i in range(8)], 1)
    found = compare_generations(first, second, "test", ("a",))[0].differences
    for name in ("dice", "recall", "cldice", "pq", "hd95_um", "betti0_error", "betti1_error", "aurc"):
        gain, interval = found[name].difference, found[name].interval
        assert gain is not None, name
        assert interval is not None, name
        assert (gain > 0) == next(m.higher for m in METRICS if m.name == name), name
        assert interval[0] > 0 or interval[1] < 0, name
    assert found["vi"].difference == 0
    back = compare_generations(second, first, "test", ("a",))[0].differences
    assert back["dice"].difference == pytest.approx(-(found["dice"].difference or 0))
    assert back["dice"].interval == pytest.approx([-v for v in reversed(found["dice"].interval or ())])


def test_a_generation_cannot_be_told_from_itself() -> None:
    for group in compare_generations(easy_and_hard(), easy_and_hard(), "test", ("a",)):
        for found in group.differences.values():
            assert (found.difference, found.interval) == (0.0, None)


def test_a_class_that_truth_holds_nowhere_is_not_compared() -> None:
    honest = evaluation([box_score(i, [(50, 5, 5), (0, 0, 0)]) for i in range(8)], 0)
    inventor = evaluation([box_score(i, [(50, 5, 5), (0, 9, 0)]) for i in range(8)], 1)
    found = compare_generations(honest, inventor, "test", CLASSES)[0].differences
    for name, mine, other in (
        ("dice", 50 / 55, 50 / 55),
        ("precision", 50 / 55, 50 / 55),
        ("recall", 50 / 55, 50 / 55),
    ):
        assert (found[name].first, found[name].second) == (pytest.approx(mine), pytest.approx(other)), name


pairs = st.tuples(*(st.integers(0, 20) for _ in range(5)))
"""Voxels of the truth, and of both sides what each has right, at most those, and invents."""


@given(st.lists(st.lists(pairs, min_size=2, max_size=2), min_size=1, max_size=9), st.sampled_from([1, 2, 4, 9]))
@settings(deadline=None, max_examples=40)
def test_the_comparison_and_its_groups_give_the_same_figures(table: list[list[tuple[int, ...]]], volumes: int) -> None:
    def of(side: int) -> Evaluation:
        rows = [[(min(t, r[side]), r[2 + side], t - min(t, r[side])) for t, *r in row] for row in table]
        boxes = [box_score(i, row) for i, row in enumerate(rows)]
        changes = ({"volume_id": f"v{i % volumes}", "part": "validation"} for i in range(len(boxes)))
        return evaluation([b.model_copy(update=c) for b, c in zip(boxes, changes, strict=True)], side)

    first, second = of(0), of(1)
    dice = compare_generations(first, second, "validation", CLASSES)[0].differences["dice"]
    decision = compare(second, first)
    if dice.difference is not None:
        assert decision.difference == pytest.approx(dice.difference, abs=1e-9)
        assert decision.interval == (None if dice.interval is None else pytest.approx(dice.interval, abs=1e-9))


def test_only_boxes_with_the_same_truth_are_compared() -> None:
    first = easy_and_hard()
    changed = first.model_copy(
        update={"boxes": tuple(b.model_copy(update={"truth_digest": "new"}) for b in first.boxes)}
    )
    with pytest.raises(EvaluationError, match="no test box was judged with the same truth"):
        compare_generations(first, changed, "test", ("a",))
    half = first.model_copy(update={"boxes": (*changed.boxes[:4], *first.boxes[4:])})
    assert compare_generations(first, half, "test", ("a",))[0].boxes == 4


def test_flat_names_agree_with_the_table() -> None:
    flat = flat_scores(easy_and_hard(), ("a",))
    whole = group_scores(easy_and_hard(), "test", ("a",))[0]
    assert flat["test_cldice"] == whole.scores["cldice"].value
    assert not any(name.startswith("validation") for name in flat)
    stored = easy_and_hard().model_copy(update={"test": part_score("test", easy_and_hard().boxes, ("a",))})
    assert flat_scores(stored, ("a",)) == pytest.approx(flat), "one source: what is stored and what is pooled anew"
    earlier = stored.model_copy(update={"test": stored.test.model_copy(update={"dice": 0.125}), "format": 1})
    assert flat_scores(earlier, ("a",)) == earlier.metrics(), "of an evaluation that is not complete, what it stored"
    old = easy_and_hard().boxes[0].model_copy(update={"details": ()})
    assert flat_scores(evaluation([old]), ("a",)) == {}


def test_nothing_found_where_nothing_is_does_not_flatter() -> None:
    empty = [box_score(i, [(0, 0, 0)], stratum="sparse") for i in range(4)]
    boxes = [*empty, *(box_score(4 + i, [(5, 5, 5)]) for i in range(4))]
    groups = {g.name: g for g in group_scores(evaluation(boxes), "test", ("a",))}
    assert "dice" not in groups["sparse"].scores
    assert "ece" in groups["sparse"].scores
    assert (groups["sparse"].foreground, groups["typical"].foreground) == (0.0, 0.01)
    assert groups[""].scores["dice"].value == pytest.approx(0.5)
    assert groups[""].scores["dice"].boxes == 4, "of eight"
    inventor = [box_score(i, [(0, 9, 0)], stratum="sparse") for i in range(4)]
    for second, (difference, values) in (
        (empty, (None, (None, None))),
        (inventor, (None, (None, 0.0))),
    ):
        found = compare_generations(evaluation(empty), evaluation(second, 1), "test", ("a",))[0].differences["dice"]
        assert (found.difference, (found.first, found.second)) == (difference, values)


def test_a_score_says_in_how_many_boxes_it_is_defined() -> None:
    """One box holds the class in truth and prediction, one in truth, one in the prediction, one in neither."""
    boxes = [box_score(i, [row]) for i, row in enumerate([(6, 1, 1), (0, 0, 4), (0, 3, 0), (0, 0, 0)])]
    group = group_scores(evaluation(boxes), "test", ("a",))[0]
    defined = {name: figure.boxes for name, figure in group.scores.items()}
    expected = {"dice": 3, "iou": 3, "precision": 2, "recall": 2, "surface_dice": 3, "cldice": 3, "betti0_error": 3}
    assert {name: defined[name] for name in expected} == expected
    assert group.scores["dice"].value == pytest.approx(12 / 21)
    assert group.scores["betti0_error"].value == pytest.approx((1 + 1 + 4) / 3)
    part = part_score("test", boxes, ("a",))
    assert part is not None
    assert part.boxes_with == defined
    assert (part.boxes, group.boxes) == (4, 4)
    few = group_scores(evaluation(boxes[:3]), "test", ("a",))[0]
    assert few.about_intervals() == "No 95 % intervals: they need a score that differs over at least 4 boxes"
    assert "other boxes of these volumes" in group.about_intervals(), "the calibration error has an interval"


def test_scores_of_older_versions_are_still_read() -> None:
    """They gave 1 to a box in which nothing is, and did not say in how many boxes a score is defined."""
    boxes = [box_score(0, [(6, 1, 1)]), box_score(1, [(0, 0, 0)]).model_copy(update={"dice": 1.0})]
    whole = evaluation(boxes).model_copy(update={"test": part_score("test", boxes, ("a",)), "format": 3})
    stored = whole.model_dump(mode="json")
    del stored["test"]["boxes_with"]
    read = Evaluation.model_validate(stored)
    assert (read.boxes[1].dice, read.complete) == (1.0, False)
    assert read.test is not None
    assert (read.test.boxes_with, read.test.dice) == ({}, pytest.approx(12 / 14))


def test_an_empty_part_has_no_ratios() -> None:
    """Neither truth nor prediction holds anything: a Dice of 1 would flatter, in MLflow and in the stopping rule."""
    boxes = [box_score(i, [(0, 0, 0), (0, 0, 0)]) for i in range(4)]
    part = part_score("test", boxes, CLASSES)
    assert part is not None
    assert (part.dice, part.iou, part.precision, part.recall, part.surface_dice) == (None,) * 5
    assert set(part.metrics()) == {"test_ece"}
    found = part_score("test", [*boxes, box_score(4, [(3, 1, 1), (0, 0, 0)])], CLASSES)
    assert found is not None
    assert found.dice == pytest.approx(0.75)
    assert [c.dice for c in found.classes] == [pytest.approx(0.75), None]
    assert {"test_dice", "test_dice.membrane"} <= set(found.metrics())
    assert "test_dice.vesicle" not in found.metrics()


def test_the_champions_interval_is_the_tables() -> None:
    for each in (easy_and_hard(), evaluation([box_score(i, [(5 * (i % 3), i % 3, 2 * (i % 3))]) for i in range(9)])):
        assert dice_interval(each, "test") == group_scores(each, "test", ("a",))[0].scores["dice"].interval
