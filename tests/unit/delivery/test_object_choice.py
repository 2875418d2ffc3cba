"""How objects are made is chosen by how well they match numbered ones: balls that touch, balls apart, crumbs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from rescueseg.delivery.masks import mask_of_box
from rescueseg.delivery.object_choice import OBJECT_TRIALS, choose_objects
from rescueseg.delivery.objects import objects_of_box
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.validation import ValidationBox
from rescueseg.evaluation.instances import compare_instances
from rescueseg.postprocessing.object_rule import ObjectRule
from tests.touching_balls import SHAPE, SPACING, flow_to_middles, maps_of, truth

INNER = (slice(2, 22), slice(4, 56), slice(4, 62))
TOUCHING = truth()
APART = np.where(np.isin(TOUCHING, (1, 4)), TOUCHING, 0)


def maps_without_gaps(balls: np.ndarray) -> dict[str, np.ndarray]:
    """Return the maps of a model that sees no gap between balls that touch, but knows how far the border of each is."""
    foreground = ndimage.gaussian_filter(np.where(balls > 0, 0.97, 0.03), (0.4, 1, 1))
    numbers = np.unique(balls[balls > 0])
    distance = np.max([ndimage.distance_transform_edt(balls == n, sampling=SPACING) for n in numbers], axis=0)
    probability = np.stack([1 - foreground, foreground]).astype(np.float32)
    return {"probability": probability, "border_distance": distance[np.newaxis].astype(np.float32)}


def box_of(balls: np.ndarray, boundary: bool = False) -> ValidationBox:
    """Return a box with a margin; its truth is what the maps were made of."""
    maps = maps_of(balls, boundary=True) if boundary else maps_without_gaps(balls)
    classes = (balls > 0).astype(np.uint8)
    if boundary:
        classes = np.where(maps["probability"].argmax(axis=0) == 2, 2, classes).astype(np.uint8)
    return ValidationBox(SPACING, maps, INNER, classes[INNER], balls[INNER], whole=True)


def plain(n_classes: int = 1) -> DeliveryRule:
    return DeliveryRule(model_digest="m", truth_digest="t", cleanup=(CleanUp(),) * n_classes)


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += done == total


def quality(rule: DeliveryRule, boxes: list[ValidationBox]) -> float:
    """Return panoptic quality from its definition."""
    iou, wrong, matched = 0.0, 0, 0
    for box in boxes:
        mask = mask_of_box(box.maps["probability"], rule, box.spacing_um_zyx)
        made = objects_of_box(mask, box.maps, rule, box.spacing_um_zyx)[box.inner]
        assert box.objects is not None
        pairs = compare_instances(made, box.objects)
        iou, matched = iou + pairs.iou, matched + pairs.matched[0]
        wrong += pairs.found + pairs.true - 2 * pairs.matched[0]
    return iou / (matched + wrong / 2)


def test_balls_that_touch_are_parted() -> None:
    boxes, report = [box_of(TOUCHING)], Counter()
    rule, trials = choose_objects(boxes, plain(), None, report)
    assert rule.objects is not None
    assert rule.objects.source != "pieces"
    assert rule.object_class == 1
    pieces, *others = trials
    assert pieces.what == "objects: connected pieces"
    assert not pieces.chosen
    assert {t.what.split(",")[0] for t in others} == {
        "objects: basins of the probability",
        "objects: basins of the distance to the mask's border",
        "objects: basins of the model's border distance",
    }
    assert len(trials) == report.calls <= OBJECT_TRIALS
    best = max(t.score for t in trials if t.chosen)
    assert best == pytest.approx(quality(rule, boxes), abs=1e-6)
    assert pieces.score == pytest.approx(
        quality(rule.model_copy(update={"objects": ObjectRule(source="pieces")}), boxes), abs=1e-6
    )
    assert best > pieces.score + 0.2
    assert choose_objects(boxes, plain(), None, report)[0] == rule


def with_flow(box: ValidationBox, balls: np.ndarray) -> ValidationBox:
    """Return a box whose model says no border distance but where the middle of each ball lies."""
    flow = flow_to_middles(balls, 0.3, np.random.default_rng(0))
    return replace(box, maps={"probability": box.maps["probability"], "flow": flow})


def test_a_flow_parts_balls_that_touch() -> None:
    boxes, report = [with_flow(box_of(TOUCHING), TOUCHING)], Counter()
    rule, trials = choose_objects(boxes, plain(), None, report)
    assert rule.objects is not None
    assert rule.objects.source == "flow"
    assert "objects: basins of the model's flow" in {t.what.split(",")[0] for t in trials}
    assert all("µm deep, summed up over" in t.what for t in trials if "flow" in t.what)
    assert len(trials) == report.calls <= OBJECT_TRIALS
    assert max(t.score for t in trials if t.chosen) > 0.95


def test_balls_apart_stay_connected_pieces() -> None:
    rule, trials = choose_objects([box_of(APART)], plain(), None, Counter())
    assert rule.objects == ObjectRule(source="pieces")
    assert [t.what for t in trials if t.chosen] == ["objects: connected pieces"]


def test_crumbs_are_left_out() -> None:
    box = box_of(APART)
    probability = box.maps["probability"].copy()
    for z, y, x in np.ndindex(3, 4, 4):
        place = (2 + 9 * z, 5 + 16 * y, 5 + 17 * x)
        if not APART[place[0] - 2 : place[0] + 3, place[1] - 3 : place[1] + 4, place[2] - 3 : place[2] + 4].any():
            probability[0][place], probability[1][place] = 0.1, 0.9
    rule, trials = choose_objects([replace(box, maps={"probability": probability})], plain(), None, Counter())
    assert rule.objects is not None
    assert rule.objects.source == "pieces"
    assert rule.objects.smallest_um3 > np.prod(SPACING)
    first, last = [t for t in trials if t.chosen]
    assert last.what == f"objects: connected pieces, from {rule.objects.smallest_um3:g} µm³ on"
    assert last.score > first.score + 0.3


def test_a_boundary_class_makes_objects_of_what_it_parts() -> None:
    boxes = [box_of(TOUCHING, boundary=True)]
    rule, trials = choose_objects(boxes, plain(2), 2, Counter())
    assert rule.objects is not None
    assert (rule.objects.source, rule.object_class) == ("boundary", 2)
    assert all(t.what.startswith("objects: basins between boundaries") for t in trials)
    assert max(t.score for t in trials if t.chosen) > 0.7


def test_of_two_classes_that_with_numbers_is_taken() -> None:
    box = box_of(APART)
    maps = {"probability": np.insert(box.maps["probability"], 1, 1e-4, axis=0)}
    box = replace(box, maps=maps, truth=box.truth * np.uint8(2))
    rule, _ = choose_objects([box], plain(2), None, Counter())
    assert rule.object_class == 2
    assert quality(rule, [box]) > 0.5


def test_without_numbers_in_truth_nothing_is_tried() -> None:
    box = replace(box_of(APART), objects=None)
    rule, trials = choose_objects([box], plain(), None, Counter())
    assert rule.objects == ObjectRule(source="border_distance", depth=0.4)
    assert trials == ()
    flows = replace(with_flow(box_of(APART), APART), objects=None)
    assert choose_objects([flows], plain(), None, Counter())[0].objects == ObjectRule(source="flow", depth=0.1)
    without = replace(box, maps={"probability": box.maps["probability"]})
    assert choose_objects([without], plain(), None, Counter())[0].objects == ObjectRule(source="pieces")
    assert choose_objects([], plain(), None, Counter())[0].objects == ObjectRule(source="pieces")
    objects = choose_objects([], plain(2), 2, Counter())[0].objects
    assert objects is not None
    assert objects.source == "boundary"
    assert box.maps["probability"].shape[1:] == SHAPE
