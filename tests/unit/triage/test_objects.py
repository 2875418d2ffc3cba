"""Shapes with known answers: balls, rods, sheets, rings, trees."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from rescueseg.triage.lines import close_slits, skeleton_branches
from rescueseg.triage.objects import (
    ObjectShape,
    describe_object,
    describe_objects,
    split_at_necks,
    touching_fraction,
)
from rescueseg.triage.thickness import depth_within, typical_radius

CUBIC = (1.0, 1.0, 1.0)
WHOLE = ((False, False),) * 3
FLAT = (3.0, 1.0, 1.0)


def ball(radius: float, spacing: tuple[float, float, float] = CUBIC) -> np.ndarray:
    sides = [int(2 * radius / s) + 3 for s in spacing]
    grid = np.indices(sides).astype(float)
    away = [(g - (n - 1) / 2) * s for g, n, s in zip(grid, sides, spacing, strict=True)]
    return sum(a**2 for a in away) <= radius**2


def rod(length: int, radius: float) -> np.ndarray:
    side = int(2 * radius) + 3
    _, y, x = np.indices((length, side, side)) - (side - 1) / 2
    return np.asarray(y**2 + x**2 <= radius**2)


def clump(radius: int, cells: tuple[int, int, int]) -> np.ndarray:
    """Balls on a grid, each touching its neighbours."""
    mask = np.zeros([2 * radius * n + 5 for n in cells], bool)
    grid = np.indices(mask.shape)
    for cell in np.ndindex(*cells):
        mask |= sum((g - 2 - radius - 2 * radius * i) ** 2 for g, i in zip(grid, cell, strict=True)) <= radius**2 + 1
    return mask


def tree() -> np.ndarray:
    """A trunk with three side branches, each three voxels thick."""
    mask = np.zeros((9, 60, 60), bool)
    mask[3:6, 28:31, 2:58] = True
    for x in (12, 28, 44):
        mask[3:6, 4:30, x : x + 3] = True
    return mask


def one(mask: np.ndarray, spacing: tuple[float, float, float] = CUBIC) -> ObjectShape:
    return describe_object(mask, spacing)


@pytest.mark.parametrize("spacing", [CUBIC, FLAT])
def test_a_ball_is_round_star_convex_and_fills_itself(spacing: tuple[float, float, float]) -> None:
    shape = one(ball(12, spacing), spacing)
    assert shape.volume == pytest.approx(4 / 3 * math.pi * 12**3, rel=0.06)
    assert shape.thickness == pytest.approx(24, rel=0.12)
    assert shape.extent == pytest.approx(1, abs=0.45)
    assert shape.sphericity > 0.9
    assert shape.star_convexity > 0.9
    assert shape.tubularity + shape.plateness < 0.35
    assert (shape.branches, shape.loops) == (0, 0)
    assert shape.skeleton < shape.thickness


def test_a_rod_is_tubular_and_as_long_as_it_is() -> None:
    shape = one(rod(80, 5))
    assert shape.thickness == pytest.approx(10, rel=0.15)
    assert shape.extent == pytest.approx(1.5 * 80 / 10, rel=0.35)
    assert shape.skeleton == pytest.approx(80, abs=12)
    assert shape.tubularity > 0.8
    assert shape.plateness < 0.15
    assert shape.sphericity == pytest.approx((1.5 * 8) ** (2 / 3) / 8.5, abs=0.08), "closed formula for a cylinder"


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("length", [40, 41])
def test_a_rod_has_a_length_however_many_voxels_wide_it_is(width: int, length: int) -> None:
    """Half a width is missing at each end, and the step from voxel to voxel."""
    shape = one(np.ones((width, length, width), bool))
    assert length - width - 2 <= shape.skeleton <= length - width / 2
    assert shape.branches == 0


def test_a_sheet_is_a_plate_far_larger_than_its_thickness() -> None:
    shape = one(np.ones((5, 60, 60), bool))
    assert shape.thickness == pytest.approx(5, rel=0.25)
    assert shape.plateness > 0.9
    assert shape.extent > 100
    assert shape.sphericity < 0.6


@pytest.mark.parametrize("cells", [(1, 1, 2), (1, 1, 5), (2, 2, 2), (1, 3, 3)])
@pytest.mark.parametrize("spacing", [CUBIC, (2.0, 1.0, 1.0)])
def test_clumped_balls_are_parted(cells: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    numbers = split_at_necks(clump(8, cells)[:: int(spacing[0])], spacing)
    shapes = describe_objects(numbers, spacing)
    assert len(shapes) == math.prod(cells)
    assert min(s.star_convexity for s in shapes) > 0.8
    assert max(s.tubularity + s.plateness for s in shapes) < 0.5


@pytest.mark.parametrize("mask", [rod(80, 6), np.ones((5, 60, 60), bool), tree(), ball(9)])
def test_rods_sheets_trees_and_balls_stay_whole(mask: np.ndarray) -> None:
    assert split_at_necks(mask, CUBIC).max() == 1


def test_a_vessel_stays_whole_where_its_calibre_changes() -> None:
    z = np.arange(120)
    radius = 4 + 2.5 * np.sin(z / 8)
    _, y, x = np.indices((120, 19, 19)) - 9.0
    mask = y**2 + x**2 <= radius[:, None, None] ** 2
    assert split_at_necks(mask, CUBIC).max() == 1
    assert split_at_necks(np.zeros((4, 4, 4), bool), CUBIC).max() == 0


def test_branches_and_tunnels_are_counted() -> None:
    assert one(tree()).branches == 3
    ring = np.zeros((5, 30, 30), bool)
    ring[1:4, 3:27, 3:27] = True
    ring[:, 9:21, 9:21] = False
    assert one(ring).loops == 1
    hollow = ball(8)
    hollow[8:11, 8:11, 8:11] = False
    assert one(hollow).loops == 0, "a cavity is no tunnel"


def test_a_skeletons_length_counts_the_spacing() -> None:
    line = np.zeros((11, 3, 3), bool)
    line[:, 1, 1] = True
    assert skeleton_branches(line, (2.0, 1.0, 1.0)) == (0, 20.0)
    assert skeleton_branches(np.zeros((3, 3, 3), bool), CUBIC) == (0, 0.0)


def test_a_cut_object_does_not_look_thin_where_it_is_cut() -> None:
    half = ball(10)[: ball(10).shape[0] // 2]
    cut = describe_object(half, CUBIC, ((False, True), (False, False), (False, False)))
    assert cut.cut
    assert cut.thickness == pytest.approx(one(ball(10)).thickness, rel=0.12)
    assert one(half).thickness < 0.8 * cut.thickness


def test_objects_come_largest_first_without_specks_and_know_whether_they_are_cut() -> None:
    numbers = np.zeros((20, 40, 40), np.int32)
    numbers[5:15, 5:15, 5:15] = 4
    numbers[0:12, 20:34, 20:34] = 2
    numbers[18, 2, 2] = 9
    shapes = describe_objects(numbers, CUBIC, ((True, False), (True, True), (True, True)))
    assert [(round(s.volume), s.cut) for s in shapes] == [(12 * 14 * 14, True), (1000, False)]


def test_touching() -> None:
    numbers = np.zeros((6, 6, 12), np.int32)
    numbers[1:5, 1:5, 1:4], numbers[1:5, 1:5, 4:7], numbers[1:5, 1:5, 9:11] = 1, 2, 3
    assert touching_fraction(numbers) == pytest.approx(2 / 3)
    assert touching_fraction(np.zeros((3, 3, 3), np.int32)) == 0


def test_a_rough_surface_grows_no_branches() -> None:
    rough = rod(60, 6)
    rough = np.pad(rough, 2)
    edge = ndimage.binary_dilation(rough) & ~rough
    rough |= edge & (np.random.default_rng(0).random(rough.shape) < 0.15)
    assert one(rough).branches <= 1


def local_thickness(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Return for each voxel inside the largest distance to the outside of any voxel so near to it: every pair compared."""
    scale = np.array(spacing)
    inside = np.argwhere(np.pad(mask, 1)) * scale
    outside = np.argwhere(~np.pad(mask, 1)) * scale
    away = np.min(np.linalg.norm(inside[:, None] - outside[None], axis=2), axis=1)
    apart = np.linalg.norm(inside[:, None] - inside[None], axis=2)
    return np.where(apart < away[None], away[None], 0).max(axis=1)


@pytest.mark.parametrize("spacing", [CUBIC, FLAT])
@pytest.mark.parametrize("seed", range(4))
def test_the_typical_radius_is_the_median_of_the_local_thickness(
    seed: int, spacing: tuple[float, float, float]
) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(9, 22, 22)), (1.5, 3, 3))
    numbers, _ = ndimage.label(noise > 0)
    mask = numbers == np.bincount(numbers.ravel())[1:].argmax() + 1
    depth = depth_within(mask, spacing, WHOLE)
    assert depth is not None
    low, high = np.quantile(local_thickness(mask, spacing), [0.35, 0.65])
    assert low - 1e-4 <= typical_radius(depth, spacing) + 0.5 <= high + 1e-4


@pytest.mark.parametrize("unit", [0.3, 0.1, 0.01, 0.007])
def test_the_thickness_does_not_depend_on_the_unit_of_length(unit: float) -> None:
    for seed in range(8):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(9, 22, 22)), (1.5, 3, 3))
        depth, scaled = (depth_within(noise > 0, (3 * u, u, u), WHOLE) for u in (1.0, unit))
        assert depth is not None
        assert scaled is not None
        exact = typical_radius(depth, FLAT)
        assert typical_radius(scaled, (3 * unit, unit, unit)) == pytest.approx(exact * unit, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_sections_that_are_a_few_voxels_off_do_not_make_an_organelle_thin(seed: int) -> None:
    """Ten discs, each up to three voxels aside: where one reaches beyond its neighbours, it is a single plane thick."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((58, 58)) - 29
    moved, straight = np.zeros((2, 12, 58, 58), bool)
    for z in range(1, 11):
        aside = rng.integers(-3, 4, 2)
        moved[z] = (y - aside[0]) ** 2 + (x - aside[1]) ** 2 <= 14**2
        straight[z] = y**2 + x**2 <= 14**2
    shape = one(moved, FLAT)
    assert shape.thickness > 0.55 * one(straight, FLAT).thickness, "was 0.2 to 0.4 of it"
    assert shape.skeleton < shape.thickness


def bars(gap: int) -> np.ndarray:
    """Eight bars of 10 × 10 voxels, two by four, which rungs of 4 × 4 voxels join."""
    step = 10 + gap
    mask = np.zeros((10 + step, 10 + 3 * step, 120), bool)
    for z in range(0, 2 * step, step):
        for y in range(0, 4 * step, step):
            mask[z : z + 10, y : y + 10] = True
    for number, x in enumerate(range(8, 112, 16)):
        mask[3 : 7 + step * (number % 2), 3:7, x : x + 4] = True
        mask[3:7, 3 : 7 + 3 * step, x : x + 4] = True
        mask[3 + step : 7 + step, 3 : 7 + 3 * step, x : x + 4] = True
    return mask


@pytest.mark.parametrize(("gap", "is_network"), [(2, False), (6, False), (20, True), (40, True)])
def test_parts_that_touch_side_by_side_are_no_network(gap: int, is_network: bool) -> None:
    """Cut on both sides, many times as long as thick, with tunnels between the rungs: what is between them decides."""
    shape = describe_object(bars(gap), CUBIC, ((False, False), (False, False), (True, True)))
    assert shape.cut
    assert shape.loops > 0
    assert shape.skeleton > 12.5 * shape.thickness
    assert shape.is_network == is_network


@pytest.mark.parametrize("spacing", [CUBIC, FLAT])
def test_closing_slits_fills_what_no_ball_outside_reaches(spacing: tuple[float, float, float]) -> None:
    """Against every ball of the radius that lies outside, tried one by one."""
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.normal(size=(6, 14, 14)), 1) > 0.2
    radius, scale = 2.0, np.array(spacing)
    wide = np.pad(mask, 7)
    air = np.argwhere(~wide) * scale
    free = KDTree(np.argwhere(wide) * scale).query(air)[0] >= radius + 0.5
    reached = KDTree(air[free]).query(air)[0] < radius + 0.5
    expected = wide.copy()
    expected[tuple((air[~reached] / scale).round().astype(int).T)] = True
    assert (close_slits(mask, spacing, WHOLE, radius) == expected[7:-7, 7:-7, 7:-7]).all()


@pytest.mark.parametrize("unit", [1.0, 0.3, 0.1, 0.01, 0.007])
def test_a_slit_that_opens_on_a_face_of_the_patch_is_closed_up_to_it_in_any_unit(unit: float) -> None:
    """Two slabs, four voxels apart; where they end within the patch, a ball reaches somewhat into the gap."""
    slabs = np.zeros((12, 20, 20), bool)
    slabs[:4], slabs[8:] = True, True
    spacing = (unit, unit, unit)
    cut, ends = ((False, False), (True, True), (True, True)), ((False, False), (True, True), (False, True))
    assert close_slits(slabs, spacing, cut, 3 * unit).all()
    closed = close_slits(slabs, spacing, ends, 3 * unit)
    assert not closed[5:7, :, 0].any()
    assert closed[:, :, 3:].all()
