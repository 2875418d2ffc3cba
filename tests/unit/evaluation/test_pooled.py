"""Groups of boxes, weights of the pool, intervals and paired differences, on boxes made by hand."""

from __future__ import annotations

from functools import reduce
from operator import add
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.errors import EvaluationError
from rescueseg.evaluation.champion import dice_interval
from rescueseg.evaluation.comparison import compare_generations
from rescueseg.evaluation.instances import Instances
from rescueseg.evaluation.metric_table import METRICS
from rescueseg.evaluation.metrics import UNCERTAINTY_BINS, Bins, Counts
from rescueseg.evaluation.pooled import effective_boxes, flat_scores, group_scores, part_score, pool_weights
from rescueseg.evaluation.scores import FORMAT, BoxScore, ClassDetail, Evaluation
from rescueseg.evaluation.topology import Topology
from rescueseg.geometry import Box

CLASSES = ("membrane", "vesicle")
NAMES = {metric.name for metric in METRICS}


def box_score(
    index: int, counts: list[tuple[int, int, int]], *, stratum: str = "typical", share: float | None = 1.0, **more: str
) -> BoxScore:
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
                found_betti=(1 + fp, fn, 0),
                true_betti=(1, 0, 0),
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
        share=share,
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
    hard = [box_score(i, [(round(40 * quality) + i, 30, 30)], stratum="dense", share=0.1) for i in range(6)]
    return evaluation([*hard, *(box_score(6 + i, [(90, 5, 5)], share=0.9) for i in range(2))])


def test_weighted_scores_are_those_of_the_pool() -> None:
    groups = group_scores(easy_and_hard(), "test", ("a",))
    whole = groups[0]
    counts = np.array([[(40 + i, 30, 30) for i in range(6)]]).reshape(6, 3)
    pooled = 0.1 * counts.mean(axis=0) + 0.9 * np.array((90, 5, 5))
    assert whole.weighted["dice"].value == pytest.approx(2 * pooled[0] / (2 * pooled[0] + pooled[1] + pooled[2]))
    assert whole.weighted["precision"].value == pytest.approx(pooled[0] / (pooled[0] + pooled[1]))
    plain, weighted = whole.plain["dice"].value, whole.weighted["dice"].value
    assert plain is not None
    assert weighted is not None
    assert weighted > plain + 0.1, "the boxes over-represent the hard"
    assert whole.weighted["betti0_error"].value == pytest.approx(0.1 * 30 + 0.9 * 5)
    assert [(g.kind, g.name, g.boxes) for g in groups] == [
        ("all", "", 8),
        ("stratum", "dense", 6),
        ("stratum", "typical", 2),
    ]
    assert all(g.weighted == {} for g in groups[1:])


def test_weighted_figures_count_as_few_boxes_as_carry_them() -> None:
    """Two of eight boxes hold nine tenths of the weight: 2.4 boxes of equal weight, too few for an interval or a verdict."""
    weak, strong = easy_and_hard(0.2), easy_and_hard()
    whole = group_scores(strong, "test", ("a",))[0]
    assert whole.pool is not None
    assert whole.pool.covered == 1.0
    assert whole.pool.effective == pytest.approx(1 / (6 * (0.1 / 6) ** 2 + 2 * 0.45**2))
    assert whole.pool.sentence() == "The boxes stand for 100 % of the pool; weighted, they count as 2.5"
    assert whole.plain["dice"].interval is not None
    assert all(figure.interval is None for figure in whole.weighted.values())
    found = compare_generations(weak, strong, "test", ("a",))[0]
    assert found.plain["dice"].verdict == "better"
    assert found.weighted["dice"].difference is not None
    assert found.weighted["dice"].difference > 0
    assert (found.weighted["dice"].interval, found.weighted["dice"].verdict) == (None, "undecided")
    assert flat_scores(strong, ("a",))["test_pool_effective_boxes"] == whole.pool.effective


def test_of_fewer_than_eight_effective_boxes_no_verdict_comes() -> None:
    def of(quality: int) -> Evaluation:
        heavy = [box_score(0, [(quality, 10, 10)], stratum="typical", share=0.3)]
        light = [box_score(1 + i, [(quality + i, 10, 10)], stratum="dense", share=0.7) for i in range(8)]
        return evaluation([*heavy, *light])

    found = compare_generations(of(20), of(60), "test", ("a",))[0]
    assert found.pool is not None
    assert 4 < found.pool.effective < 8 < found.boxes
    interval = found.weighted["dice"].interval
    assert interval is not None
    assert interval[0] > 0
    assert (found.plain["dice"].verdict, found.weighted["dice"].verdict) == ("better", "undecided")


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_effective_boxes_are_at_most_the_boxes(weights: list[float]) -> None:
    effective = effective_boxes(np.array(weights))
    assert 1 <= effective <= len(weights) + 1e-6
    assert effective_boxes(np.full(len(weights), weights[0])) == len(weights)


@pytest.mark.parametrize(("share", "weighted"), [(0.19, True), (0.21, False)])
def test_without_a_box_for_a_fifth_of_the_pool_nothing_is_weighted(share: float, weighted: bool) -> None:
    """A stratum whose boxes are all marked ignore is missing from the estimate, which then is not the pool's."""
    known = [box_score(i, [(50, 5, 5)], stratum="dense", share=1 - share) for i in range(8)]
    ignored = box_score(8, [(0, 0, 0)], stratum="typical", share=share).model_copy(update={"voxels": 0})
    group = group_scores(evaluation([*known, ignored]), "test", ("a",))[0]
    assert group.pool is not None
    assert group.pool.covered == pytest.approx(1 - share)
    assert bool(group.weighted) == weighted
    if not weighted:
        assert group.pool.sentence() == "Not weighted to the pool: the boxes stand for 79 % of it, 80 % are needed"
        assert not any(name.startswith("test_pool") for name in flat_scores(evaluation([*known, ignored]), ("a",)))


def test_a_domain_is_not_weighted_by_the_shares_of_the_whole_pool() -> None:
    boxes = [box_score(i, [(9, 1, 1)], domain=f"microscope {i % 2}") for i in range(8)]
    groups = {(g.kind, g.name): g for g in group_scores(evaluation(boxes), "test", ("a",))}
    assert groups["all", ""].weighted
    compared = {(g.kind, g.name): g for g in compare_generations(evaluation(boxes), evaluation(boxes), "test", ("a",))}
    for found in (groups, compared):
        domain = found["domain", "microscope 0"]
        assert (domain.weighted, domain.pool) == ({}, None)


def test_without_shares_nothing_is_weighted() -> None:
    boxes = [box_score(0, [(1, 1, 1)], share=None), box_score(1, [(1, 1, 1)])]
    assert pool_weights(boxes) is None
    assert group_scores(evaluation(boxes), "test", ("a",))[0].weighted == {}


def test_every_score_by_hand_over_two_boxes() -> None:
    found = group_scores(evaluation([box_score(0, [(6, 2, 0)]), box_score(1, [(2, 0, 2)])]), "test", ("a",))[0].plain
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
    assert groups[1].plain["dice"].value == pytest.approx(0.9)
    assert groups[0].plain["dice"].value == pytest.approx((0.9 + 0.5) / 2)
    assert "ece" not in groups[1].plain, "calibration is that of the predicted class, whichever it is"


counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))


@given(st.lists(st.lists(counts, min_size=2, max_size=2), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_the_scores_of_a_part_are_the_means_over_its_classes(table: list[list[tuple[int, int, int]]]) -> None:
    """Read from the counts by hand: the table of the groups and what is stored of the part both say so."""
    boxes = [box_score(i, row) for i, row in enumerate(table)]
    part = part_score("test", boxes, CLASSES)
    assert part is not None
    found = group_scores(evaluation(boxes), "test", CLASSES, resamples=10)[0].plain
    pooled = [reduce(add, (b.counts[c] for b in boxes)) for c in range(2)]
    details = [[b.details[c] for b in boxes if b.details[c].surface_dice is not None] for c in range(2)]
    for name in ("dice", "iou", "precision", "recall", "surface_dice", "hd95_um"):
        if name in ("surface_dice", "hd95_um"):
            of_class = [mean(getattr(d, name) for d in own) if own else None for own in details]
        else:
            of_class = [getattr(counts, name) if counts.occurs else None for counts in pooled]
        for score, expected in zip(part.classes, of_class, strict=True):
            assert getattr(score, name) == (None if expected is None else pytest.approx(expected))
        values = [value for value in of_class if value is not None]
        assert getattr(part, name) == (pytest.approx(mean(values)) if values else None)
        assert (found[name].value if name in found else None) == getattr(part, name)
    assert [score.counts for score in part.classes] == pooled
    assert part.ece == found["ece"].value == pytest.approx(part.calibration.calibration_error())


def test_intervals_hold_the_score_and_need_four_boxes() -> None:
    groups = {g.name: g for g in group_scores(easy_and_hard(), "test", ("a",), seed=3)}
    for name in ("dice", "recall", "cldice"):
        figure = groups[""].plain[name]
        assert figure.interval is not None
        assert figure.value is not None
        assert figure.interval[0] <= figure.value <= figure.interval[1]
        assert figure.interval[0] < figure.interval[1]
    assert groups["typical"].plain["dice"].interval is None
    assert group_scores(easy_and_hard(), "test", ("a",), seed=3)[0] == groups[""]


def test_equal_boxes_have_no_spread() -> None:
    boxes = [box_score(i, [(9, 1, 1)]) for i in range(8)]
    figure = group_scores(evaluation(boxes), "test", ("a",))[0].plain["dice"]
    assert figure.interval == (pytest.approx(0.9), pytest.approx(0.9))


def test_the_better_one_is_better_by_each_score_in_its_direction() -> None:
    first = evaluation([box_score(i, [(40 + i, 20, 20 + i)]) for i in range(8)], 0)
    second = evaluation([box_score(i, [(70 + i, 5, 10)]) for i in range(8)], 1)
    found = compare_generations(first, second, "test", ("a",))[0].plain
    for name in ("dice", "recall", "cldice", "pq", "hd95_um", "betti0_error", "betti1_error", "aurc"):
        assert found[name].verdict == "better", name
    assert found["vi"].verdict == "undecided"
    back = compare_generations(second, first, "test", ("a",))[0].plain
    assert back["hd95_um"].verdict == "worse"
    assert back["dice"].difference == pytest.approx(-(found["dice"].difference or 0))
    assert back["dice"].interval == pytest.approx([-v for v in reversed(found["dice"].interval or ())])


def test_a_generation_cannot_be_told_from_itself() -> None:
    for group in compare_generations(easy_and_hard(), easy_and_hard(), "test", ("a",)):
        for found in (*group.plain.values(), *group.weighted.values()):
            assert (found.verdict, found.difference) == ("undecided", 0.0)


def test_few_boxes_never_decide() -> None:
    first = evaluation([box_score(i, [(40, 20, 20)]) for i in range(7)], 0)
    second = evaluation([box_score(i, [(70, 0, 0)]) for i in range(7)], 1)
    found = compare_generations(first, second, "test", ("a",))[0].plain["dice"]
    assert found.interval is not None
    assert found.interval[0] > 0
    assert found.verdict == "undecided"


def test_an_invented_class_costs_its_inventor_alone() -> None:
    honest = evaluation([box_score(i, [(50, 5, 5), (0, 0, 0)]) for i in range(8)], 0)
    inventor = evaluation([box_score(i, [(50, 5, 5), (0, 9, 0)]) for i in range(8)], 1)
    found = compare_generations(honest, inventor, "test", CLASSES)[0].plain
    for name in ("dice", "precision", "recall"):
        assert found[name].verdict == "worse", name


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
    assert flat["test_cldice"] == whole.plain["cldice"].value
    assert flat["test_pool_dice"] == whole.weighted["dice"].value
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
    assert "dice" not in groups["sparse"].plain
    assert "ece" in groups["sparse"].plain
    assert (groups["sparse"].foreground, groups["typical"].foreground) == (0.0, 0.01)
    assert groups[""].plain["dice"].value == pytest.approx(0.5)
    assert groups[""].plain["dice"].interval == (pytest.approx(0.5), pytest.approx(0.5))
    inventor = [box_score(i, [(0, 9, 0)], stratum="sparse") for i in range(4)]
    for second, (difference, values) in (
        (empty, (0.0, (None, None))),
        (inventor, (-1.0, (1.0, 0.0))),
    ):
        found = compare_generations(evaluation(empty), evaluation(second, 1), "test", ("a",))[0].plain["dice"]
        assert (found.difference, (found.first, found.second)) == (difference, values)


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
        assert dice_interval(each, "test") == group_scores(each, "test", ("a",))[0].plain["dice"].interval
