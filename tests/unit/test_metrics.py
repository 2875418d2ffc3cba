"""Counts, overlap scores, surface distances and calibration, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescueseg.metrics import Bins, Counts, count_voxels, mean_over_classes, surface_scores, tolerance_um


def test_counts_of_two_classes_leave_ignored_voxels_out() -> None:
    truth = np.array([[[0, 1, 1, 2, 2, 255, 0]]], dtype=np.uint8)
    prediction = np.array([[[1, 1, 0, 2, 1, 2, 0]]], dtype=np.uint8)
    one, two = count_voxels(prediction, truth, 2)
    assert one == Counts(tp=1, fp=2, fn=1)
    assert two == Counts(tp=1, fp=0, fn=1)


def test_ratios() -> None:
    counts = Counts(tp=3, fp=1, fn=2)
    assert counts.dice == pytest.approx(6 / 9)
    assert counts.iou == pytest.approx(3 / 6)
    assert counts.precision == pytest.approx(3 / 4)
    assert counts.recall == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("counts", "dice", "precision", "recall"),
    [(Counts(), 1, 1, 1), (Counts(fp=5), 0, 0, 0), (Counts(fn=5), 0, 0, 0)],
)
def test_empty_cases_are_defined(counts: Counts, dice: float, precision: float, recall: float) -> None:
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (dice, dice, precision, recall)


def test_a_class_that_never_occurs_does_not_lift_the_mean() -> None:
    assert mean_over_classes([Counts(tp=1, fp=2), Counts()], "dice") == pytest.approx(0.5)
    assert mean_over_classes([Counts(), Counts()], "dice") == 1.0


def _slab(z: int) -> np.ndarray:
    labels = np.zeros((12, 6, 6), dtype=np.uint8)
    labels[z : z + 2] = 1
    return labels


def test_hd95_is_in_micrometre_along_the_shifted_axis() -> None:
    scores = surface_scores(_slab(3), _slab(6), 1, (0.5, 0.1, 0.1))
    assert scores is not None
    dice, hd95 = scores
    assert hd95 == pytest.approx(1.5, abs=1e-5)
    assert dice < 0.5


def test_equal_surfaces() -> None:
    assert surface_scores(_slab(3), _slab(3), 1, (0.5, 0.1, 0.1)) == (1.0, 0.0)


def test_a_shift_within_the_tolerance_agrees() -> None:
    spacing = (0.2, 0.1, 0.1)
    assert tolerance_um(spacing) == pytest.approx(0.2)
    scores = surface_scores(_slab(3), _slab(4), 1, spacing)
    assert scores is not None
    assert scores[0] == pytest.approx(1.0)


def test_surfaces_of_empty_masks() -> None:
    empty = np.zeros((12, 6, 6), dtype=np.uint8)
    assert surface_scores(empty, empty, 1, (1, 1, 1)) is None
    assert surface_scores(empty, _slab(3), 1, (1, 1, 1)) == (0.0, pytest.approx(math.sqrt(144 + 36 + 36)))
    hidden = np.where(_slab(3) == 1, 255, 0).astype(np.uint8)
    assert surface_scores(_slab(3), hidden, 1, (1, 1, 1)) is None


def test_calibration_error_of_overconfident_voxels() -> None:
    bins = Bins(15, 1.0)
    bins.add(np.full(100, 0.9), np.arange(100) < 60)
    bins.add(np.full(100, 0.5), np.arange(100) < 50)
    assert bins.result().calibration_error() == pytest.approx(0.15)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(0, 60))
def test_bins_do_not_depend_on_how_voxels_arrive(voxels: list[tuple[float, bool]], cut: int) -> None:
    values, right = np.array([v for v, _ in voxels]), np.array([r for _, r in voxels])
    whole, parts = Bins(15, 1.0), Bins(15, 1.0)
    whole.add(values, right)
    parts.add(values[:cut], right[:cut])
    parts.add(values[cut:], right[cut:])
    assert whole.result().voxels == parts.result().voxels
    assert whole.result().right == parts.result().right
    assert sum(whole.result().voxels) == len(voxels)
    assert whole.result().calibration_error() == pytest.approx(parts.result().calibration_error())


def test_error_auroc() -> None:
    bins = Bins(30, 1.0)
    bins.add(np.array([0.1, 0.1, 0.9, 0.9]), np.array([True, True, False, False]))
    assert bins.result().error_auroc() == 1.0
    same = Bins(30, 1.0)
    same.add(np.full(4, 0.5), np.array([True, False, True, False]))
    assert same.result().error_auroc() == 0.5
    perfect = Bins(30, 1.0)
    perfect.add(np.full(4, 0.5), np.full(4, True))
    assert perfect.result().error_auroc() is None
