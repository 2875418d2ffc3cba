"""The choices that strategies are compared with, against counting by hand on small volumes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.active_learning.strategies import STRATEGIES, find_strategy
from rescueseg.errors import ConfigError
from rescueseg.geometry import Box, zyx
from rescueseg.simulation.choices import (
    Choice,
    Pool,
    Targets,
    clear_pieces,
    error_patches,
    foreground_patches,
    label_targets,
    predicted_targets,
)
from rescueseg.simulation.protocol import OWN_STRATEGIES, TRUTH_STRATEGIES

SHAPE, PATCH = (8, 20, 24), (3, 5, 4)
BLOCKED = (Box((0, 0, 0), (8, 9, 9)), Box((5, 12, 15), (6, 4, 20)))
"""The second reaches beyond the volume, as a guard band does."""


def blobs(seed: int, n_classes: int = 2) -> np.ndarray:
    """Return classes of a few boxes, and a few voxels that nobody knows."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for number in range(6):
        start = [int(rng.integers(n - 4)) for n in SHAPE]
        labels[tuple(slice(a, a + int(rng.integers(2, 6))) for a in start)] = 1 + number % n_classes
    labels[rng.random(SHAPE) < 0.02] = 255
    return labels


def pool(blocked: tuple[Box, ...] = BLOCKED) -> Pool:
    grid = (range(0, n - p + 1, 2) for n, p in zip(SHAPE, PATCH, strict=True))
    boxes = (Box(zyx(start), PATCH) for start in itertools.product(*grid))
    return Pool(SHAPE, PATCH, blocked, tuple(b for b in boxes if not any(b.intersects(o) for o in blocked)))


def is_border(labels: np.ndarray, voxel: tuple[int, ...]) -> bool:
    """Tell whether one of the six neighbours in the volume is of another class."""
    neighbours = [tuple(np.array(voxel) + d) for d in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)])]
    inside = [n for n in neighbours if all(0 <= a < b for a, b in zip(n, labels.shape, strict=True))]
    return any(labels[n] != labels[voxel] for n in inside)


def boxes_around(labels: np.ndarray, class_index: int, border: bool) -> set[Box]:
    """Return the patch around each voxel of a class, moved into the volume."""
    found = set()
    for voxel in map(tuple, np.argwhere(labels == class_index)):
        if not border or is_border(labels, voxel):
            starts = (min(max(v - p // 2, 0), n - p) for v, p, n in zip(voxel, PATCH, SHAPE, strict=True))
            found.add(Box(zyx(starts), PATCH))
    return found


def assert_apart(chosen: list[Choice]) -> None:
    whole = Box((0, 0, 0), SHAPE)
    for index, choice in enumerate(chosen):
        assert choice.box.shape_zyx == PATCH
        assert whole.contains(choice.box)
        assert not any(choice.box.intersects(box) for box in BLOCKED)
        assert not any(choice.box.intersects(other.box) for other in chosen[:index])


@pytest.mark.parametrize("seed", range(3))
def test_a_border_is_what_has_a_neighbour_of_another_class(seed: int) -> None:
    labels = blobs(seed)
    targets = label_targets(labels, 2)
    for index, (inside, border) in enumerate(zip(targets.objects, targets.borders, strict=True), start=1):
        np.testing.assert_array_equal(inside, labels == index)
        expected = [tuple(v) for v in np.argwhere(labels == index) if is_border(labels, tuple(v))]
        assert sorted(map(tuple, np.argwhere(border))) == sorted(expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.33, 0.66]), count=st.integers(1, 6))
def test_foreground_patches_lie_around_the_class_and_nowhere_else(seed: int, share: float, count: int) -> None:
    labels = blobs(seed)
    chosen = foreground_patches(label_targets(labels, 2), share, count, pool(), np.random.default_rng(seed))
    assert len(chosen) == count
    assert_apart(chosen)
    drawn = [c.reason for c in chosen]
    around = [c for c in chosen if c.reason != "random"]
    assert drawn[len(around) :] == ["random"] * (count - len(around))
    assert len(around) <= round(share * count)
    for choice in around:
        number, kind = choice.reason.removeprefix("class ").split(", ")
        assert choice.box in boxes_around(labels, int(number), kind == "border")
    assert all(c.box in pool().candidates for c in chosen[len(around) :])
    if len(around) < round(share * count):  # nothing is left around one of the two kinds of voxels
        free = boxes_around(labels, 1, False) | boxes_around(labels, 2, False)
        taken = [*BLOCKED, *(c.box for c in around)]
        assert any(
            all(any(box.intersects(t) for t in taken) for box in part)
            for part in (free, boxes_around(labels, 1, True) | boxes_around(labels, 2, True))
        )
    again = foreground_patches(label_targets(labels, 2), share, count, pool(), np.random.default_rng(seed))
    assert again == chosen


def test_shares_and_kinds_are_those_asked_for() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, ::6, ::6] = 1
    labels[:, 3::6, 3::6] = 2
    targets = label_targets(labels, 2)
    kinds = np.zeros((40, 4), int)
    for seed in range(40):
        chosen = foreground_patches(targets, 0.66, 6, pool(()), np.random.default_rng(seed))
        reasons = [c.reason for c in chosen]
        assert sum(r != "random" for r in reasons) == 4
        assert sum("border" in r for r in reasons) == sum("object" in r for r in reasons) == 2
        kinds[seed] = [sum(text in r for r in reasons) for text in ("class 1", "class 2", "object", "border")]
    odd = [foreground_patches(targets, 0.33, 4, pool(()), np.random.default_rng(seed))[0] for seed in range(200)]
    assert np.mean(["border" in c.reason for c in odd]) == pytest.approx(0.5, abs=0.1)


def test_classes_are_drawn_alike_however_rare_and_voxels_by_their_weight() -> None:
    labels = np.ones(SHAPE, np.uint8)
    labels[4, 10:12, 10:12] = 2
    targets = label_targets(labels, 2)
    drawn = [foreground_patches(targets, 1.0, 1, pool(()), np.random.default_rng(seed))[0] for seed in range(400)]
    assert np.mean(["class 2" in c.reason for c in drawn]) == pytest.approx(0.5, abs=0.08)
    line = Pool((1, 1, 4), (1, 1, 1), (), ())
    probability = np.array([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 1, 4)
    weighted = predicted_targets(np.concatenate([1 - probability, probability]))  # the class is the likeliest nowhere
    objects = Targets(weighted.objects, weighted.objects)
    found = [foreground_patches(objects, 1.0, 1, line, np.random.default_rng(seed))[0] for seed in range(2000)]
    places = np.bincount([c.box.offset_zyx[2] for c in found], minlength=4) / 2000
    np.testing.assert_allclose(places, [0.1, 0.2, 0.3, 0.4], atol=0.04)


def test_a_prediction_is_followed_as_the_truth_would_be() -> None:
    labels = np.where(blobs(4) == 255, 0, blobs(4))
    probability = np.stack([0.8 * (labels == c) + 0.1 for c in range(3)])
    found, expected = predicted_targets(probability), label_targets(labels, 2)
    for a, b in zip((*found.objects, *found.borders), (*expected.objects, *expected.borders), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8))
def test_the_ceiling_takes_the_most_errors_first(seed: int, count: int) -> None:
    truth, rng = blobs(seed), np.random.default_rng(seed)
    predicted = np.where(rng.random(SHAPE) < 0.3, 1, truth % 255).astype(np.uint8)
    chosen = error_patches(predicted, truth, count, pool(), rng)
    assert_apart(chosen)

    def errors(box: Box) -> int:
        return sum(
            truth[v] not in (255, predicted[v]) for v in map(tuple, np.argwhere(np.ones(PATCH)) + box.offset_zyx)
        )

    left = list(pool().candidates)
    for choice in chosen:
        assert choice.score == pytest.approx(errors(choice.box) / choice.box.size)
        assert errors(choice.box) == max(map(errors, left))
        left = [box for box in left if not box.intersects(choice.box)]
    assert len(chosen) == count or not left


@given(
    blocked=st.lists(
        st.builds(
            lambda start, shape: Box(zyx(start), zyx(shape)),
            st.tuples(*[st.integers(-3, 11)] * 3),
            st.tuples(*[st.integers(1, 8)] * 3),
        ),
        max_size=4,
    )
)
def test_pieces_hold_every_voxel_outside_once(blocked: list[Box]) -> None:
    count = np.zeros((9, 10, 11), int)
    for piece in clear_pieces((9, 10, 11), (4, 4, 5), blocked):
        count[piece.slices] += 1
    expected = np.ones_like(count)
    for box in blocked:
        inside = box.intersection(Box((0, 0, 0), (9, 10, 11)))
        if inside is not None:
            expected[inside.slices] = 0
    np.testing.assert_array_equal(count, expected)


def test_what_sees_the_truth_cannot_be_chosen_in_a_campaign() -> None:
    assert not set(STRATEGIES) & set(OWN_STRATEGIES)
    for name in TRUTH_STRATEGIES:
        with pytest.raises(ConfigError, match="unknown query strategy"):
            find_strategy(name)
