"""What is asked of people: how large a box may be for its time, and how a campaign's own minutes count."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rescueseg.geometry import Box
from rescueseg.queue.records import NewTicket
from rescueseg.records import AcceptedAnnotation, Holdout, Normalisation, Purpose, VolumeRecord
from rescueseg.reports.sampling_table import effort_lines
from rescueseg.sampling import effort, patches

SIDES = st.tuples(*[st.floats(0, math.log(3000)).map(lambda x: max(1, int(math.exp(x))))] * 3)
LENGTHS = st.floats(math.log(0.004), math.log(20)).map(math.exp)


def volume(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> VolumeRecord:
    return VolumeRecord(
        volume_id="a", domain="d", shape_zyx=shape, spacing_um_zyx=spacing, channels=1, dtype="uint8",
        source="a.tif", digest="a", normalisation=Normalisation(low=0, high=1, mean=0, std=1), truth=None,
    )  # fmt: skip


def test_a_thick_structure_gets_a_wider_patch_within_bounds() -> None:
    """2.5 times the thickness along each axis, unless that takes more than twice as long."""
    cube = volume((1000, 1000, 1000), (1, 1, 1))
    plain, thick, huge = (patches.patch_limit(cube, 8, thickness) for thickness in (None, 18, 100))
    assert plain.voxels < 45**3 == thick.voxels
    assert (plain.minutes, thick.minutes, huge.minutes) == (8, 16, 16)
    assert 2 * 8 * 60 >= effort.seconds(patches.advised_shape(cube, huge.voxels)) > 1.9 * 8 * 60
    flat = volume((1000, 1000, 1000), (5, 1, 1))
    assert patches.patch_limit(flat, 8, 18) == patches.patch_limit(flat, 8), "9 planes of 45×45 are less"


@settings(max_examples=300, deadline=None)
@given(
    shape=SIDES,
    spacing=st.tuples(LENGTHS, LENGTHS, LENGTHS),
    thickness=st.none() | st.floats(0.05, 1e4),
    minutes=st.sampled_from([effort.PATCH_MINUTES, effort.BOX_MINUTES]),
    less=st.floats(0.01, 1),
)
@example(shape=(256, 97, 357), spacing=(0.005, 0.457, 0.588), thickness=50.0, minutes=8.0, less=1.0)
@example(shape=(245, 30, 43), spacing=(0.02, 0.178, 0.894), thickness=3.0, minutes=8.0, less=0.5)
def test_no_patch_takes_longer_than_is_said(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    thickness: float | None,
    minutes: float,
    less: float,
) -> None:
    """Up to 23 minutes were seen where 16 were promised: the shape that was timed was another one."""
    given_volume = volume(shape, spacing)
    limit = patches.patch_limit(given_volume, minutes, thickness)
    assert limit.minutes == minutes or (thickness is not None and limit.minutes == 2 * minutes)
    shapes = [
        patches.limited_shape(given_volume, max(1, int(share * limit.voxels)), limit.minutes) for share in (1, less)
    ]
    for patch in shapes:
        assert all(1 <= n <= most for n, most in zip(patch, shape, strict=True))
        assert effort.seconds(patch) <= 60 * limit.minutes


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3000), st.integers(28, 600), st.integers(28, 600)),
    depth=LENGTHS,
    pixel=LENGTHS,
    voxels=st.integers(1, 125_000),
)
def test_planes_that_are_close_together_are_wide_enough_to_draw_on(
    shape: tuple[int, int, int], depth: float, pixel: float, voxels: int
) -> None:
    """Of 2048×300×300 voxels of 0.01×1×1 µm, patches of 78×1×1 voxels were asked for."""
    planes, *sides = patches.advised_shape(volume(shape, (depth, pixel, pixel)), voxels)
    cube = min(voxels, math.prod(shape)) ** (1 / 3)
    assert planes <= max(sides) or min(sides) >= min(effort.LEAST_WIDTH, math.floor(0.8 * cube))


def test_a_stack_of_much_finer_planes_gets_patches_that_can_be_drawn() -> None:
    stack = volume((2048, 300, 300), (0.01, 1, 1))
    limit = patches.patch_limit(stack, effort.PATCH_MINUTES)
    shape = patches.limited_shape(stack, limit.voxels, limit.minutes)
    assert shape[1:] == (28, 28)
    assert 7 * 60 < effort.seconds(shape) <= 8 * 60


BOX = Box((0, 0, 0), (8, 80, 80))
"""Assumed to take 410 seconds."""


def annotations(*times: float, purpose: Purpose = "pool") -> list[AcceptedAnnotation]:
    """Return annotations that took so many times as long as assumed; 0: without a time."""
    return [
        AcceptedAnnotation(
            ticket_id="t", volume_id="a", box=BOX, purpose=purpose, generation=0, stratum="dense", annotation_id="n",
            version=1, labels="l", labels_digest="d", annotator="ann", tool="napari", seconds=410 * n, voxels_corrected=0,
        )
        for n in times
    ]  # fmt: skip


def test_the_campaigns_own_minutes_scale_the_estimate() -> None:
    assert effort.pace(annotations(2, 2, 0)) == effort.Pace()
    assert effort.pace(annotations(2, 2, 2, 0)).patches == 2.0
    assert effort.effort_of([BOX] * 9, 2.0) == effort.Effort(9, 72, 9 * 51_200, 2 * 9 * 410 / 3600)


def test_a_patch_left_open_says_nothing_about_all_others() -> None:
    """20,000 seconds and twice 300 multiplied all hours by 40."""
    assert effort.pace(annotations(20_000 / 410, 300 / 410, 300 / 410)).patches == pytest.approx(300 / 410)
    assert effort.pace(annotations(40, 40, 40)).patches == 5.0
    assert effort.pace(annotations(0.01, 0.01, 0.01)).patches == 0.2


@given(st.lists(st.floats(0.01, 1000), min_size=3), st.floats(0.01, 1e6))
def test_the_pace_is_bounded_whatever_one_annotation_took(times: list[float], other: float) -> None:
    patches = effort.pace(annotations(*times, other)).patches
    low, high = (min(5.0, max(0.2, bound)) for bound in (min(times), max(times)))
    assert low * (1 - 1e-9) <= patches <= high * (1 + 1e-9)


def test_patches_that_begin_from_a_mask_do_not_make_holdout_boxes_quick() -> None:
    quick, slow = annotations(0.5, 0.5, 0.5), annotations(3, 3, 3)
    boxes = annotations(2, 2, 2, purpose="test")
    assert effort.pace(quick) == effort.Pace(0.5, 1.0, is_measured=True)
    assert effort.pace(slow) == effort.Pace(3.0, 3.0, is_measured=True)
    assert effort.pace([*quick, *boxes]) == effort.Pace(0.5, 2.0, is_measured=True)
    assert effort.pace([*quick[:2], *boxes]) == effort.Pace(2.0, 2.0, is_measured=True)


def test_what_two_people_annotate_counts_twice() -> None:
    one = NewTicket(ticket_id="t", volume_id="a", box=BOX)
    first = [one, one.model_copy(update={"annotators": 2}), one.model_copy(update={"purpose": "test"})]
    lines = effort_lines([], Holdout(boxes=(), guard_zyx=(0, 0, 0)), first, effort.Pace(2.0, 1.0, is_measured=True))
    assert lines[0].startswith("Asked of people before the first model: about 0.8 hours (by the minutes of")
    assert lines[1].startswith("  holdout: 1 box, 8 planes, 51,200 voxels, about 0.1 hours")
    assert lines[2].startswith("  first patches: 3 boxes, 24 planes")
    assert "1 of the patches are annotated by two people" in lines[3]
