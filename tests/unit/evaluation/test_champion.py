"""The champion rule on evaluations made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rescueseg.evaluation.champion import Comparison, Judgement, compare, compare_models, dice_interval
from rescueseg.evaluation.metrics import Counts
from rescueseg.evaluation.scores import BoxScore, Evaluation
from rescueseg.geometry import Box


def evaluation(generation: int, counts: list[list[tuple[int, int, int]]], part: str = "validation") -> Evaluation:
    boxes = tuple(
        BoxScore(
            volume_id="v",
            box=Box((0, 0, 10 * i), (4, 4, 4)),
            part=part,  # type: ignore[arg-type]
            stratum="",
            voxels=64,
            errors=0,
            counts=tuple(Counts(tp=t, fp=p, fn=n) for t, p, n in box),
            dice=0.0,
            surface_dice=None,
            hd95_um=None,
            uncertainty=0.0,
            truth_digest="same",
        )
        for i, box in enumerate(counts)
    )
    return Evaluation(generation=generation, model_digest="m", validation=None, test=None, boxes=boxes)


WEAK = [[(10, 5 + i % 3, 10)] for i in range(8)]
STRONG = [[(18, 3 + i % 3, 2)] for i in range(8)]
NOISE = [[(10 + (3 if i % 2 else -3), 5, 10)] for i in range(8)]


def test_a_clear_winner_is_better_and_the_other_way_round_worse() -> None:
    better = compare(evaluation(1, STRONG), evaluation(0, WEAK))
    assert better.verdict == "better"
    assert better.interval is not None
    assert better.interval[0] > 0
    worse = compare(evaluation(1, WEAK), evaluation(0, STRONG))
    assert worse.verdict == "worse"
    assert worse.difference == pytest.approx(-better.difference)


def test_the_figures_say_how_surely_and_on_what() -> None:
    result = compare(evaluation(1, STRONG), evaluation(0, WEAK))
    assert (result.p_value, result.level, result.volumes) == (1 / 256, 0.025, 1)
    assert result.interval is not None
    low, high = result.interval
    assert result.sentence() == (
        f"Generation 1 is better than generation 0: validation Dice {result.difference:+.3f} (95 % interval {low:+.3f} to "
        f"{high:+.3f}) over 8 boxes of this one volume; equal models would differ as much in 0.4 % of cases, "
        "and it takes 2.5 % or less to decide"
    )


def test_boxes_of_eight_volumes_change_places_with_their_volume() -> None:
    """Each of eight volumes gains a little, most in one of its two boxes what it loses in the other."""
    rows = [[(10 + (4 if i % 2 else -4), 5, 5)] for i in range(16)]

    def spread(of: Evaluation, volumes: int) -> Evaluation:
        boxes = (b.model_copy(update={"volume_id": f"v{i // 2 % volumes}"}) for i, b in enumerate(of.boxes))
        return of.model_copy(update={"boxes": tuple(boxes)})

    pair = evaluation(1, [[(11, 5, 5)] for _ in rows]), evaluation(0, rows)
    whole = compare(*(spread(e, 8) for e in pair))
    assert whole.volumes == 8
    assert whole.p_value == 1 / 256, "two boxes of 11 are better than one of 6 and one of 14 together"
    assert "over 16 boxes of 8 volumes" in whole.reason
    single = compare(*(spread(e, 7) for e in pair))
    assert "over 16 boxes of these 7 volumes" in single.reason
    assert (single.p_value or 0) > 0.1, "box by box, half of them speak against it"


def judged(*comparisons: Comparison | None) -> list[Judgement]:
    return [
        Judgement(
            evaluation=evaluation(g, []), champion=0, comparison=comparison, annotated_patches=4, annotated_voxels=1
        )
        for g, comparison in enumerate(comparisons)
    ]


def test_a_pair_that_was_judged_is_decided_at_its_level_and_turned_round_says_the_opposite() -> None:
    weak, strong = evaluation(0, WEAK[:7]), evaluation(1, STRONG[:7])
    history = judged(None, compare(strong, weak, level=1 / 256))
    assert compare_models(weak, strong, history) == history[1].comparison
    assert compare_models(weak, strong, history).verdict == "undecided"
    assert compare_models(strong, weak, history).level == 1 / 256
    other = strong.model_copy(update={"model_digest": "another"})
    assert (compare_models(weak, other, history).level, compare_models(weak, other, history).verdict) == (
        0.025,
        "better",
    )
    there, back = compare_models(weak, strong, []), compare_models(strong, weak, [])
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert (back.p_value, back.difference) == (there.p_value, -there.difference)


def test_a_comparison_of_an_older_version_is_read_and_says_what_it_said() -> None:
    old = Comparison.model_validate(
        {"verdict": "better", "difference": 0.1, "interval": [0.05, 0.15], "boxes": 8, "candidate": 1, "champion": 0,
         "reason": "validation Dice +0.100 (95 % interval +0.050 to +0.150) over 8 boxes"}
    )  # fmt: skip
    assert (old.p_value, old.level, old.volumes) == (None, None, None)
    assert old.sentence() == f"Generation 1 is better than generation 0: {old.reason}"
    weak, strong = evaluation(0, WEAK), evaluation(1, STRONG)
    assert compare_models(weak, strong, judged(None, old)).level == 0.025


def test_noise_is_undecided() -> None:
    result = compare(evaluation(1, NOISE), evaluation(0, WEAK))
    assert result.verdict == "undecided"
    assert result.interval is not None
    assert result.interval[0] < 0 < result.interval[1]


def test_equal_results_are_undecided() -> None:
    result = compare(evaluation(1, WEAK), evaluation(0, WEAK))
    assert (result.verdict, result.difference, result.interval) == ("undecided", 0.0, None)


def test_seven_boxes_decide_and_four_do_not() -> None:
    seven = compare(evaluation(1, STRONG[:7]), evaluation(0, WEAK[:7]))
    assert (seven.verdict, seven.boxes) == ("better", 7)
    assert seven.interval is not None
    assert seven.interval[0] > 0
    assert seven.p_value == 1 / 128
    four = compare(evaluation(1, STRONG[:4]), evaluation(0, WEAK[:4]))
    assert (four.verdict, four.p_value) == ("undecided", 1 / 16)
    assert four.difference > 0


def test_test_boxes_have_no_say() -> None:
    result = compare(evaluation(1, STRONG, "test"), evaluation(0, WEAK, "test"))
    assert (result.verdict, result.boxes) == ("undecided", 0)


def test_boxes_whose_truth_changed_are_not_compared() -> None:
    candidate = evaluation(1, STRONG)
    changed = tuple(
        b.model_copy(update={"truth_digest": "new"}) if i == 0 else b for i, b in enumerate(candidate.boxes)
    )
    assert compare(candidate.model_copy(update={"boxes": changed}), evaluation(0, WEAK)).boxes == 7


def test_a_class_that_truth_holds_nowhere_is_not_compared_and_the_sentence_says_so() -> None:
    honest = [[(10, 5, 5), (0, 0, 0)] for _ in range(8)]
    inventor = [[(10, 5, 5), (0, 9, 0)] for _ in range(8)]
    result = compare(evaluation(1, inventor), evaluation(0, honest))
    assert (result.verdict, result.difference) == ("undecided", 0.0)
    assert "a class that truth holds nowhere is left out" in result.reason


def test_boxes_without_any_class_in_truth_decide_nothing() -> None:
    result = compare(evaluation(1, [[(0, 0, 0)]] * 8), evaluation(0, [[(0, 9, 0)]] * 8))
    assert (result.verdict, result.difference, result.interval) == ("undecided", None, None)
    assert result.reason == "nothing is there in 8 boxes of this one volume, so that there is no Dice to compare"


def test_dice_interval_holds_the_pooled_dice() -> None:
    interval = dice_interval(evaluation(0, NOISE), "validation")
    assert interval is not None
    tp, fp, fn = np.sum(NOISE, axis=(0, 1))
    assert interval[0] <= 2 * tp / (2 * tp + fp + fn) <= interval[1]
    assert dice_interval(evaluation(0, NOISE[:1]), "validation") is None


def test_the_numbers_of_the_comparison_stay_between_versions() -> None:
    """A rerun must decide as the first run did: nothing is drawn for the interval."""
    result = compare(evaluation(1, NOISE), evaluation(0, WEAK))
    assert result.difference == pytest.approx(0.013937282229965153, rel=1e-11)
    assert result.interval == pytest.approx((-0.07239462163245097, 0.08249289899442515), rel=1e-9)
