"""Rotated, scaled and bent windows against scipy, and in micrometre against what a ball must stay."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, special
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import brentq
from torch import Tensor

from rescueseg.config import TrainingConfig
from rescueseg.geometry import ZYX, Spacing
from rescueseg.models.network_run import RunStart
from rescueseg.models.survey import Survey
from rescueseg.models.training_items import TrainingSet
from rescueseg.models.unet.augment import random_blur
from rescueseg.models.unet.loop import Run
from rescueseg.models.unet.losses import Objective
from rescueseg.models.unet.plan import TrainingPlan, make_plan
from rescueseg.models.unet.trainer import plan_training
from rescueseg.models.unet.warp import Warp, draw_warp
from rescueseg.randomness import keyed_generator
from tests.training_rig import BOXES, make_campaign, make_snapshot


def plan_of(spacing: Spacing, window: ZYX, border_um: float | None = None) -> TrainingPlan:
    config = TrainingConfig.model_validate({"window_zyx": window, "unet": {"channels": [8, 16, 32]}})
    return make_plan(config, Survey(1, spacing, volume_zyx=window, field_zyx=window), 2, border_um=border_um)


def warps(plan: TrainingPlan, n: int) -> list[Warp]:
    return [draw_warp(plan, 5, i) for i in range(n)]


def read_shape(warp: Warp) -> tuple[int, ...]:
    return tuple(n + 2 * m for n, m in zip(warp.window_zyx, warp.margin_zyx, strict=True))


def from_middle(shape: tuple[int, ...]) -> np.ndarray:
    """Return each voxel's offset from the middle, (3, z, y, x)."""
    return np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))


def sources(warp: Warp) -> np.ndarray:
    """Return where each voxel of the window comes from in the image with its margin, by scipy."""
    places = np.einsum("ab,bzyx->azyx", warp.matrix, from_middle(warp.window_zyx))
    if warp.shifts is not None:
        grids = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in warp.window_zyx), indexing="ij"), axis=-1)
        for axis, shifts in enumerate(warp.shifts):
            points = np.concatenate([shifts, shifts], axis=0) if len(shifts) == 1 else shifts
            knots = [np.linspace(0, 1, n) for n in points.shape]
            places[axis] += RegularGridInterpolator(knots, points)(grids)
    middle = (np.array(read_shape(warp)) - 1) / 2
    return np.asarray(places + middle[:, None, None, None])


SPACINGS = [((0.1, 0.1, 0.1), (24, 24, 24)), ((0.25, 0.1, 0.1), (12, 32, 32)), ((0.5, 0.1, 0.12), (8, 40, 32))]


@pytest.mark.parametrize(("spacing", "window"), SPACINGS)
def test_image_and_labels_are_sampled_where_scipy_samples_them(spacing: Spacing, window: ZYX) -> None:
    rng = keyed_generator(1, "test")
    kinds = set()
    for warp in warps(plan_of(spacing, window), 40):
        shape = read_shape(warp)
        image = ndimage.gaussian_filter(rng.standard_normal(shape), 1)
        labels = rng.integers(0, 3, shape)
        labels[rng.random(shape) < 0.3] = 255
        moved, classes = warp.apply(
            torch.from_numpy(image).float()[None], torch.from_numpy(labels).to(torch.uint8)[None]
        )
        places = sources(warp)
        assert places.min() > -1e-3, "nothing is read beyond the margin"
        assert all((p < n - 1 + 1e-3).all() for p, n in zip(places, shape, strict=True))
        assert np.abs(moved[0].numpy() - ndimage.map_coordinates(image, places, order=1, mode="nearest")).max() < 1e-3
        clear = (np.abs(places - np.floor(places) - 0.5) > 1e-3).all(axis=0)  # no tie between two voxels
        assert clear.mean() > 0.9
        assert np.array_equal(classes[0].numpy()[clear], labels[tuple(np.rint(places[:, clear]).astype(int))])
        assert classes.dtype == torch.uint8
        kinds.add((warp.shifts is not None, np.array_equal(warp.matrix, np.eye(3))))
    assert len(kinds) == 4


@pytest.mark.parametrize(("spacing", "window"), [((0.1, 0.1, 0.1), (48, 48, 48)), ((0.25, 0.1, 0.1), (20, 48, 48))])
def test_a_ball_stays_a_ball_in_micrometre(spacing: Spacing, window: ZYX) -> None:
    um, sizes = np.array(spacing)[:, None, None, None], []

    def ball(shape: tuple[int, ...], radius: float) -> np.ndarray:
        distance = np.sqrt(((from_middle(shape) * um) ** 2).sum(axis=0))
        return np.clip(0.5 + (radius - distance) / 0.4, 0, 1)  # 0.4 µm from outside to inside

    for warp in warps(plan_of(spacing, window), 120):
        if warp.shifts is None and not np.array_equal(warp.matrix, np.eye(3)):
            scale = np.linalg.det(warp.matrix) ** (-1 / 3)
            image = ball(read_shape(warp), 1.4)
            label = torch.from_numpy(image >= 0.5).to(torch.uint8)[None]
            moved, mask = (t[0].numpy() for t in warp.apply(torch.from_numpy(image).float()[None], label))
            expected = ball(window, 1.4 * scale)
            assert moved.sum() == pytest.approx(expected.sum(), rel=0.03)
            extents = [
                np.sqrt((m * (from_middle(window) * um) ** 2).sum(axis=(1, 2, 3)) / m.sum()) for m in (moved, expected)
            ]
            assert extents[0] == pytest.approx(extents[1], rel=0.03)
            assert (mask == (expected >= 0.5)).mean() > 0.97, "but for voxels at the border"
            sizes.append(scale)
    assert 0.8 <= min(sizes) < 0.9
    assert 1.1 < max(sizes) <= 1.25


def test_thick_slices_are_turned_about_z_and_never_mixed() -> None:
    for spacing, window in (((0.5, 0.1, 0.1), (8, 40, 40)), ((0.1, 0.1, 0.1), (4, 40, 40))):  # the second: few slices
        some = warps(plan_of(spacing, window), 60)
        for warp in some:
            assert np.array_equal(warp.matrix[0], [1, 0, 0])
            assert np.array_equal(warp.matrix[:, 0], [1, 0, 0])
            assert warp.shifts is None or (warp.shifts.shape[1] == 1 and not warp.shifts[0].any())
            assert warp.margin_zyx[0] == 0
        assert any(abs(warp.matrix[1, 2]) > 0.2 for warp in some)
    tilted = warps(plan_of((0.25, 0.1, 0.1), (16, 40, 40)), 60)
    assert any(abs(warp.matrix[0, 1]) > 0.05 for warp in tilted)
    beside = warps(plan_of((0.1, 0.5, 0.1), (40, 8, 40)), 60)  # the same along y
    assert all(warp.matrix[1, 0] == warp.matrix[1, 2] == 0 for warp in beside)
    assert any(abs(warp.matrix[0, 2]) > 0.2 for warp in beside)
    for warp in warps(plan_of((0.5, 0.1, 0.1), (40, 8, 8)), 20):  # no axis is left
        assert np.array_equal(warp.matrix, np.eye(3))
        assert warp.shifts is None


@pytest.mark.parametrize("unit", [1.0, 0.1, 0.3, 0.05, 0.2, 0.7, 1 / 3, 100.0])
def test_slices_exactly_three_times_as_thick_are_tilted_in_any_unit(unit: float) -> None:
    for thick, tilted in ((3 * unit, True), (round(3 * unit, 4), True), (3.01 * unit, False)):
        some = warps(plan_of((thick, unit, unit), (16, 40, 40)), 40)
        assert any(abs(warp.matrix[0, 1]) > 1e-3 for warp in some) == tilted


def test_an_image_without_its_margin_is_refused() -> None:
    warp = next(w for w in warps(plan_of((0.1, 0.1, 0.1), (16, 16, 16)), 40) if any(w.margin_zyx))
    right, wrong = torch.zeros(1, *read_shape(warp)), torch.zeros(1, 16, 16, 16)
    assert warp.apply(right, right)[0].shape == (1, 16, 16, 16)
    for image, label in ((wrong, right), (right, wrong), (wrong, wrong)):
        with pytest.raises(ValueError, match="with its margin"):
            warp.apply(image, label)


class Recorder:
    """Stands in for the augmentation: warps windows, changes no intensity, and keeps what it was given."""

    def __init__(self) -> None:
        self.warps: list[Warp] = []

    def __call__(self, image: Tensor, label: Tensor, warp: Warp, *_: int) -> tuple[Tensor, Tensor]:
        self.warps.append(warp)
        return warp.apply(image, label)


def test_a_training_reads_each_window_with_the_margin_of_its_warp_and_warps_it(tmp_path: Path) -> None:
    training = {"window_zyx": [8, 24, 24], "batch_size": 3, "iterations": 4}
    campaign = make_campaign(tmp_path, **training)
    snapshot = make_snapshot(campaign, BOXES)
    plan = plan_training(campaign.config, campaign.volumes, snapshot)
    data = TrainingSet(campaign.volumes, snapshot, plan)
    run = Run(RunStart(tmp_path, "a training", seed=7), data, plan, Objective(data, plan))
    recorder, moved = Recorder(), []
    run.augment = recorder  # type: ignore[assignment]
    for step in range(80):
        run.step = step
        images, labels, _ = run._tensors(run.batches.take(step))
        drawn = [draw_warp(plan, 7, step, i) for i in range(3)]
        for i, (warp, given) in enumerate(zip(drawn, recorder.warps[3 * step : 3 * step + 3], strict=True)):
            assert np.array_equal(warp.matrix, given.matrix)
            assert (warp.shifts is None) == (given.shifts is None)
            assert warp.shifts is None or np.array_equal(warp.shifts, np.asarray(given.shifts))
            image, label = warp.apply(*data.batch(7, step, [w.margin_zyx for w in drawn])[i])
            assert torch.equal(images[i], image)
            assert torch.equal(labels[i], label[0].long())
        moved += [not torch.equal(a, b) for a, (b, _) in zip(images, data.batch(7, step), strict=True)]
    assert np.mean(moved) == pytest.approx(1 - 0.8**3, abs=0.1), "rotated, scaled or bent: a fifth each"


def test_where_nobody_labelled_nobody_did_afterwards() -> None:
    for warp in warps(plan_of((0.25, 0.1, 0.1), (12, 32, 32)), 40):
        labels = torch.full((1, *read_shape(warp)), 255, dtype=torch.uint8)
        labels[:, 4:-4, 9:-9, 9:-9] = 1
        known = (labels != 255).float()
        _, moved = warp.apply(known, labels)
        _, still_known = warp.apply(known, known)
        assert ((moved == 1) | (moved == 255)).all()
        assert torch.equal(moved == 1, still_known == 1)


def test_a_warp_follows_its_key_and_a_fifth_of_the_windows_is_rotated_scaled_and_bent() -> None:
    plan = plan_of((0.1, 0.1, 0.1), (16, 16, 16))
    assert np.array_equal(draw_warp(plan, 3, 4).matrix, draw_warp(plan, 3, 4).matrix)
    many = warps(plan, 1500)
    scaled = [abs(np.linalg.det(w.matrix) - 1) > 1e-9 for w in many]
    rotated = [abs(w.matrix[0, 1]) > 0 for w in many]
    bent = [w.shifts is not None for w in many]
    for share in (np.mean(scaled), np.mean(rotated), np.mean(bent)):
        assert share == pytest.approx(0.2, abs=0.04)  # four standard errors
    image = torch.randn(1, *plan.window_zyx)
    plain = next(w for w, *changed in zip(many, scaled, rotated, bent, strict=True) if not any(changed))
    assert torch.equal(plain.apply(image, image)[0], image)


def test_lengths_that_are_learned_are_not_scaled() -> None:
    for warp in warps(plan_of((0.25, 0.1, 0.1), (16, 40, 40), border_um=0.5), 60):
        um = np.diag([0.25, 0.1, 0.1])
        rotation = um @ warp.matrix @ np.linalg.inv(um)
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-9)
        assert warp.shifts is None


@pytest.mark.parametrize(("spacing", "window"), SPACINGS)
def test_a_bent_window_never_folds(spacing: Spacing, window: ZYX) -> None:
    for warp in warps(plan_of(spacing, window), 100):
        if warp.shifts is not None:
            slopes = np.stack([np.stack(np.gradient(place)) for place in sources(warp)])
            assert np.linalg.det(slopes.transpose(2, 3, 4, 0, 1)).min() > 0


def test_a_blur_is_as_long_in_micrometre_along_each_axis() -> None:
    spacing = (0.25, 0.1, 0.1)
    blur = random_blur(spacing, prob=1.0)
    blur.set_random_state(seed=3)
    lengths = []
    for _ in range(100):
        impulse = torch.zeros(1, 9, 9, 9)
        impulse[0, 4, 4, 4] = 1
        response = torch.as_tensor(blur({"image": impulse})["image"])[0].double()
        beside = response[5, 4, 4], response[4, 5, 4], response[4, 4, 5]
        lengths.append([s * deviation(float(b / response[4, 4, 4])) for s, b in zip(spacing, beside, strict=True)])
    assert np.min(lengths, axis=0) == pytest.approx([0.03] * 3, abs=0.004)
    assert np.max(lengths, axis=0) == pytest.approx([0.1] * 3, abs=0.004)


def deviation(ratio: float) -> float:
    """Return the standard deviation in voxels of a Gaussian whose share of a voxel's neighbour is `ratio` of its own."""

    def share(sigma: float) -> float:
        near, far = special.erf(np.array([0.5, 1.5]) / (sigma * math.sqrt(2)))
        return float((far - near) / (2 * near))

    return float(brentq(lambda sigma: share(sigma) - ratio, 0.05, 3.0))
