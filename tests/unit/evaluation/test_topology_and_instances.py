"""Topology, objects and risk against values worked out by hand, and against MONAI's panoptic quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.evaluation.instances import compare_instances, connected_components, renumber_objects
from rescueseg.evaluation.metrics import Bins, calibration_error, error_auroc, risk_coverage_area
from rescueseg.evaluation.topology import betti_numbers, compare_topology


def grid(n: int = 24) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) - n / 2] * 3, indexing="ij"))


def ball(radius: float) -> np.ndarray:
    return np.asarray((grid() ** 2).sum(axis=0) <= radius**2)


def torus() -> np.ndarray:
    z, y, x = grid()
    return np.asarray((np.hypot(y, x) - 7) ** 2 + z**2 <= 2.5**2)


SHAPES = {
    "nothing": (np.zeros((24, 24, 24), bool), (0, 0, 0)),
    "ball": (ball(8), (1, 0, 0)),
    "hollow ball": (ball(8) & ~ball(4), (1, 0, 1)),
    "ring": (torus(), (1, 1, 0)),
    "ring and ball inside it": (torus() | ball(2), (2, 1, 0)),
    "everything": (np.ones((24, 24, 24), bool), (1, 0, 0)),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_betti_numbers_of_shapes(name: str) -> None:
    mask, wanted = SHAPES[name]
    assert betti_numbers(mask) == wanted


@given(st.lists(st.sampled_from(list(SHAPES)), min_size=1, max_size=4), st.permutations([0, 1, 2]), st.booleans())
@settings(deadline=None, max_examples=20)
def test_betti_numbers_add_up_and_do_not_turn(names: list[str], axes: Sequence[int], flipped: bool) -> None:
    parts = [np.pad(SHAPES[name][0], 1) for name in names]
    joined = np.concatenate(parts).transpose(axes)
    joined = joined[::-1] if flipped else joined
    assert betti_numbers(joined) == tuple(sum(SHAPES[name][1][i] for name in names) for i in range(3))


def rod(gap: int = 0) -> np.ndarray:
    mask = np.zeros((9, 9, 60), bool)
    mask[3:6, 3:6, 5:55] = True
    mask[:, :, 30 : 30 + gap] = False
    return mask


def test_a_gap_in_a_rod_costs_sensitivity_and_a_piece() -> None:
    found = compare_topology(rod(gap=10), rod())
    assert (found.found_betti, found.true_betti) == ((2, 0, 0), (1, 0, 0))
    assert found.found_inside == found.found_skeleton
    assert found.true_skeleton - found.true_inside == 10
    perfect = compare_topology(rod(), rod())
    assert perfect.found_inside == perfect.true_inside == perfect.true_skeleton


def centreline_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    t = compare_topology(prediction, truth)
    precision, sensitivity = t.found_inside / t.found_skeleton, t.true_inside / t.true_skeleton
    return 2 * precision * sensitivity / (precision + sensitivity)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [20, 30])
@pytest.mark.parametrize(("width", "wider"), [(4, 5), (2, 3), (3, 4), (2, 4)])
def test_rods_of_even_width_have_a_centreline(width: int, wider: int, length: int, axis: int) -> None:
    """Inside the box, and from face to face; the prediction is one or two voxels wider than the truth."""
    truth, prediction = np.zeros((2, 12, 12, 30), bool)
    along = slice(5, 25) if length == 20 else slice(None)
    truth[3 : 3 + width, 3 : 3 + width, along] = True
    prediction[3 : 3 + wider, 3 : 3 + wider, along] = True
    truth, prediction = np.moveaxis(truth, 2, axis), np.moveaxis(prediction, 2, axis)
    assert centreline_dice(prediction, truth) > 0.9
    assert centreline_dice(truth, truth) == 1
    t = compare_topology(prediction, truth)
    assert length - wider <= t.found_skeleton <= length
    assert length - width <= t.true_skeleton <= length


@pytest.mark.parametrize("width", [2, 4])
def test_sheets_through_the_box_have_a_centreline(width: int) -> None:
    sheets = np.zeros((2, 16, 24, 24), bool)
    sheets[0, 4 : 4 + width] = True
    sheets[1, 4 : 5 + width] = True
    assert centreline_dice(sheets[1], sheets[0]) > 0.9


def test_topology_of_nothing() -> None:
    empty = np.zeros((9, 9, 60), bool)
    found = compare_topology(empty, rod())
    assert (found.found_skeleton, found.true_inside, found.found_betti) == (0, 0, (0, 0, 0))
    assert found.true_skeleton > 40


def two_halves() -> np.ndarray:
    wanted = np.zeros((4, 10, 20), np.uint32)
    wanted[:, 1:9, 2:10] = 7
    wanted[:, 1:9, 10:18] = 9_000_000
    return wanted


def test_objects_run_together_match_nothing_and_lose_one_bit() -> None:
    merged = connected_components(two_halves() > 0)
    found = compare_instances(merged, renumber_objects(two_halves()))
    assert (found.found, found.true, found.matched, found.iou) == (1, 2, (0, 0), 0.0)
    assert (found.splits, found.merges) == (pytest.approx(0.0), pytest.approx(1.0))


def test_an_object_in_halves_is_split_by_one_bit() -> None:
    halves = renumber_objects(two_halves())
    found = compare_instances(halves, connected_components(halves > 0))
    assert (found.splits, found.merges) == (pytest.approx(1.0), pytest.approx(0.0))


def test_matches_depend_on_the_overlap() -> None:
    wanted = np.zeros((1, 1, 40), np.int64)
    wanted[..., :10], wanted[..., 20:30] = 1, 2
    predicted = np.zeros_like(wanted)
    predicted[..., :9], predicted[..., 20:26] = 5, 3  # IoU 0.9 and 0.6
    predicted[..., 35:] = 4
    found = compare_instances(predicted, wanted)
    assert (found.found, found.true, found.matched) == (3, 2, (2, 1))
    assert found.iou == pytest.approx(1.5)


def test_objects_of_nothing() -> None:
    nothing = np.zeros((4, 4, 4), np.int64)
    assert compare_instances(nothing, nothing).splits is None
    missed = compare_instances(nothing, np.ones_like(nothing))
    assert (missed.found, missed.true, missed.matched) == (0, 1, (0, 0))


def test_an_object_that_the_box_cuts_counts_as_its_pieces() -> None:
    numbered = np.zeros((1, 5, 9), np.int64)
    numbered[0, 0, :], numbered[0, 4, :] = 3, 3  # joined beyond the box
    assert compare_instances(connected_components(numbered > 0), renumber_objects(numbered)).matched == (2, 2)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_panoptic_quality_is_monais(seed: int) -> None:
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(6, 16, 16)), 1.5)
    wanted = connected_components(field > 0.03)
    predicted = connected_components(np.roll(field, 1, axis=2) + 0.03 * rng.normal(size=field.shape) > 0.03)
    found = compare_instances(predicted, wanted)
    tp, fp, fn, iou = compute_panoptic_quality(
        torch.from_numpy(predicted), torch.from_numpy(wanted), output_confusion_matrix=True
    ).tolist()
    assert (found.matched[0], found.found - found.matched[0], found.true - found.matched[0]) == (tp, fp, fn)
    assert found.iou == pytest.approx(iou, abs=1e-5)


def bins_of(values: np.ndarray, right: np.ndarray, count: int = 30) -> np.ndarray:
    bins = Bins(count, 1.0)
    bins.add(values, right)
    return bins.result().table()


def test_risk_is_the_error_rate_where_uncertainty_says_nothing() -> None:
    right = np.arange(1000) % 5 > 0
    assert risk_coverage_area(bins_of(np.full(1000, 0.4), right)) == pytest.approx(0.2)


def test_risk_of_an_uncertainty_that_names_every_error() -> None:
    right = np.arange(100_000) >= 20_000
    area = risk_coverage_area(bins_of(np.where(right, 0.1, 0.9), right))
    assert area == pytest.approx(0.2 + 0.8 * math.log(0.8), abs=1e-6)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_risk_is_the_mean_over_orders_within_a_bin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 4, 400) / 4
    right = rng.random(400) > 0.2 + 0.5 * level
    drawn = []
    for _ in range(200):
        order = np.lexsort((rng.random(400), level))
        drawn.append((np.cumsum(~right[order]) / np.arange(1, 401)).mean())
    assert risk_coverage_area(bins_of(level, right, 4)) == pytest.approx(np.mean(drawn), abs=0.02)


def test_no_voxel_has_no_score() -> None:
    nothing = np.zeros((2, 15, 3))
    for score in (risk_coverage_area, error_auroc, calibration_error):
        assert np.isnan(score(nothing)).all()
        assert score(nothing).shape == (2,)
