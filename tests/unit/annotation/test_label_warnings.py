"""What is odd about labels: each slip is found where it was made, and honest labels are not doubted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg.annotation.label_warnings import (
    cut_at_border,
    empty,
    holes,
    ignore_holes,
    label_warnings,
    specks,
    two_values,
    unchanged,
    z_gaps,
)
from rescueseg.labels import PatchLabels
from rescueseg.randomness import random_generator
from rescueseg.voxels.components import label_components

SHAPE = (16, 40, 40)
NOTHING = PatchLabels(np.zeros(SHAPE, np.uint8))


@pytest.fixture
def ball() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return (((z - 8) / 5) ** 2 + ((y - 20) / 12) ** 2 + ((x - 20) / 12) ** 2 < 1).astype(np.uint8)


def components(mask: np.ndarray) -> np.ndarray:
    return label_components(mask, 26)[0]


def codes(classes: np.ndarray, start: PatchLabels = NOTHING, **model: np.ndarray) -> list[str]:
    return [warning.code for warning in label_warnings(PatchLabels(classes), start, **model)]


def test_a_ball_is_not_odd(ball: np.ndarray) -> None:
    assert codes(ball) == []
    assert codes(np.zeros(SHAPE, np.uint8), PatchLabels(ball)) == [], "wiping a wrong first mask is no slip"


def test_what_nobody_touched(ball: np.ndarray) -> None:
    assert codes(ball, PatchLabels(ball)) == ["unchanged"]
    assert unchanged(PatchLabels(ball), NOTHING, ball)[0].message.startswith("the mask is the model's prediction")
    assert codes(np.zeros(SHAPE, np.uint8)) == ["unchanged"], "an empty mask that started empty was perhaps not saved"


def test_empty_where_the_model_is_sure(ball: np.ndarray) -> None:
    sure, unsure = np.full(SHAPE, 0.05, np.float32), np.full(SHAPE, 0.6, np.float32)
    nothing = np.zeros(SHAPE, np.uint8)
    (warning,) = empty(nothing, ball, sure, 1)
    assert warning.voxels == ball.sum()
    assert ball[warning.at_zyx] == 1
    assert empty(nothing, ball, unsure, 1) == []
    assert empty(np.full(SHAPE, 255, np.uint8), ball, sure, 1) == []
    assert empty(ball, ball, sure, 1) == []


def test_a_mask_of_0_and_255_is_doubted(ball: np.ndarray) -> None:
    start, fiji = PatchLabels(np.zeros(SHAPE, np.uint8)), PatchLabels(ball * np.uint8(255))
    (warning,) = two_values(fiji, start)
    assert warning.voxels == ball.sum()
    assert two_values(PatchLabels(ball), start) == []
    assert two_values(fiji, fiji) == [], "what was left out before is no slip"
    everywhere = np.where(ball == 0, np.uint8(255), ball)
    everywhere[0, 0, 0] = 0
    assert two_values(PatchLabels(everywhere), start) == []
    numbers = PatchLabels.of_instances(ball.astype(np.uint32) * 255)
    nothing = PatchLabels.of_instances(np.zeros(SHAPE, np.uint32))
    assert two_values(numbers, nothing)[0].voxels == ball.sum()
    assert two_values(numbers, numbers) == []


def test_a_stray_voxel_is_found_and_a_small_object_among_small_ones_is_none(ball: np.ndarray) -> None:
    ball[2, 3, 3] = 1
    (warning,) = specks(components(ball == 1))
    assert (warning.voxels, warning.at_zyx) == (1, (2, 3, 3))
    ball[2, 3, 3], ball[0, 3, 3] = 0, 1
    assert specks(components(ball == 1)) == [], "the border may have cut it off"
    small = np.zeros(SHAPE, np.uint8)
    small[5:7, 5:7, 5:7] = small[9, 9, 9] = 1
    assert specks(components(small == 1)) == []


def test_a_stray_bit_of_a_numbered_object_is_found(ball: np.ndarray) -> None:
    ids = ball.astype(np.uint32) * 7
    ids[2, 3, 3] = 7
    assert [w.at_zyx for w in specks(ids)] == [(2, 3, 3)]


def test_a_missing_plane_is_found_unless_it_was_left_out(ball: np.ndarray) -> None:
    ball[8] = 0
    (warning,) = z_gaps(components(ball == 1), np.zeros(SHAPE, np.bool_))
    assert warning.at_zyx is not None
    assert warning.at_zyx[0] == 8
    assert "plane 8" in warning.message
    left_out = np.zeros(SHAPE, np.bool_)
    left_out[8] = True
    assert z_gaps(components(ball == 1), left_out) == []


def test_two_objects_that_nearly_meet_in_z_are_no_gap() -> None:
    z, y, x = np.indices(SHAPE)
    above, below = (
        ((z - c) / 4.5) ** 2 + ((y - 20 - d) / 12) ** 2 + ((x - 20) / 12) ** 2 < 1 for c, d in ((2, 0), (12, 6))
    )
    assert z_gaps(components(above | below), np.zeros(SHAPE, np.bool_)) == []


def test_a_hole_is_found_and_a_lumen_is_none(ball: np.ndarray) -> None:
    ball[8, 20:22, 20] = 0
    (warning,) = holes(components(ball == 1), ball == 0)
    assert (warning.voxels, warning.at_zyx) == (2, (8, 20, 20))
    ball[8, 20:22, 20] = 255
    assert holes(components(ball == 1), ball == 0) == []
    shell = ball.copy()
    shell[5:12, 14:27, 14:27] = 0
    assert holes(components(shell == 1), shell == 0) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_a_straight_cut_before_the_border_is_found(axis: int, end: int) -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[tuple(slice(None) if a == axis else slice(4, 12) for a in range(3))] = True
    nothing = np.zeros(SHAPE, np.bool_)
    assert cut_at_border(mask, nothing) == []
    mask[tuple(end if a == axis else slice(None) for a in range(3))] = False
    (warning,) = cut_at_border(mask, nothing)
    assert warning.at_zyx is not None
    assert warning.at_zyx[axis] == (1 if end == 0 else SHAPE[axis] - 2)
    face = np.zeros(SHAPE, np.bool_)
    face[tuple(end if a == axis else slice(None) for a in range(3))] = True
    assert cut_at_border(mask, face) == [], "what was left out at the border was meant"


def test_a_rounded_end_at_the_border_is_no_cut() -> None:
    z, y, x = np.indices(SHAPE)
    ball = ((z - 6) / 6) ** 2 + ((y - 20) / 10) ** 2 + ((x - 20) / 10) ** 2 < 1
    assert not ball[0].any()
    assert ball[1].any()
    assert cut_at_border(ball, np.zeros(SHAPE, np.bool_)) == []


def test_a_small_place_that_was_left_out_inside_is_doubted() -> None:
    ignore = np.zeros(SHAPE, np.bool_)
    ignore[4:6, 4:6, 4:6] = True
    (warning,) = ignore_holes(ignore)
    assert (warning.voxels, warning.at_zyx) == (8, (4, 4, 4))
    ignore[:] = False
    ignore[0, :8] = ignore[4:10, 20:30, 20:30] = True
    assert ignore_holes(ignore) == []


@pytest.mark.parametrize("name", ["bbbc050_mosaic_train", "cdeep3m_mito_train", "gonuclear_1135"])
def test_honest_labels_of_real_volumes_are_seldom_doubted(real_data: Path, name: str) -> None:
    truth = tifffile.imread(real_data / name / "labels.tif")
    instance = json.loads((real_data / name / "meta.json").read_text())["label_type"] == "instance"
    rng, doubted, seen = random_generator(0, "honest", name), 0, 0
    while seen < 12:
        z, y, x = (int(rng.integers(0, n - s + 1)) for n, s in zip(truth.shape, (16, 48, 48), strict=True))
        part = truth[z : z + 16, y : y + 48, x : x + 48]
        if (part > 0).mean() > 0.01:
            labels = PatchLabels.of_instances(part)
            given = labels if instance else PatchLabels(labels.classes)
            doubted += bool(label_warnings(given, PatchLabels(np.zeros_like(labels.classes))))
            seen += 1
    assert doubted <= 2
