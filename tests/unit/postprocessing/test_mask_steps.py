"""The steps that clean a mask: tubes, rods and rings by hand, and brute force over small random masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from rescueseg.delivery.records import CleanUp
from rescueseg.evaluation.topology import betti_numbers
from rescueseg.geometry import Spacing
from rescueseg.postprocessing.distances import Mask, between, opening
from rescueseg.postprocessing.mask_steps import bridge, cavities, clean_mask, largest, smallest, spurs
from rescueseg.voxels.components import label_components

SPACING = (2.0, 1.0, 1.0)


def tube(length: int, gap: slice) -> Mask:
    """Return a tube along x, 3 µm thick, with a gap."""
    mask = np.zeros((7, 9, length), bool)
    mask[3, 3:6, :] = True
    mask[3, 3:6, gap] = False
    return mask


def sure(mask: Mask, elsewhere: float) -> np.ndarray:
    return np.where(mask, 1.0, elsewhere).astype(np.float32)


def pieces_of(mask: Mask) -> int:
    return label_components(mask, 26)[1]


@pytest.mark.parametrize(("bridge_um", "probability", "pieces"), [(7.0, 0.4, 1), (6.9, 0.4, 2), (7.0, 0.2, 2)])
def test_a_gap_is_bridged_where_it_is_short_and_the_probability_reaches(
    bridge_um: float, probability: float, pieces: int
) -> None:
    """Six voxels of gap are 7 µm from centre to centre, more than the tube is thick."""
    mask = tube(30, slice(12, 18))
    bridged = bridge(mask, sure(mask, probability), SPACING, bridge_um, 0.3)
    assert pieces_of(bridged) == pieces
    assert (bridged & ~mask)[..., :12].sum() == (bridged & ~mask)[..., 18:].sum() == 0


def test_a_longer_limit_bridges_the_whole_section() -> None:
    mask = tube(30, slice(14, 17))
    bridged = bridge(mask, sure(tube(30, slice(0, 0)), 0.1), SPACING, 6.0, 0.3)
    assert np.array_equal(bridged, tube(30, slice(0, 0)))


def test_parallel_tubes_are_joined_only_by_probability() -> None:
    mask = np.zeros((5, 12, 20), bool)
    mask[2, 2:4], mask[2, 6:8] = True, True
    assert np.array_equal(bridge(mask, sure(mask, 0.1), SPACING, 5.0, 0.3), mask)
    assert pieces_of(bridge(mask, sure(mask, 0.5), SPACING, 5.0, 0.3)) == 1


def test_a_gap_in_a_loop_joins_no_two_pieces() -> None:
    ring = np.zeros((3, 12, 12), bool)
    ring[1, 2:10, 2:10], ring[1, 4:8, 4:8], ring[1, 2:4, 5:7] = True, False, False
    assert np.array_equal(bridge(ring, sure(ring, 1.0), SPACING, 6.0, 0.0), ring)


def test_a_bridge_never_lies_where_the_probability_is_negative() -> None:
    mask = tube(20, slice(9, 11))
    assert np.array_equal(bridge(mask, sure(mask, -1.0), SPACING, 9.0, 0.0), mask)


def test_a_spur_on_a_rod_goes_and_a_neck_between_two_stays() -> None:
    rod = np.zeros((9, 30, 40), bool)
    rod[2:7, 4:12, :] = True
    body = opening(rod, SPACING, 5.0)
    spur = rod.copy()
    spur[4, 12:18, 10] = True
    assert np.array_equal(spurs(spur, SPACING, 5.0), body)
    neck = spur.copy()
    neck[2:7, 18:26, :] = True
    assert spurs(neck, SPACING, 5.0)[4, 12:18, 10].all()


def test_a_rod_through_the_faces_keeps_its_ends() -> None:
    rod = np.zeros((9, 9, 20), bool)
    rod[4, 2:7, :] = rod[3:6, 3:6, :] = True
    cut = spurs(rod, (1.0, 1.0, 1.0), 3.0)
    assert all(np.array_equal(cut[..., x], cut[..., 10]) for x in range(20))
    assert cut[..., 10].sum() >= 9


def test_a_thin_piece_is_left_to_the_smallest() -> None:
    thin = np.zeros((5, 5, 20), bool)
    thin[2, 2, 3:12] = True
    assert np.array_equal(spurs(thin, SPACING, 4.0), thin)
    assert smallest(thin, SPACING, 18.0).any()
    assert not smallest(thin, SPACING, 18.1).any()


def test_pieces_at_a_face_stay_whatever_their_size() -> None:
    for axis, side in itertools.product(range(3), (0, -1)):
        mask = np.zeros((5, 5, 5), bool)
        place = [2, 2, 2]
        place[axis] = side
        mask[tuple(place)] = True
        assert smallest(mask, SPACING, 1e9).sum() == 1


def torus() -> Mask:
    z, y, x = np.ogrid[-4:5, -14:15, -14:15]
    return np.asarray((np.hypot(y, x) - 8) ** 2 + z**2 <= 9)


def test_a_torus_keeps_its_hole_and_loses_its_cavity() -> None:
    mask = torus()
    mask[4, 14, 6] = False
    assert betti_numbers(mask) == (1, 1, 1)
    filled = cavities(mask, (1, 1, 1), 1e9)
    assert betti_numbers(filled) == (1, 1, 0)
    assert np.array_equal(filled, torus())


def test_a_cavity_at_a_face_is_none() -> None:
    mask = np.ones((4, 5, 5), bool)
    mask[0, 2, 2] = False
    assert np.array_equal(cavities(mask, SPACING, 1e9), mask)


def test_of_equal_pieces_the_first_is_the_largest() -> None:
    mask = np.zeros((3, 3, 9), bool)
    mask[0, 0, 7:9] = mask[2, 2, 0:2] = mask[0, 0, 0] = True
    assert np.argwhere(largest(mask)).tolist() == [[0, 0, 7], [0, 0, 8]]


ALL = CleanUp(bridge_um=4, bridge_probability=0.3, spurs_um=3, smallest_um3=9, cavities_um3=50)


@pytest.mark.parametrize("steps", [CleanUp(), ALL, ALL.model_copy(update={"largest": True})])
@pytest.mark.parametrize("value", [0, 1])
def test_nothing_and_everything_stay_what_they_are(value: int, steps: CleanUp) -> None:
    labels = np.full((6, 20, 20), value, np.uint8)
    probability = np.stack([labels == 0, labels == 1]).astype(np.float32)
    assert np.array_equal(clean_mask(labels, probability, SPACING, [steps]), labels)


def test_one_voxel_is_a_speck_inside_and_none_at_a_face() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 2, 2] = labels[0, 4, 4] = 1
    probability = np.stack([labels == 0, labels == 1]).astype(np.float32)
    cleaned = clean_mask(labels, probability, SPACING, [CleanUp(smallest_um3=9)])
    assert np.argwhere(cleaned).tolist() == [[0, 4, 4]]


def test_seventy_thousand_specks() -> None:
    labels = np.zeros((85, 85, 85), np.uint8)
    labels[2:-2:2, 2:-2:2, 2:-2:2] = 1
    assert labels.sum() == 68921
    labels[0, 0, ::2] = labels[0, 2:, 0:1] = 1
    probability = np.stack([labels == 0, labels == 1]).astype(np.float32)
    cleaned = clean_mask(labels, probability, SPACING, [CleanUp(smallest_um3=3)])
    assert cleaned[1:-1, 1:-1, 1:-1].sum() == 0
    assert np.array_equal(cleaned[0], labels[0])


def test_no_class_overwrites_another() -> None:
    labels = np.zeros((7, 9, 30), np.uint8)
    labels[3, 3:6, :12] = labels[3, 3:6, 18:] = 1
    labels[2:5, 2:7, 14:16] = 2  # in the gap of class 1
    labels[3, 4, 4] = 2  # in the middle of class 1
    probability = np.full((3, *labels.shape), 0.3, np.float32)
    probability[1] = 0.5
    steps = (CleanUp(bridge_um=12, bridge_probability=0.3, cavities_um3=1e9), CleanUp())
    cleaned = clean_mask(labels, probability, SPACING, steps)
    assert np.array_equal(cleaned == 2, labels == 2)
    assert (cleaned[labels == 1] == 1).all()


def test_a_cavity_in_two_classes_goes_to_the_inner_one() -> None:
    labels = np.zeros((13, 13, 13), np.uint8)
    labels[1:12, 1:12, 1:12], labels[3:10, 3:10, 3:10] = 1, 0
    labels[4:9, 4:9, 4:9], labels[5:8, 5:8, 5:8] = 2, 0
    cleaned = clean_mask(labels, np.zeros((3, 13, 13, 13), np.float32), (1, 1, 1), [CleanUp(cavities_um3=1e9)] * 2)
    assert (cleaned[4:9, 4:9, 4:9] == 2).all()
    assert (cleaned[3, 3:10, 3:10] == 1).all()


# brute force ----------------------------------------------------------------------------------------------------------

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.3, 0.1, 0.1)])


def offsets(spacing: Spacing, radius: float) -> list[tuple[int, ...]]:
    """Return the voxels of a ball around the origin, its surface left out."""
    reach = [range(-int(radius / s) - 1, int(radius / s) + 2) for s in spacing]
    return [o for o in itertools.product(*reach) if np.hypot.reduce(np.multiply(o, spacing)) < radius * (1 - 1e-6)]


@settings(max_examples=60, deadline=None)
@given(MASKS, SPACINGS, st.sampled_from([1.0, 2.0, 3.0, 4.5]))
def test_an_opening_is_the_union_of_balls(mask: Mask, spacing: Spacing, width: float) -> None:
    width *= spacing[2]
    ball, inside, expected = (
        offsets(spacing, width / 2),
        set(map(tuple, np.argwhere(mask).tolist())),
        np.zeros_like(mask),
    )
    for centre in np.argwhere(mask).tolist():
        places = [tuple(c + o for c, o in zip(centre, offset, strict=True)) for offset in ball]
        seen = [p for p in places if all(0 <= i < n for i, n in zip(p, mask.shape, strict=True))]
        if inside.issuperset(seen):
            expected[tuple(np.array(seen).T)] = True
    assert np.array_equal(opening(mask, spacing, width), expected)


@settings(max_examples=60, deadline=None)
@given(MASKS, SPACINGS, st.sampled_from([1.0, 2.0, 3.5, 5.0]))
def test_what_lies_between_has_two_pieces_near(mask: Mask, spacing: Spacing, reach: float) -> None:
    reach *= spacing[2]
    pieces, count = label_components(mask, 26)
    expected = np.zeros_like(mask)
    if count > 1:
        distances = [ndimage.distance_transform_edt(pieces != n, sampling=spacing) for n in range(1, count + 1)]
        expected = ~mask & (np.sort(distances, axis=0)[:2].sum(axis=0) <= reach * (1 + 1e-6))
    assert np.array_equal(between(pieces, ~mask, spacing, reach), expected)
