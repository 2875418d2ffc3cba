"""Surface Dice and HD95: against slabs and rods worked out by hand, every pair of voxels, MONAI, and real volumes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rescueseg.evaluation.surface import surface_scores, tolerance_um
from rescueseg.geometry import Spacing


def slab(start: int) -> np.ndarray:
    labels = np.zeros((12, 6, 6), dtype=np.uint8)
    labels[start : start + 4] = 1
    return labels


def scored(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    scores = surface_scores(prediction, truth, 1, spacing)
    assert scores is not None
    assert scores.hd95_um is not None
    return scores.dice, scores.hd95_um


def test_hd95_is_in_micrometre_along_the_shifted_axis() -> None:
    """The upper outline of the one lies on the lower outline of the other, the two others are 3 planes off."""
    assert scored(slab(3), slab(6), (0.5, 0.1, 0.1)) == pytest.approx((0.5, 1.5))


def test_equal_surfaces() -> None:
    assert scored(slab(3), slab(3), (0.5, 0.1, 0.1)) == (1.0, 0.0)


def test_a_shift_within_the_tolerance_agrees() -> None:
    spacing = (0.2, 0.1, 0.1)
    assert tolerance_um(spacing) == pytest.approx(0.2)
    assert scored(slab(3), slab(4), spacing) == pytest.approx((1.0, 0.2))


def test_a_mask_that_only_one_holds_has_no_distance() -> None:
    empty = np.zeros_like(slab(3))
    assert surface_scores(empty, empty, 1, (1, 1, 1)) is None
    assert surface_scores(empty, slab(3), 1, (1, 1, 1)) == (0.0, None)
    assert surface_scores(slab(3), empty, 1, (1, 1, 1)) == (0.0, None)
    poking = np.zeros((12, 40, 40), np.uint8)
    poking[:, 20, :2] = 1
    assert surface_scores(poking, np.zeros_like(poking), 1, (1, 1, 1)) is None
    hidden = np.where(slab(3) == 1, 255, 0).astype(np.uint8)
    assert surface_scores(slab(3), hidden, 1, (1, 1, 1)) is None


def test_what_fills_the_box_has_no_outline() -> None:
    full = np.ones((8, 8, 8), np.uint8)
    assert surface_scores(full, full, 1, (1, 1, 1)) is None
    hollow = full.copy()
    hollow[4, 4, 4] = 0
    assert surface_scores(hollow, full, 1, (1, 1, 1)) == (0.0, None)
    assert surface_scores(full, hollow, 1, (1, 1, 1)) == (0.0, None)


@pytest.mark.parametrize("planes", [1, 2, 5, 9, 17, 33])
@pytest.mark.parametrize("shape", ["rod", "sheet"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cuts_by_the_box_are_no_outline(planes: int, shape: str, axis: int) -> None:
    """Every outline is wrong by 5 voxels, though truth and prediction share most of the box's faces."""
    cross = np.zeros((2, 48, 48), np.uint8)
    for mask, grown in zip(cross, (0, 5), strict=True):
        across = slice(16 - grown, 32 + grown)
        mask[(across, slice(None)) if shape == "sheet" else (across, across)] = 1
    truth, prediction = (np.repeat(np.expand_dims(mask, axis), planes, axis) for mask in cross)
    for pair in ((prediction, truth), (truth, prediction)):
        dice, hd95 = scored(*pair, (1, 1, 1))
        assert dice == 0
        assert 5 <= hd95 <= (5 if shape == "sheet" else 50**0.5)


def test_surfaces_are_those_of_monai_where_nothing_is_cut() -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    rng, spacing = np.random.default_rng(4), (0.3, 0.1, 0.1)
    field = ndimage.gaussian_filter(rng.normal(size=(10, 24, 24)), 2)
    truth, prediction = (np.pad(f > 0.02, 4).astype(np.uint8) for f in (field, np.roll(field, 3, axis=2)))
    a, b = (torch.from_numpy(mask > 0)[None, None] for mask in (prediction, truth))
    dice = compute_surface_dice(a, b, [tolerance_um(spacing)], include_background=True, spacing=list(spacing))
    hd95 = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=list(spacing))
    assert scored(prediction, truth, spacing) == pytest.approx((float(dice), float(hd95)), rel=1e-5)


@pytest.mark.parametrize("short", [0, 1, 2])
def test_a_prediction_that_ends_just_before_the_unknown(short: int) -> None:
    """Where the rod of the truth goes on in the unknown, nobody knows whether it does: its end is not judged there."""
    truth, prediction = np.zeros((2, 15, 15, 40), np.uint8)
    truth[4:11, 4:11, :30] = 1
    truth[:, :, 30:] = 255
    prediction[4:11, 4:11, : 30 - short] = 1
    assert scored(prediction, truth, (1, 1, 1)) == (1.0, 0.0)
    prediction[:, :, 20:] = 0
    assert scored(prediction, truth, (1, 1, 1))[0] < 0.9


def neighbours(place: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    steps = [(*(0,) * a, d, *(0,) * (2 - a)) for a in range(3) for d in (-1, 1)]
    moved = [tuple(p + s for p, s in zip(place, step, strict=True)) for step in steps]
    return [m for m in moved if all(0 <= p < n for p, n in zip(m, shape, strict=True))]


def far(a: tuple[int, ...], b: tuple[int, ...], spacing: Spacing) -> float:
    return float(sum(((p - q) * s) ** 2 for p, q, s in zip(a, b, spacing, strict=True)) ** 0.5)


def every_pair(
    prediction: np.ndarray, truth: np.ndarray, unknown: np.ndarray, spacing: Spacing
) -> tuple[set[tuple[int, ...]], list[list[float]], float]:
    """Return which voxels count, their distances with nothing hidden, and the share within two voxels.

    Truth is that of everything; where the unknown lies only says which voxels count. What counts lies so far from the
    unknown that nothing in there could be within the tolerance, so the share is the same when it is hidden.
    """
    places = list(itertools.product(*map(range, truth.shape)))
    tolerance = 2 * min(spacing) + 1e-9
    doubtful = [p for p in places if unknown[p] or any(unknown[n] for n in neighbours(p, truth.shape))]
    sure = {p for p in places if all(far(p, q, spacing) > tolerance for q in doubtful)}
    outlines = [
        [p for p in places if mask[p] == 1 and any(mask[n] != 1 for n in neighbours(p, truth.shape))]
        for mask in (prediction, truth)
    ]
    distances = [
        [min((far(p, q, spacing) for q in other), default=np.inf) for p in mine if p in sure]
        for mine, other in (outlines, outlines[::-1])
    ]
    both = [d for side in distances for d in side]
    return sure, distances, sum(d <= tolerance for d in both) / len(both) if both else np.nan


@given(
    st.integers(0, 10_000),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.2, 0.2), (0.1, 0.3, 0.21)]),
    st.sampled_from([0.0, 0.0, 0.02, 0.05]),
)
@settings(deadline=None, max_examples=60)
def test_scores_are_those_of_every_pair_of_voxels(
    seed: int, shape: tuple[int, int, int], spacing: Spacing, hidden: float
) -> None:
    """Boxes cut out of a larger volume where they are wide enough to mind their faces, the volume's end elsewhere."""
    rng = np.random.default_rng(seed)
    wide = [n >= (4 if s > 2 * min(spacing) else 12) for n, s in zip(shape, spacing, strict=True)]
    margins = [(2, 2) if w else (0, 0) for w in wide]
    inner = tuple(slice(a, a + n) for (a, _), n in zip(margins, shape, strict=True))
    unknown = np.pad(rng.random(shape) < hidden, margins, constant_values=True)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *unknown.shape)), (0, 0.7, 0.7, 0.7))
    truth, prediction = (noise > 0).astype(np.uint8)
    scores = surface_scores(prediction[inner], np.where(unknown, np.uint8(255), truth)[inner], 1, spacing)
    holds = [bool((mask[~unknown] == 1).any()) for mask in (prediction, truth)]
    sure, distances, share = every_pair(prediction, truth, unknown, spacing)
    if not all(holds):
        assert scores == ((0.0, None) if any(mask[p] == 1 for mask in (prediction, truth) for p in sure) else None)
    elif np.isnan(share):
        assert scores is None
    else:
        assert scores is not None
        assert scores.dice == pytest.approx(share, abs=1e-12)
        if not unknown.any():
            both = np.concatenate(distances)
            hd95 = None if np.isinf(both).any() else max(np.percentile(d, 95) for d in distances if d)
            assert scores.hd95_um == (None if hd95 is None else pytest.approx(hd95))


def test_a_speck_among_the_unknown_says_nothing() -> None:
    speck = np.full((5, 5, 5), 255, np.uint8)
    speck[2, 2, 2] = 1
    assert surface_scores(np.ones((5, 5, 5), np.uint8), speck, 1, (1, 1, 1)) is None


@pytest.mark.parametrize(
    "name", ["gonuclear_1135", "vesselnn_burgess2014_tgMouse", "cdeep3m_mito_train", "bbbc050_mosaic_train"]
)
def test_real_outlines_three_voxels_inside_the_true_ones_are_all_wrong(real_data: Path, name: str) -> None:
    """Objects shrunk in the whole volume until no outline lies within the tolerance, then cut out in boxes."""
    mask = tifffile.imread(real_data / name / "labels.tif")[:48, :192, :192] > 0
    outline = mask & ~ndimage.binary_erosion(mask, border_value=1)
    shrunk = mask & (ndimage.distance_transform_edt(~outline) > 2)
    scores = [
        surface_scores(shrunk[box].astype(np.uint8), mask[box].astype(np.uint8), 1, (1, 1, 1))
        for z, y, x in itertools.product(range(0, len(mask), 16), range(0, 192, 64), range(0, 192, 64))
        for box in [(slice(z, z + 16), slice(y, y + 64), slice(x, x + 64))]
    ]
    judged = [s for s in scores if s is not None]
    assert {s.dice for s in judged} == {0.0}
    assert sum(s.hd95_um is not None for s in judged) > 5


@pytest.mark.parametrize(
    "name", ["gonuclear_1135", "vesselnn_burgess2014_tgMouse", "cdeep3m_mito_train", "bbbc050_mosaic_train"]
)
def test_real_outlines_off_by_one_voxel_are_off_by_one_voxel_in_any_box(real_data: Path, name: str) -> None:
    """Where an outline and its counterpart lie on two sides of a box's face, neither is taken for a large error."""
    spacing = (2.2, 1.0, 1.0)
    mask = (tifffile.imread(real_data / name / "labels.tif")[:15, :200, :200] > 0).astype(np.uint8)
    shifted, boxes = np.roll(mask, 1, axis=2), 0
    for y, x in itertools.product(range(0, mask.shape[1] - 49, 50), range(1, mask.shape[2] - 49, 50)):
        box = slice(None), slice(y, y + 50), slice(x, x + 50)
        scores = surface_scores(shifted[box], mask[box], 1, spacing)
        if scores is not None:
            assert scores == (1.0, 1.0)
            boxes += 1
    assert boxes > 1
