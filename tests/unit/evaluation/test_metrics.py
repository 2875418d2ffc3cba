"""Counts, overlap scores and calibration, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from rescueseg.evaluation.metrics import (
    UNCERTAINTY_BINS,
    Bins,
    Counts,
    count_voxels,
    error_auroc,
    mean_over_classes,
    risk_coverage_area,
)


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
    [(Counts(), None, None, None), (Counts(fp=5), 0, 0, None), (Counts(fn=5), 0, None, 0)],
)
def test_what_says_nothing_is_none(
    counts: Counts, dice: float | None, precision: float | None, recall: float | None
) -> None:
    """A Dice of 1 where nothing is, or a precision of 0 where nothing was found, would count as a result."""
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (dice, dice, precision, recall)


def test_a_class_that_never_occurs_does_not_lift_the_mean() -> None:
    assert mean_over_classes([Counts(tp=1, fp=2), Counts()], "dice") == pytest.approx(0.5)
    assert mean_over_classes([Counts(), Counts()], "dice") is None
    assert mean_over_classes([Counts(tp=1, fn=1), Counts(fn=2)], "precision") == 1.0


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


def _ranked(values: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Return error AUROC and AURC from the ranks of the voxels themselves, none lost to bins."""
    ranks = stats.rankdata(values)
    wrong = int((~right).sum())
    auroc = (ranks[~right].sum() - wrong * (wrong + 1) / 2) / (wrong * right.sum())
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    rate = np.bincount(group, weights=~right) / sizes
    errors = np.cumsum(np.repeat(rate, sizes))
    return float(auroc), float((errors / np.arange(1, len(values) + 1)).mean())


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("sharpness", [0.1, 0.3, 1.0, 3.0, 5.0, 10.0])
def test_however_sure_a_model_is_its_uncertainty_is_ranked_as_well(sharpness: float, n_classes: int) -> None:
    """Sharpened logits keep the order of the voxels; only what float16 maps cannot tell from 0 may tie."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (n_classes + 1, 50_000)).cumsum(axis=0)
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=0)
    p = special.softmax(sharpness * logits, axis=0).astype(np.float32)
    values = special.entr(p).sum(axis=0).astype(np.float16)
    right = p.argmax(axis=0) == truth
    bins = Bins(UNCERTAINTY_BINS, math.log(n_classes + 1), "logit")
    bins.add(values, right)
    table = bins.result().table()
    auroc, area = _ranked(values, right)
    assert error_auroc(table) == pytest.approx(auroc, abs=0.002)
    assert risk_coverage_area(table) == pytest.approx(area, abs=0.0005)


def test_bins_drawn_at_equal_width_hold_the_same_voxels() -> None:
    rng = np.random.default_rng(2)
    values, right = rng.beta(0.1, 0.5, 5000), rng.random(5000) > 0.3
    fine = Bins(UNCERTAINTY_BINS, 1.0, "logit")
    fine.add(values, right)
    drawn = fine.result().equal_width(10)
    assert sum(drawn.voxels) == 5000
    assert sum(drawn.right) == right.sum()
    assert np.abs(np.array(drawn.voxels) - np.histogram(values, 10, (0, 1))[0]).max() < 100
